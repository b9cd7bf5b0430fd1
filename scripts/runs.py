"""What programs that train on procedural clips share: the data, runs of pretrain.py, and reading their logs."""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Generator, Iterable
from itertools import pairwise
from pathlib import Path

import torch

from layerlock_hf.data.procedural import write_procedural_dataset
from layerlock_hf.utils.cores import count_cores


SCRIPTS = Path(__file__).resolve().parent
VIDEO_FRAMES = 24
VIDEO_SIZE = 64  # pixels
MIN_SHARED = 64  # videos from which on several processes render a set
EASY = "easy_"  # how the names of easy sets begin
REPORT_INTERVAL = 100  # steps
FIRST_STEPS, LAST_STEPS = 10, 30  # steps over which a stage's first and last losses are averaged
RECOVERED = 0.9  # share of its last explained variance at which a stage has recovered from its switch
POLL_INTERVAL = 0.5  # seconds
# Settings that are measured in steps, and how many they are at least
SCHEDULE = {
    "freeze_start": 1,
    "freeze_interval": 1,
    "warmup_steps": 0,
    "switch_warmup_steps": 0,
    "steps_per_block": 1,
    "latent_weight_ramp_steps": 0,
}


class RunFailed(RuntimeError):
    """A run of pretraining came to no good end."""


def write_data(folder: Path, num_videos: int, num_workers: int | None = None):
    """Unlabelled videos to pretrain on, and what `probe.py` reads, in `probe`: labels, depth and tracks of objects.

    No two sets share a scene. Those of `probe/easy_*` have one object before a camera that stands still.

    Args:
        num_videos: to pretrain on. The probes have as many in all, but no more than 600 to fit and 400 to test, and of
            easy scenes as many; a third of their clips show the object in the middle.
        num_workers: processes that render, one per core if None.
    """
    num_train, num_test = max(16, min(600, num_videos * 3 // 5)), max(16, min(400, num_videos * 2 // 5))
    sizes = {
        "train": num_videos,
        "probe/train": num_train,
        "probe/test": num_test,
        "probe/easy_train": num_train,
        "probe/easy_test": num_test,
    }
    if num_workers is None:
        num_workers = count_cores()
    for seed, (name, size) in enumerate(sizes.items()):
        print(f"{name}: {size} videos of {VIDEO_FRAMES} frames, {VIDEO_SIZE} x {VIDEO_SIZE} pixels", flush=True)
        is_easy = Path(name).name.startswith(EASY)
        write_procedural_dataset(
            folder / name,
            size,
            seed=seed,
            num_frames=VIDEO_FRAMES,
            image_size=VIDEO_SIZE,
            with_depth=name != "train",
            num_objects=1 if is_easy else None,
            camera_moves=not is_easy,
            # A core renders a small set before a second process has started
            num_workers=num_workers if num_workers > 1 and size >= MIN_SHARED else 0,
        )


def shortened(recipe: dict, max_steps: int) -> dict:
    """The settings that bring a recipe to `max_steps`, its schedules in proportion."""
    share = max_steps / recipe["max_steps"]
    # What is below 1 is a share of the run already
    scaled = {
        name: max(least, int(recipe[name] * share)) for name, least in SCHEDULE.items() if recipe.get(name, 0) >= 1
    }
    return {"max_steps": max_steps} | scaled


def read_log(folder: Path) -> list[dict]:
    """The lines of a run's log so far."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def read_metrics(folder: Path) -> list[dict]:
    """The lines of a run's log so far that hold losses."""
    return [row for row in read_log(folder) if "learning_rate" in row]


def summarise_stages(folder: Path, global_batch_size: int, max_steps: int) -> list[dict]:
    """The stages of a run with their first and last losses and explained variances, as means over a few steps, and the
    steps until the explained variance has recovered from the switch."""
    stages = json.loads((folder / "stages.json").read_text())
    rows = read_metrics(folder)
    ends = [*(stage["start"] for stage in stages), max_steps]
    for index, (stage, (start, end)) in enumerate(zip(stages, pairwise(ends), strict=True)):
        own = [row for row in rows if row["stage"] == index]
        if not own:
            continue
        first = [row for row in own if row["step"] <= start + FIRST_STEPS] or own[:1]
        last = [row for row in own if row["step"] > end - LAST_STEPS] or own[-1:]
        for name in ("loss", "explained_variance"):
            stage[f"first_{name}"] = statistics.fmean(row[f"{stage['target']}/{name}"] for row in first)
            stage[f"last_{name}"] = statistics.fmean(row[f"{stage['target']}/{name}"] for row in last)
        enough = RECOVERED * stage["last_explained_variance"]
        recovered = [row["step"] for row in own if row[f"{stage['target']}/explained_variance"] >= enough]
        stage["steps_to_recover"] = min(recovered, default=end) - start
        stage["seconds_per_step"] = global_batch_size / statistics.median(row["clips_per_second"] for row in own)
    return stages


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
        recipe: its settings.
        videos: what it trains on.
        folder: where it leaves everything.
        settings: what it is told beside the recipe.
        num_threads: threads of its computations; as many as PyTorch takes by itself if None.
        name: what its progress lines begin with.
        program: what is run; it takes the arguments of pretrain.py.
    """

    def __init__(
        self,
        recipe: Path,
        videos: Path,
        folder: Path,
        settings: dict,
        num_threads: int | None = None,
        name: str = "",
        program: Path = SCRIPTS / "pretrain.py",
    ):
        self.recipe, self.videos, self.folder, self.settings = recipe, videos, folder, settings
        self.num_threads, self.name, self.program = num_threads, name, program
        self._process, self._reported = None, -1

    @property
    def _log_path(self) -> Path:
        return self.folder / "output.log"

    def command(self) -> list[str]:
        """What starts it."""
        command = [str(Path(sys.executable).parent / "accelerate"), "launch"]
        command += ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        extra = {"disable_tqdm": True, "save_strategy": "no", "report_to": "none", "resume_from_checkpoint": "auto"}
        extra |= self.settings
        if not torch.cuda.is_available():
            command.append("--cpu")
            extra["dataloader_pin_memory"] = False
        command += [str(self.program), "--config", str(self.recipe)]
        command += ["--train_data", str(self.videos), "--output_dir", str(self.folder)]
        for name, value in extra.items():
            command += [f"--{name}", str(value)]
        return command

    def start(self):
        print(" ".join(self.command()), flush=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not any(self.folder.glob("checkpoint-*")):  # which one that was stopped leaves, to go on from
            (self.folder / "metrics.jsonl").unlink(missing_ok=True)
        variables = environment()
        if self.num_threads is not None:
            variables["OMP_NUM_THREADS"] = str(self.num_threads)
        with self._log_path.open("w") as log:
            # In a session of its own, because accelerate does not pass a signal on to the process that it starts
            self._process = subprocess.Popen(
                self.command(), stdout=log, stderr=subprocess.STDOUT, env=variables, start_new_session=True
            )

    def is_running(self) -> bool:
        """Whether it still runs; reports from its log how far it is.

        Raises:
            RunFailed: naming the run, if it came to no good end.
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
            raise RunFailed(f"the run in {self.folder} failed{cause}; its output is in {self._log_path}")
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


def progress_line(row: dict) -> str:
    target = next(name.removesuffix("/loss") for name in row if name.endswith("/loss"))
    return (
        f"step {row['step']:4}  {row['num_frozen']} layers frozen  predicts {target:8}  loss {row['loss']:8.4f}  "
        f"explained variance {row[f'{target}/explained_variance']:6.2f}  {row['clips_per_second']:5.0f} clips/s"
    )
