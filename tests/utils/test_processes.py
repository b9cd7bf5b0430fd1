import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import crash_run
import forked
import pytest

from layerlock_hf.training import LayerLockTrainingArguments
from layerlock_hf.utils import processes
from layerlock_hf.utils.processes import end_children, run_and_exit


ACCELERATE = str(Path(sys.executable).parent / "accelerate")


@pytest.mark.slow
def test_a_launch_that_starts_one_process_of_several_is_refused(tmp_path):
    """`accelerate launch --cpu --num_processes 2`, which says nothing."""
    script = tmp_path / "script.py"
    script.write_text(
        "from layerlock_hf.training import LayerLockTrainingArguments\n"
        "LayerLockTrainingArguments(output_dir='out', max_steps=1, use_cpu=True)\n"
    )
    command = [ACCELERATE, "launch", "--cpu", "--num_processes", "2", "--mixed_precision", "no"]
    result = subprocess.run([*command, str(script)], capture_output=True, text=True, timeout=120)
    assert result.returncode != 0
    assert "ValueError: accelerate launch --cpu starts one process" in result.stderr


def test_one_process_is_not_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    LayerLockTrainingArguments(output_dir=str(tmp_path), max_steps=1, use_cpu=True)


def train_into_own_folder(root):
    folder = Path(root) / os.environ["RANK"]
    try:
        crash_run.make(folder, max_steps=1).train()
    except ValueError as error:
        (Path(root) / f"error-{os.environ['RANK']}").write_text(str(error))


@pytest.mark.slow
def test_nodes_that_share_no_folder_are_refused(tmp_path):
    assert forked.finish(forked.start(2, train_into_own_folder, tmp_path, num_nodes=2)) == [0, 0]
    for rank in range(2):
        assert "processes [1] do not see what process 0 writes" in (tmp_path / f"error-{rank}").read_text()
    assert os.listdir(tmp_path / "0") == []


def hang():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    time.sleep(600)


def test_children_that_hang_are_ended(monkeypatch):
    monkeypatch.setattr(processes, "END_S", 0.2)
    child = multiprocessing.get_context("fork").Process(target=hang, daemon=True)
    child.start()
    time.sleep(0.3)  # until it has blocked the signal
    end_children()
    child.join(10)
    assert child.exitcode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize(
    "code, status, said",
    [("pass", 0, ""), ("sys.exit(143)", 143, ""), ("sys.exit('error: no')", 1, "error: no\n"), ("1 / 0", 1, "Zero")],
)
def test_run_and_exit(code, status, said):
    program = (
        "import atexit, sys\n"
        "from layerlock_hf.utils.processes import run_and_exit\n"
        "atexit.register(lambda: print('flushed'))\n"
        f"def main():\n    {code}\n"
        "run_and_exit(main)\n"
        "print('not reached')\n"
    )
    environment = {**os.environ, "WORLD_SIZE": "2"}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert (result.returncode, result.stdout) == (status, "flushed\n")
    assert said in result.stderr


def test_run_and_exit_is_plain_with_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(SystemExit):
        run_and_exit(lambda: sys.exit(3))
