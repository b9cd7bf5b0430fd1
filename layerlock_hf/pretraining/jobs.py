"""Runs of pretraining in processes of their own, one after the other or side by side."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterable
from pathlib import Path

import torch

from ..recipes.settings import flags_of
from .logs import progress_line, read_metrics


PROGRAM = ("--module", "layerlock_hf.cli.pretrain")
REPORT_INTERVAL = 100  # steps
POLL_INTERVAL = 0.5  # seconds


class RunFailed(RuntimeError):
    """A pretraining run failed."""


def environment() -> dict[str, str]:
    # Threads that spin while they wait slow everything else on a small machine down.
    return {"OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1", **os.environ}


def exit_when_terminated():
    """Let SIGTERM raise SystemExit, so that the run that is under way ends too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


class Run:
    """A run of pretraining in a process of its own, with its output in FOLDER/output.log. It goes on where it was
    stopped.

    Args:
        recipe: its settings, by name or path.
        videos: what it trains on, one source or several.
        folder: where it leaves everything.
        settings: what it is told beside the recipe.
        num_threads: threads of its computations; as many as PyTorch takes by itself if None.
        name: what its progress lines begin with.
        program: what accelerate launches, with the arguments of `layerlock pretrain`.
        gpu: the GPU that it sees, as CUDA_VISIBLE_DEVICES names it; all that this process sees if None.
    """

    def __init__(
        self,
        recipe: str | Path,
        videos: Path | list[str],
        folder: Path,
        settings: dict,
        num_threads: int | None = None,
        name: str = "",
        program: tuple[str, ...] = PROGRAM,
        gpu: str | None = None,
    ):
        self.recipe, self.videos, self.folder, self.settings = recipe, videos, folder, settings
        self.num_threads, self.name, self.program, self.gpu = num_threads, name, program, gpu
        self._process, self._reported = None, -1

    @property
    def _log_path(self) -> Path:
        return self.folder / "output.log"

    def command(self) -> list[str]:
        """What starts it."""
        command = [sys.executable, "-m", "accelerate.commands.launch"]
        command += ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        extra = {"disable_tqdm": True, "save_strategy": "no", "report_to": "none", "resume_from_checkpoint": "auto"}
        extra |= self.settings
        if not torch.cuda.is_available():
            command.append("--cpu")
            extra["dataloader_pin_memory"] = False
        given = {"config": self.recipe, "train_data": self.videos, "output_dir": self.folder}
        return [*command, *self.program, *flags_of(given | extra)]

    def start(self):
        print(" ".join(self.command()), flush=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not any(self.folder.glob("checkpoint-*")):  # which one that was stopped leaves, to go on from
            (self.folder / "metrics.jsonl").unlink(missing_ok=True)
        variables = environment()
        if self.num_threads is not None:
            variables["OMP_NUM_THREADS"] = str(self.num_threads)
        if self.gpu is not None:
            variables["CUDA_VISIBLE_DEVICES"] = self.gpu
        with self._log_path.open("w") as log:
            # In a session of its own, because accelerate does not pass a signal on to the process that it starts
            self._process = subprocess.Popen(
                self.command(), stdout=log, stderr=subprocess.STDOUT, env=variables, start_new_session=True
            )

    def is_running(self) -> bool:
        """Whether it still runs; reports from its log how far it is.

        Raises:
            RunFailed: naming the run, if it failed.
        """
        status = self._process.poll()  # before the log is read, so that nothing of it is missed at the end
        for row in read_metrics(self.folder):
            period = row["step"] // REPORT_INTERVAL
            if period > self._reported:
                self._reported = period
                print(f"  {self.name:10} {progress_line(row)}" if self.name else f"  {progress_line(row)}", flush=True)
        if status:
            output = self._log_path.read_text()
            print(output[-5000:], flush=True)
            # The error of the program itself, not that of accelerate after it
            causes = [line for line in output.splitlines() if re.match(r"error: |[\w.]*(Error|Exception)\b.*: ", line)]
            cause = f" ({causes[0][:200]})" if causes else ""
            raise RunFailed(f"the run in {self.folder} failed{cause}: its output is in {self._log_path}")
        return status is None

    def stop(self):
        """End it, if it has begun and not ended."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait()


def run_together(jobs: Iterable[Generator[Run, None, None]], at_once: int):
    """Do jobs, so many at a time. If one fails for good, or this process is told to end, all end.

    Args:
        jobs: each yields the runs that it consists of, one after the other has ended. A run that fails is raised as
            `RunFailed` where it was yielded.
        at_once: number of jobs at the same time.

    Raises:
        RunFailed: naming the run, if a job does not catch it.
    """
    waiting, active = list(jobs), {}

    def advance(job, failure: RunFailed | None = None):
        active.pop(job, None)
        try:
            run = next(job) if failure is None else job.throw(failure)
        except StopIteration:
            return
        active[job] = run
        run.start()

    try:
        while waiting or active:
            while waiting and len(active) < at_once:
                advance(waiting.pop(0))
            for job, run in list(active.items()):
                try:
                    if not run.is_running():
                        advance(job)
                except RunFailed as failure:
                    advance(job, failure)
            time.sleep(POLL_INTERVAL)
    finally:
        for run in active.values():
            run.stop()


def alone(run: Run) -> Generator[Run, None, None]:
    """A job of one run."""
    yield run
