"""Several machines, played by launches of their own: on this one, and in network namespaces that share a cable."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from forked import free_port


HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
JOB = {"name": "toy", "keep": True, "settings": {"per_device_train_batch_size": 2}}  # four stages in ten steps


def train(output_dir: Path, nodes: list[dict], address: str = "127.0.0.1") -> list[dict]:
    """Final weights of two processes, spread over nodes: each a command to prefix and variables to set."""
    output_dir.mkdir()
    port, running = free_port(), []
    for rank, node in enumerate(nodes):
        command = [*node.get("prefix", []), str(Path(sys.executable).parent / "accelerate"), "launch"]
        command += ["--config_file", str(ROOT / "scripts" / "launch" / "nodes_ddp.yaml"), "--num_processes", "2"]
        command += ["--num_machines", str(len(nodes)), "--machine_rank", str(rank)]
        command += ["--main_process_ip", address, "--main_process_port", str(port)]
        command += [str(HERE / "toy_run.py"), str(output_dir), json.dumps([JOB])]
        variables = {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": f"{ROOT}:{HERE}", "OMP_NUM_THREADS": "1"}
        environment = {**os.environ, **variables, **node.get("variables", {})}
        with (output_dir / f"node-{rank}.log").open("w") as log:
            running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=240) for process in running]
    finally:
        for process in running:
            process.terminate()  # the agent ends its workers
            process.wait(timeout=60)
    assert not any(codes), "\n".join(path.read_text()[-3000:] for path in sorted(output_dir.glob("*.log")))
    return [torch.load(output_dir / f"toy-{rank}.pt")["model"] for rank in range(2)]


@pytest.fixture(scope="module")
def one_node(tmp_path_factory):
    return train(tmp_path_factory.mktemp("one_node") / "run", [{}])


def assert_equal(runs: list[dict], others: list[dict]):
    for weights, expected in zip(runs, others, strict=True):
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_two_nodes_are_one(tmp_path, one_node):
    assert_equal(train(tmp_path / "run", [{}, {}]), one_node)


@pytest.fixture
def namespaces():
    """Two network namespaces of a name of their own, joined by a virtual cable."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("network namespaces need root and iproute2")
    names = [f"ll{os.getpid()}{side}" for side in "ab"]

    def ip(*arguments):
        return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)

    made = []
    try:
        for name in names:
            ip("netns", "add", name)
            made.append(name)
        # Made within the namespaces, the ends of the cable go with them
        ip("-n", names[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", names[1])
        for number, name in enumerate(names, start=1):
            ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
    except subprocess.CalledProcessError as error:
        for name in made:
            ip("netns", "delete", name)
        pytest.skip(f"network namespaces cannot be made here: {error.stderr.strip()}")
    yield names
    for name in names:
        ip("netns", "delete", name)


@pytest.mark.slow
def test_two_nodes_on_two_networks_are_one(tmp_path, one_node, namespaces):
    variables = {"GLOO_SOCKET_IFNAME": "cable"}
    nodes = [{"prefix": ["ip", "netns", "exec", name], "variables": variables} for name in namespaces]
    assert_equal(train(tmp_path / "run", nodes, address="10.77.0.1"), one_node)
