"""The experiment of Fig. 1 (LayerLock, sec. 3.2 and A.1): a run that is never frozen, and branches that go on from its
checkpoints with some layers frozen, as one array of jobs that can be stopped and continued."""

import csv
import math
import os
from collections import Counter
from collections.abc import Generator, Iterable
from pathlib import Path

import torch

from ..analysis.convergence import THRESHOLD, Grid, check_scipy, final_loss, summarise_convergence
from ..analysis.convergence_plot import plot_convergence
from ..recipes import load_recipe
from ..recipes.settings import flags_of
from ..training.checkpoints import newest_complete, remove
from ..training.methods import LOCKING_SETTINGS
from ..utils.cores import count_cores
from ..utils.outputs import check_output
from ..utils.records import read_record, write_record
from .jobs import Run, RunFailed, run_together
from .logs import read_metrics
from .planning import given_settings, planned_run


RESULTS, TABLE, PICTURE = "convergence.json", "convergence.csv", "convergence.png"
ARRAY, FINISHED = "array.json", "finished.json"
MAX_CHECKPOINTS = 100  # of the baseline
UNFIT = {
    **dict.fromkeys(
        sorted(LOCKING_SETTINGS), "the baseline is never frozen, and layers and steps say what the branches are"
    ),
    "schedule_restarts": "branches keep the learning rates of the baseline",
    "push_to_hub": "every branch would be pushed",
    **dict.fromkeys(("resume_from_checkpoint", "branch", "rehearse"), "every run goes on from where it has to"),
}


def measure_convergence(
    config: str | Path,
    train_data: str | Path | list[str],
    output_dir: str | Path,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    last_steps: int | None = None,
    threshold: float = THRESHOLD,
    num_jobs: int = 1,
    settings: dict | None = None,
) -> dict:
    """What it costs to freeze the first L layers at step T, for a grid of both, as `layerlock analyze convergence`.

    >>> results = measure_convergence("demo-fig1", "videos", "runs/fig1")  # doctest: +SKIP

    What an earlier call has finished is not run again, and a run that was stopped goes on.

    Args:
        config: a recipe that freezes nothing, by name or path.
        train_data: as of `pretrain`.
        output_dir: folder of the runs and of the results.
        layers: how many leading layers are frozen; by default 3, 6, 9 and 12 of every 16.
        steps: at which they are frozen; by default every seventh of the run.
        last_steps: over which the final loss is averaged; by default a fourteenth of the run.
        threshold: deviation in per cent below which layers have converged.
        num_jobs: branches at the same time, each on the GPU with the fewest of them.
        settings: overrides of the recipe, by the names of the flags of `layerlock pretrain`.

    Returns:
        What `convergence.json` holds: what `summarise_convergence` returns, and `recipe`, `max_steps`, `last_steps`
        and `failed`, a line per branch that failed.

    Raises:
        ValueError: naming the setting that is wrong, or of the folder of another array.
        RunFailed: if the baseline failed, or every branch.
    """
    check_scipy()
    output = Path(output_dir)
    check_output(output, (RESULTS, TABLE, PICTURE))
    array = Array(config, train_data, output, settings or {}, layers, steps, last_steps, num_jobs)
    run_together([array.baseline()], at_once=1)
    run_together([array.branch(layers, step) for layers, step in array.grid.points()], at_once=num_jobs)
    results = array.results(threshold)
    write_record(output / RESULTS, results)
    write_table(results["points"], output / TABLE)
    plot_convergence(results, output / PICTURE)
    return results


