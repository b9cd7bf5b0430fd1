"""Several runs at the same time, of programs that take no time in the place of pretraining."""

import sys
import time

import psutil
import pytest

from layerlock_hf.pretraining import jobs
from layerlock_hf.pretraining.jobs import Run, RunFailed, alone, run_together


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(jobs, "POLL_INTERVAL", 0.02)


class Program(Run):
    """Runs Python code in place of pretrain.py."""

    def __init__(self, folder, code: str):
        super().__init__(folder / "recipe.yaml", folder / "videos", folder, {})
        self.code = code

    def command(self):
        return [sys.executable, "-S", "-c", self.code]


def until_there(path) -> str:
    return f"import pathlib, time\nwhile not pathlib.Path({str(path)!r}).exists(): time.sleep(0.01)\n"


def creating(path) -> str:
    return f"import pathlib\npathlib.Path({str(path)!r}).touch()\n"


def test_settings_and_sources_may_have_several_values(tmp_path):
    command = Run("mine.yaml", ["some", "more"], tmp_path, {"layers": [2, 4], "seed": 3, "unset": None}).command()
    told = " ".join(command).partition("layerlock_hf.cli.pretrain ")[2]
    assert told.startswith(f"--config mine.yaml --train_data some more --output_dir {tmp_path} --")
    assert "--layers 2 4 --seed 3" in told and "unset" not in told


def test_so_many_run_at_the_same_time(tmp_path):
    a, b, c = (tmp_path / name for name in "abc")
    # The first two wait for each other; the third would not find both there before they have met
    codes = [creating(a) + until_there(b), creating(b) + until_there(a), until_there(a) + until_there(b) + creating(c)]
    run_together((alone(Program(tmp_path / str(n), code)) for n, code in enumerate(codes)), at_once=2)
    assert c.exists()


def test_runs_of_a_job_follow_each_other(tmp_path):
    ended = []

    def job():
        for number in range(3):
            yield Program(tmp_path / str(number), creating(tmp_path / f"done_{number}"))
            ended.append((tmp_path / f"done_{number}").exists())

    run_together([job()], at_once=1)
    assert ended == [True] * 3


def test_a_failure_is_named_and_ends_the_others(tmp_path):
    lasting = Program(tmp_path / "lasting", "import time; time.sleep(600)")
    failing = Program(tmp_path / "failing", "raise SystemExit('error: no such thing')")
    begin = time.monotonic()
    with pytest.raises(RunFailed, match=r"failing failed \(error: no such thing\): its output is in .*output.log"):
        run_together([alone(lasting), alone(failing)], at_once=2)
    assert time.monotonic() - begin < 60
    assert not psutil.pid_exists(lasting._process.pid)


def test_a_job_may_catch_a_failure_and_go_on(tmp_path):
    def job():
        with pytest.raises(RunFailed):
            yield Program(tmp_path / "failing", "raise SystemExit(3)")
        yield Program(tmp_path / "next", creating(tmp_path / "done"))

    run_together([job()], at_once=1)
    assert (tmp_path / "done").exists()


def test_an_interruption_ends_what_runs(tmp_path, monkeypatch):
    lasting = Program(tmp_path / "lasting", "import time; time.sleep(600)")

    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_together([alone(lasting)], at_once=1)
    assert not psutil.pid_exists(lasting._process.pid)
