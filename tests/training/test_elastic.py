"""Launches that come back by themselves after a process has died, through torchrun's restarts."""

import time
from pathlib import Path

import pytest
from crash_run import assert_undisturbed
from launching import launch


pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).resolve().parent / "crash_run.py"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_comes_back(tmp_path, undisturbed, rank):
    launch(SCRIPT, tmp_path, 60, 11, rank, "SIGKILL", options=("--max_restarts", "1"))
    assert_undisturbed(tmp_path, undisturbed)


def test_a_stopped_process_is_given_up_and_the_run_comes_back(tmp_path, undisturbed):
    """8 seconds are what the user set; torchrun waits 30 more for a process that does not end."""
    start = time.monotonic()
    launch(SCRIPT, tmp_path, 8, 11, 1, "SIGSTOP", options=("--max_restarts", "1"))
    print(f"recovered and finished after {time.monotonic() - start:.0f} s")
    assert_undisturbed(tmp_path, undisturbed)