class Array:
    """The baseline and its branches, as jobs for `run_together`.

    Args:
        config, train_data, output, settings, layers, steps, last_steps, num_jobs: as of `measure_convergence`.

    Raises:
        ValueError: as `measure_convergence`.
    """

    def __init__(
        self,
        config: str | Path,
        train_data: str | Path | list[str],
        output: Path,
        settings: dict,
        layers: Iterable[int] | None,
        steps: Iterable[int] | None,
        last_steps: int | None,
        num_jobs: int,
    ):
        self.recipe, self.videos, self.output = config, train_data, output
        whole = given_settings(flags_of({"config": config, **settings}))
        whole = {name: value for name, value in whole.items() if name not in ("config", "train_data", "output_dir")}
        for name, reason in UNFIT.items():
            if whole.get(name):
                raise ValueError(f"{name} must be left out, got {whole[name]}: {reason}")
        run = planned_run(whole, str(config))
        if len(run.stages) > 1:
            raise ValueError(
                f"config must be a recipe of one stage, got {config} with {len(run.stages)}: layers are frozen while "
                "everything else stays as it is"
            )
        self.max_steps = run.max_steps
        self.grid = Grid.of(run.config.num_hidden_layers, run.max_steps, layers, steps, last_steps)
        given = load_recipe(config)
        self.changed = {name: value for name, value in whole.items() if given.get(name) != value}
        record = self._record({"settings": whole, "train_data": flags_of({"train_data": train_data})[1:]}, num_jobs)
        self.save_steps, self.num_threads = record["save_steps"], record["num_threads"]
        self._jobs_on = Counter(dict.fromkeys(visible_gpus() or [None], 0))
        self.losses, self.failures = {}, []

    def _record(self, settings: dict, num_jobs: int) -> dict:
        """What all calls must share. The threads belong to it, as sums depend on their number in the last bits."""
        record = read_record(self.output / ARRAY, settings)
        if record is None:
            every = math.gcd(*self.grid.steps)
            if self.max_steps // every > MAX_CHECKPOINTS:
                raise ValueError(
                    f"steps must have a common divisor of at least {self.max_steps / MAX_CHECKPOINTS:g}, got "
                    f"{list(self.grid.steps)}, with {every}: the baseline keeps a checkpoint every so many steps"
                )
            record = {"settings": settings, "save_steps": every, "num_threads": max(1, count_cores() // num_jobs)}
            write_record(self.output / ARRAY, record)
        if any(step % record["save_steps"] for step in self.grid.steps):
            raise ValueError(
                f"steps must be multiples of {record['save_steps']}, of which the baseline in {self.output} keeps "
                f"checkpoints, got {list(self.grid.steps)}: choose others, or another output_dir"
            )
        return record

    @property
    def _baseline(self) -> Path:
        return self.output / "baseline"

    def baseline(self) -> Generator[Run, None, None]:
        """The job of the run that is never frozen."""
        yield from self._train("baseline", self._baseline, {"save_total_limit": 0})

    def branch(self, layers: int, step: int) -> Generator[Run, None, None]:
        """The job of a run that goes on from the baseline with layers frozen; its loss is added to `losses`, or what
        failed to `failures`."""
        name, folder = f"{layers} layers from step {step:,}", self.output / "branches" / f"layers_{layers}_step_{step}"
        settings = {"save_total_limit": 1, "branch": True}
        settings["resume_from_checkpoint"] = newest_complete(folder) or self._baseline / f"checkpoint-{step}"
        if layers:  # the control freezes none
            settings |= {"freeze_start": step, "layers_per_freeze": layers, "num_freezes": 1, "predict_latents": False}
        try:
            yield from self._train(name, folder, settings)
            loss = self._loss(folder)
        except (RunFailed, ValueError) as error:
            self.failures.append(f"{name}: {error}")
            print(f"FAILED: {self.failures[-1]}", flush=True)
            return
        for checkpoint in folder.glob("checkpoint-*"):  # nothing needs them any more
            remove(checkpoint)
        self.losses[layers, step] = loss
        done = f"{len(self.losses)} of {len(self.grid.points())}"
        print(f"{done}: {name}: loss {loss:.4g}, {loss / self._loss(self._baseline) - 1:+.2%}", flush=True)

    def _train(self, name: str, folder: Path, settings: dict) -> Generator[Run, None, None]:
        if (folder / FINISHED).is_file():
            return
        # Of every step, so that no mean over the last ones lacks what a stopped run has not logged
        always = {"logging_steps": 1, "save_strategy": "steps", "save_steps": self.save_steps}
        gpu = min(self._jobs_on, key=self._jobs_on.get)
        self._jobs_on[gpu] += 1
        try:
            own = self.changed | always | settings
            yield Run(self.recipe, self.videos, folder, own, self.num_threads, name, gpu=gpu)
        finally:
            self._jobs_on[gpu] -= 1
        write_record(folder / FINISHED, {"max_steps": self.max_steps})

    def _loss(self, folder: Path) -> float:
        return final_loss(read_metrics(folder), self.max_steps, self.grid.last_steps)

    def results(self, threshold: float) -> dict:
        """What `convergence.json` holds.

        Raises:
            RunFailed: if there is no branch to tell of.
        """
        if not self.losses:
            raise RunFailed(f"every branch failed, the first of them {self.failures[0]}")
        about = {"recipe": str(self.recipe), "max_steps": self.max_steps, "last_steps": self.grid.last_steps}
        summary = summarise_convergence(self._loss(self._baseline), self.losses, threshold)
        return about | summary | {"failed": self.failures}


def visible_gpus() -> list[str]:
    """The GPUs of this process, as CUDA_VISIBLE_DEVICES names them; none without CUDA."""
    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


def write_table(points: list[dict], path: Path):
    """A row per branch."""
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(points[0]))
        table.writeheader()
        table.writerows(points)
