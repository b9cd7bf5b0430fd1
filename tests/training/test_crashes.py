"""Runs whose processes are killed, stopped, preempted and out of disk, against the run that nothing happened to."""

import functools
import os
import random
import re
import signal
import subprocess
import threading
import time

import crash_run
import forked
import psutil
import pytest
import torch
import toy_run
from crash_run import (
    NOT_WRITTEN,
    PREEMPTED,
    At,
    assert_equal,
    assert_undisturbed,
    saved_log,
    wait_for_step,
)
from transformers import TrainerCallback

from layerlock_hf.training import callbacks
from layerlock_hf.training.checkpoints import remove


pytestmark = pytest.mark.slow
LOGGED = ("step", "loss", "grad_norm", "learning_rate", "num_frozen")


def finish_and_compare(folder, undisturbed, **kwargs):
    """Weights, optimizer and every logged loss are equal bit by bit, on both processes."""
    assert forked.finish(forked.start(2, crash_run.run, folder, {}, **kwargs)) == [0, 0]
    assert_undisturbed(folder, undisturbed)
    log = [{name: row[name] for name in LOGGED} for row in saved_log(folder) if "grad_norm" in row]
    assert log == undisturbed["log"]


@pytest.mark.parametrize("num_nodes, victims", [(1, (0, 1)), (2, (1,)), (2, (0,))])
def test_chaos(tmp_path, undisturbed, num_nodes, victims):
    """SIGKILL at random moments: of all processes twelve times on one node, of each of two nodes twice."""
    moments = random.Random(num_nodes + 10 * victims[0])
    num_kills, num_torn, step = (12, 0, 0) if num_nodes == 1 else (2, 0, 6)
    for _ in range(num_kills):
        (tmp_path / "progress").unlink(missing_ok=True)
        processes = forked.start(2, crash_run.run, tmp_path, {}, num_nodes=num_nodes)
        step += moments.randint(1, 2)
        wait_for_step(tmp_path, step, processes)
        time.sleep(moments.random() * 0.15)
        for rank in victims:
            processes[rank].kill()
        # The processes of another node end by themselves: their peer is gone
        statuses = forked.finish(processes, timeout_s=60)
        assert all(statuses[rank] == -signal.SIGKILL for rank in victims)
        assert all(status not in (None, 0) for status in statuses), statuses
        num_torn += (tmp_path / "_incomplete").exists()
    print(f"{num_torn} of {num_kills} kills left a checkpoint torn")
    finish_and_compare(tmp_path, undisturbed, num_nodes=num_nodes)


POINTS = {
    "before the weights": (0, "save_model", False),
    "after the weights": (0, "save_model", True),
    "after the optimizer": (0, "_save_optimizer_and_scheduler", True),
    "before the last process's random numbers": (1, "_save_rng_state", False),
    "before it is published": (0, "_agree_on_save", True),
    "after it is published": (0, "_save_checkpoint", True),
}


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_every_point_of_a_save(tmp_path, undisturbed, point):
    rank, method, after = POINTS[point]
    border = 16
    kill = functools.partial(crash_run.kill_in_save, step=border, rank=rank, method=method, after=after)
    processes = forked.start(2, functools.partial(crash_run.run, prepare=kill), tmp_path, {})
    processes[rank].join(60)
    assert processes[rank].exitcode == -signal.SIGKILL
    processes[1 - rank].kill()  # as torchrun does
    forked.finish(processes)
    assert (tmp_path / f"checkpoint-{border}").exists() == (point == "after it is published")
    finish_and_compare(tmp_path, undisturbed)


@pytest.mark.parametrize("skew_s", [0, 0.05, 0.5])
def test_sigterm_saves_at_one_step(tmp_path, undisturbed, skew_s):
    processes = forked.start(2, crash_run.run, tmp_path, {"save_strategy": "no"})
    wait_for_step(tmp_path, 5, processes)
    for process in processes:
        if process.is_alive():
            os.kill(process.pid, signal.SIGTERM)
        time.sleep(skew_s)
    assert forked.finish(processes) == [PREEMPTED, PREEMPTED]
    assert len(list(tmp_path.glob("checkpoint-*"))) == 1 and not (tmp_path / "_incomplete").exists()
    finish_and_compare(tmp_path, undisturbed)


