"""Two machines, played by two `node.sh` on this one, of which each is lost once, agent and worker together."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from crash_run import assert_undisturbed, wait_for_step
from forked import free_port
from launching import kill


HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LAUNCH = ROOT / "scripts" / "launch"


class Node:
    def __init__(self, rank: int, port: int, output_dir: Path):
        command = [str(LAUNCH / "node.sh"), str(Path(sys.executable).parent / "accelerate"), "launch"]
        command += ["--config_file", str(LAUNCH / "nodes_ddp.yaml"), "--num_processes", "2", "--num_machines", "2"]
        command += ["--machine_rank", str(rank), "--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
        self.command = [*command, str(HERE / "crash_run.py"), str(output_dir)]
        self.log = output_dir / f"node-{rank}.log"
        self.start()

    def start(self):
        variables = {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": f"{ROOT}:{HERE}", "OMP_NUM_THREADS": "1"}
        with self.log.open("a") as log:
            self.process = psutil.Popen(
                self.command, env={**os.environ, **variables}, stdout=log, stderr=subprocess.STDOUT
            )

    def is_alive(self) -> bool:
        return self.process.poll() is None


@pytest.mark.slow
def test_each_node_is_lost_once(tmp_path, undisturbed):
    port = free_port()
    nodes = [Node(rank, port, tmp_path) for rank in range(2)]
    try:
        for victim, step in ((nodes[1], 6), (nodes[0], 14)):
            wait_for_step(tmp_path, step, nodes, timeout_s=120)
            kill(victim.process)
            start = time.monotonic()
            victim.start()
            wait_for_step(tmp_path, step + 4, nodes, timeout_s=120)
            print(f"went on {time.monotonic() - start:.0f} s after a node was lost")
        assert [node.process.wait(timeout=240) for node in nodes] == [0, 0], nodes[0].log.read_text()[-3000:]
    finally:
        for node in nodes:
            if node.is_alive():
                kill(node.process)
    assert_undisturbed(tmp_path, undisturbed)
