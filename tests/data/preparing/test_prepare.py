"""The program that prepares videos, from its command to the files that it leaves."""

import contextlib
import hashlib
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest

from layerlock_hf.cli import prepare
from layerlock_hf.data.procedural import write_procedural_dataset


PROGRAM = ("-m", "layerlock_hf.cli.prepare")
MANIFEST = "manifest-00000-of-00001.parquet"
NUM_WORKERS = 2  # of the runs that are killed


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = write_procedural_dataset(
        tmp_path_factory.mktemp("data"), 4, num_frames=8, image_size=32, progress=False
    ).with_name("videos")
    (folder / "empty.mp4").touch()
    return folder


@pytest.fixture(scope="module")
def many_videos(tmp_path_factory):
    return write_procedural_dataset(
        tmp_path_factory.mktemp("data"), 40, num_frames=24, image_size=96, progress=False
    ).with_name("videos")


@pytest.fixture
def main():
    previous = signal.getsignal(signal.SIGTERM)
    yield prepare.main
    signal.signal(signal.SIGTERM, previous)


def sums(output):
    files = [path for path in sorted(output.rglob("*")) if path.is_file()]
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_run_and_its_report(main, videos, tmp_path, capsys):
    command = [str(videos), str(tmp_path / "out"), "--num_workers", "1"]
    main(command)
    assert "4 of 5 videos are packed" in capsys.readouterr().out
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| empty | 1 | `empty.mp4`: empty |" in text and "| h264 | 4 |" in text
    assert (tmp_path / "out" / "report.png").read_bytes().startswith(b"\x89PNG")
    before = sums(tmp_path / "out")
    main(command)
    assert "was already complete: nothing to do" in capsys.readouterr().out
    assert sums(tmp_path / "out") == before


def test_ranks_of_a_slurm_array(main, videos, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MAX", "6")
    for task, said in (("6", "1 of 2 ranks are missing, among them [0]"), ("5", "4 of 5 videos are packed")):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
        main([str(videos), str(tmp_path / "out"), "--num_workers", "1"])
        assert said in capsys.readouterr().out


def test_nothing_but_bad_files(main, tmp_path, capsys):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "empty.mp4").touch()
    for _ in range(2):
        with pytest.raises(SystemExit, match="error: no video was packed, as 1 of 1 were left out as 'empty', such"):
            main([str(tmp_path / "videos"), str(tmp_path / "out"), "--num_workers", "1"])
        assert "0 of 1 videos are packed" in capsys.readouterr().out


def test_settings_that_leave_all_out_are_corrected_in_place(main, videos, tmp_path, capsys):
    command = [str(videos), str(tmp_path / "out"), "--num_workers", "1"]
    with pytest.raises(SystemExit, match="4 of 5 were left out as 'too short', such as .*: 8 frames: change"):
        main([*command, "--min_frames", "9"])
    main([*command, "--min_frames", "8"])
    assert "4 of 5 videos are packed" in capsys.readouterr().out


def test_mistakes_end_with_a_message(main, tmp_path):
    with pytest.raises(SystemExit, match="error: '.*nowhere' does not exist: give a folder"):
        main([str(tmp_path / "nowhere"), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="error: --short_sid is not a known setting: --help"):
        main([str(tmp_path), str(tmp_path / "out"), "--short_sid", "64"])
    with pytest.raises(SystemExit, match="error: source must be a folder of videos, or a list of them, got an empty"):
        main(["", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["videos", ""], "argument OUT: must be a path, got ''"),
        (["videos", "out", "--world_size", "0"], "--world_size: must be a whole number of at least 1, got '0'"),
        (["videos", "out", "--num_workers", "x"], "--num_workers: must be a whole number of at least 1, got 'x'"),
    ],
)
def test_arguments_are_checked_as_they_are_read(main, capsys, options, message):
    with pytest.raises(SystemExit, match="2"):
        main(options)
    assert message in capsys.readouterr().err


def test_another_folder_of_the_same_names(main, videos, tmp_path):
    write_procedural_dataset(tmp_path, 4, seed=1, num_frames=8, image_size=32, progress=False)
    (tmp_path / "videos" / "empty.mp4").touch()
    main([str(videos), str(tmp_path / "out"), "--num_workers", "1"])
    with pytest.raises(SystemExit, match="error: .*parquet was made from other videos, as .*: choose another folder"):
        main([str(tmp_path / "videos"), str(tmp_path / "out"), "--num_workers", "1"])


@pytest.mark.parametrize("below", ["", "sub"])
def test_an_output_that_is_no_folder_ends_with_a_message(main, videos, tmp_path, below):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="error: .*/file.*: VIDEOS must be readable, and OUT writable"):
        main([str(videos), str(tmp_path / "file" / below), "--num_workers", "1"])


def test_only_local_files_are_prepared(main, tmp_path):
    with pytest.raises(SystemExit, match="error: 'http://host/videos/' is a URL, but only local files"):
        main(["http://host/videos/", str(tmp_path / "out")])
    (tmp_path / "list.csv").write_text("path\nhttp://host/a.mp4\n")
    with pytest.raises(SystemExit, match="list.csv' names 'http://host/a.mp4', but only local files"):
        main([str(tmp_path / "list.csv"), str(tmp_path / "out")])


def start(videos, output):
    options = ["--num_workers", str(NUM_WORKERS), "--short_side", "48", "--shard_size", "40KB"]
    command = [sys.executable, *PROGRAM, str(videos), str(output), *options]
    return psutil.Popen(command, stdout=subprocess.DEVNULL)


def wait_for_work(process):
    """Until the processes of a run are there, or it has ended; returns them."""
    while process.poll() is None:  # is_running() holds for a zombie, too
        # All of them: imports start processes, too, one at a time, which are called python until they become ldconfig
        if sum(name_of(child).startswith("python") for child in process.children()) == NUM_WORKERS:
            break
        time.sleep(0.01)
    return children_of(process)


def name_of(process):
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def children_of(process):
    return process.children(recursive=True) if process.poll() is None else []


@pytest.mark.slow
def test_killed_runs_end_with_the_same_bytes(many_videos, tmp_path):
    assert start(many_videos, tmp_path / "undisturbed").wait(120) == 0
    delays = random.Random(0)
    num_kills = 0
    for _ in range(6):  # a life on a busy machine may be too short for a single video
        process = start(many_videos, tmp_path / "out")
        wait_for_work(process)
        time.sleep(delays.uniform(0.02, 0.2))
        children = children_of(process)
        with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended in time
            process.kill()
        num_kills += process.wait(20) == -signal.SIGKILL
        assert not psutil.wait_procs(children, timeout=10)[1], "processes outlive the run"
    assert num_kills >= 2
    assert start(many_videos, tmp_path / "out").wait(120) == 0
    assert sums(tmp_path / "out") == sums(tmp_path / "undisturbed")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_processes(many_videos, tmp_path, number):
    process = start(many_videos, tmp_path / "out")
    children = wait_for_work(process)
    for member in [process, *children]:  # as a terminal and a scheduler send it
        member.send_signal(number)
    assert process.wait(20) == 128 + number
    assert not psutil.wait_procs(children, timeout=10)[1]
    assert not (tmp_path / "out" / MANIFEST).exists()
