"""Runs on several processes on the CPU, and FSDP2 there."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import accelerate.state
from accelerate.utils import DistributedType


HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CONFIG = ROOT / "scripts" / "accelerate" / "fsdp2.yaml"


def launch(script, *arguments, processes: int = 2, timeout: int = 240) -> list[str]:
    """The lines that processes on the CPU print, started by accelerate as configured for FSDP2, but in fp32."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    options = ["--config_file", CONFIG, "--num_processes", processes, "--main_process_port", port]
    options += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    environment = {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": f"{ROOT}:{HERE}", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [Path(sys.executable).parent / "accelerate", "launch", *map(str, [*options, script, *arguments])],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    # Of each process the end of its traceback; what the launcher adds says nothing
    failures = [line for line in result.stderr.splitlines() if line.startswith("[rank")]
    assert result.returncode == 0, "\n".join(failures[-40:]) or result.stderr[-4000:]
    return result.stdout.splitlines()


def run_jobs(folder: Path, jobs: list[dict], processes: int = 2, timeout: int = 240) -> dict[str, list[dict]]:
    """What each process reports of the jobs of `toy_run`, which all run in one launch: by name, in order of rank."""
    lines = launch(HERE / "toy_run.py", folder, json.dumps(jobs), processes=processes, timeout=timeout)
    reports = sorted(read_reports(lines), key=lambda report: report["rank"])
    by_name = {job["name"]: [report for report in reports if report["name"] == job["name"]] for job in jobs}
    assert all(len(reports) == processes for reports in by_name.values())
    return by_name


def read_reports(lines: list[str]) -> list[dict]:
    """What was said with `report`, among the logs that the Trainer prints."""
    return [json.loads(line) for line in lines if line.startswith('{"name"')]


def report(name: str, **values):
    sys.stdout.write(json.dumps({"name": name, **values}) + "\n")
    sys.stdout.flush()


def allow_fsdp_on_cpu():
    """accelerate turns only launches on accelerators into FSDP; this does the same for those on the CPU."""
    original = accelerate.state.AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            accelerate.state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    accelerate.state.AcceleratorState.__init__ = init
