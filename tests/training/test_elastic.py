"""Launches that come back by themselves after a process has died, through torchrun's restarts."""

import time
from pathlib import Path

import pytest
import torch
from launching import launch


pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).resolve().parent / "crash_run.py"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    launch(SCRIPT, folder)
    return torch.load(folder / "final-0.pt")


def assert_equal(folder, undisturbed):
    for rank in range(2):
        final = torch.load(folder / f"final-{rank}.pt")
        differing = [n for n, tensor in final["model"].items() if not torch.equal(tensor, undisturbed["model"][n])]
        assert differing == []
        assert final["log"] == undisturbed["log"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_comes_back(tmp_path, undisturbed, rank):
    launch(SCRIPT, tmp_path, 60, 11, rank, "SIGKILL", options=("--max_restarts", "1"))
    assert_equal(tmp_path, undisturbed)


def test_a_stopped_process_is_given_up_and_the_run_comes_back(tmp_path, undisturbed):
    """8 seconds are what the user set; torchrun waits 30 more for a process that does not end."""
    start = time.monotonic()
    launch(SCRIPT, tmp_path, 8, 11, 1, "SIGSTOP", options=("--max_restarts", "1"))
    print(f"recovered and finished after {time.monotonic() - start:.0f} s")
    assert_equal(tmp_path, undisturbed)