def test_sigterm_on_one_process_with_data_workers_that_get_it_too(tmp_path, undisturbed):
    settings = {"save_strategy": "no", "dataloader_num_workers": 2}
    processes = forked.start(2, crash_run.run_with_workers, tmp_path, settings)
    wait_for_step(tmp_path, 3, processes)
    os.killpg(processes[1].pid, signal.SIGTERM)
    assert forked.finish(processes) == [PREEMPTED, PREEMPTED]
    finish_and_compare(tmp_path, undisturbed)


class Early(TrainerCallback):
    """Sends SIGTERM to the process group as soon as there are data workers, which are far from `init_worker` then."""

    def on_epoch_begin(self, args, state, control, **kwargs):
        callbacks.MAX_WAIT_S = 100  # workers import torch before their first batch; of this process alone
        num_before = self._count()
        threading.Thread(target=self._hit, args=(num_before + 2,), daemon=True).start()

    def _count(self) -> int:
        return len(psutil.Process().children(recursive=True))

    def _hit(self, num_processes):
        while self._count() < num_processes:
            time.sleep(0.01)
        subprocess.run(["kill", "-TERM", "--", f"-{os.getpgrp()}"])  # not from this process, which its workers heed


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_sigterm_while_data_workers_start(tmp_path, method):
    settings = {"save_strategy": "no", "dataloader_num_workers": 2, "dataloader_multiprocessing_context": method}
    assert forked.finish(forked.start(1, crash_run.run_with_workers, tmp_path, settings, Early())) == [PREEMPTED]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]


def test_a_hung_process_ends_the_run_within_the_timeout(tmp_path, undisturbed):
    stop = At(7, 1, functools.partial(signal.raise_signal, signal.SIGSTOP))
    processes = forked.start(2, crash_run.run, tmp_path, {"ddp_timeout": 4}, stop)
    wait_for_step(tmp_path, 7, processes)
    start = time.monotonic()
    processes[0].join(60)
    seconds = time.monotonic() - start
    assert processes[0].exitcode not in (None, 0)
    assert seconds < 4 + 15, f"given up after {seconds:.0f} s"
    processes[1].kill()
    forked.finish(processes)
    finish_and_compare(tmp_path, undisturbed)


def test_a_finished_run_does_nothing(tmp_path, undisturbed):
    finish_and_compare(tmp_path, undisturbed)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("checkpoint-*/*")}
    assert forked.finish(forked.start(2, crash_run.run, tmp_path, {})) == [0, 0]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("checkpoint-*/*")} == before
    assert_equal(torch.load(tmp_path / "final-0.pt")["model"], undisturbed["model"])


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a few MB."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {mounted.stderr.decode().strip()}")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_a_full_disk_leaves_the_last_checkpoint(small_disk, undisturbed):
    assert forked.finish(forked.start(2, crash_run.run, small_disk, {"save_total_limit": None}))[0] == NOT_WRITTEN
    message = (small_disk / "error").read_text()
    assert float(re.search(r"could not be written, with ([\d.]+) MiB left on the disk", message)[1]) < 0.5
    kept = sorted(small_disk.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert kept and not (small_disk / "_incomplete").exists()
    for folder in kept[:-1]:
        remove(folder)
    finish_and_compare(small_disk, undisturbed)


def run_sharded(output_dir, failing_step):
    """As `crash_run.run` under FSDP2 that gathers, where the first process cannot write its model after this step."""
    toy_run.allow_fsdp_on_cpu()

    def prepare(trainer):
        write = trainer.model.save_pretrained

        def full(*arguments, **kwargs):
            if trainer.args.process_index == 0 and trainer.state.global_step == failing_step:
                raise OSError(28, "No space left on device")
            write(*arguments, **kwargs)

        trainer.model.save_pretrained = full

    fsdp = {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "FULL_STATE_DICT"}}
    crash_run.run(output_dir, fsdp, prepare=prepare)


def test_a_failed_write_under_fsdp_is_heard_by_all(tmp_path):
    """Not after the timeout of 60 s, in the gathering that the others have gone on to."""
    processes = forked.start(2, run_sharded, tmp_path, 3)
    wait_for_step(tmp_path, 3, processes)
    start = time.monotonic()
    assert forked.finish(processes) == [NOT_WRITTEN, NOT_WRITTEN]
    assert time.monotonic() - start < 30
    assert "checkpoint-3 could not be written" in (tmp_path / "error").read_text()
    assert {path.name for path in tmp_path.glob("*check*")} == {"checkpoint-1", "checkpoint-2"}
