"""`layerlock embed` as launchers start it, on several ranks, and as it is stopped."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import layerlock_hf
from layerlock_hf.embedding import read_shards


pytestmark = pytest.mark.slow

SETTINGS = {"window": "8f", "stride": "2f", "windows_per_shard": 8, "num_workers": 0, "device": "cpu"}
OF_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2")


def command(videos, out, model, **settings):
    flags = (f"--{name}={value}" for name, value in (SETTINGS | settings).items())
    return ["-m", "layerlock_hf", "embed", str(videos), str(out), "--model", model, *flags]


def environment(**changed):
    return {name: value for name, value in os.environ.items() if name not in OF_LAUNCHERS} | changed


def start(arguments, launcher=(sys.executable,), **changed):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*launcher, *arguments], env=environment(**changed), start_new_session=True, **pipes)


def ended(process, status=0):
    """What it printed, and complained of, once it has ended with this status."""
    printed, told = process.communicate(timeout=200)
    assert process.returncode == status, told
    return printed, told


def vectors_of(out):
    return {
        (name, window): vector
        for part in read_shards(out)
        for name, window, vector in zip(part["video"], part["window"].tolist(), part["depth_6"], strict=True)
    }


@pytest.fixture(scope="module")
def alone(videos, model, tmp_path_factory):
    """Vectors that one rank made, and its counts."""
    out = tmp_path_factory.mktemp("alone")
    manifest = layerlock_hf.embed(str(videos), out, model, **SETTINGS)
    return vectors_of(out), manifest["counts"]


def check_same(out, alone):
    """The vectors differ in their last bits: other windows are in their batches."""
    vectors, counts = alone
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["is_complete"] and manifest["world_size"] == 2 and manifest["counts"] == counts
    theirs = vectors_of(out)
    assert theirs.keys() == vectors.keys()
    for key, vector in vectors.items():
        np.testing.assert_allclose(theirs[key], vector, atol=1e-5)


@pytest.mark.parametrize(
    ("launcher", "changed"),
    [(TORCHRUN, {}), (ACCELERATE, {"ACCELERATE_USE_CPU": "true"})],
    ids=["torchrun", "accelerate"],
)
def test_launchers(launcher, changed, videos, model, alone, tmp_path):
    arguments = command(videos, tmp_path / "out", model)
    ended(start(arguments, launcher, **changed))
    check_same(tmp_path / "out", alone)
    printed, _ = ended(start(arguments, launcher, **changed))
    assert "windows of 9 videos are in" in printed, "what is done is told of, not done again"


@pytest.mark.parametrize("first", [0, 1])
def test_tasks_of_slurm_end_in_either_order(first, videos, model, alone, tmp_path):
    """One after the other, as an array may run them, and as srun numbers them."""
    arguments, out = command(videos, tmp_path / "out", model), tmp_path / "out"
    array = {"ID": 5 + first, "MIN": 5, "MAX": 6, "COUNT": 2}
    printed, _ = ended(start(arguments, **{f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in array.items()}))
    assert "other ranks of 2 are not complete" in printed and not (out / "manifest.json").exists()
    refused = ended(start(command(videos, out, model)), 1)[1]
    assert (
        f"error: world_size must be 2, with which {out} was begun, got 1: give that, or choose another OUT" in refused
    )
    ended(start(arguments, SLURM_PROCID=f"{1 - first}", SLURM_STEP_NUM_TASKS="2"))
    check_same(out, alone)


def has_shards(out, rank, number, process):
    """Wait until a rank has written so many."""
    end = time.monotonic() + 120
    while len(list((out / "data").glob(f"{rank:05d}-*"))) < number:
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.01)


def test_a_rank_that_is_killed_goes_on_and_another_at_its_work_is_refused(long_videos, model, tmp_path):
    arguments, out = command(long_videos, tmp_path / "out", model, num_workers=1), tmp_path / "out"
    ranks = [{"RANK": str(rank), "WORLD_SIZE": "2"} for rank in range(2)]
    killed = start(arguments, **ranks[1])
    has_shards(out, 1, 2, killed)
    killed.send_signal(signal.SIGSTOP)  # it is at work, for as long as the other needs to see that
    refused = ended(start(arguments, **ranks[1]), 1)[1]
    assert f"error: another process is at work on rank 1 of {out}: wait for it" in refused
    killed.kill()
    killed.communicate()
    ended(start(arguments, **ranks[0]))
    assert not (out / "manifest.json").exists()
    ended(start(arguments, **ranks[1]))
    for rank in range(2):
        settings = SETTINGS | {"rank": rank, "world_size": 2}
        manifest = layerlock_hf.embed(str(long_videos), tmp_path / "whole", model, **settings)
    assert json.loads((out / "manifest.json").read_text()) == manifest, "and every shard has the same bytes"


@pytest.fixture(scope="module")
def long_videos(write_video, tmp_path_factory):
    """Enough for a run to be stopped in the middle."""
    folder = tmp_path_factory.mktemp("long")
    for number in range(4):
        write_video(folder / f"v{number}.mp4", 400, tint=60 * number)
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_says_what_is_there_and_leaves_no_process(number, long_videos, model, tmp_path):
    """The signal reaches all processes, as those of a terminal and of SLURM do."""
    out = tmp_path / "out"
    process = start(command(long_videos, out, model, num_workers=2))
    has_shards(out, 0, 3, process)
    os.killpg(process.pid, number)
    _, told = ended(process, 128 + number)
    counts = json.loads((out / "ranks" / "00000-of-00001.json").read_text())["counts"]
    assert counts["windows"] >= 16
    assert told == (
        f"stopped: {counts['windows']} windows of {counts['videos']} of 4 videos are in {out}; "
        "run the same command to go on\n"
    )
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("processes are left")
