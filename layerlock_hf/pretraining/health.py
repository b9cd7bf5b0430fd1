"""Whether a run is healthy, by what it has left: `layerlock health`."""

from dataclasses import replace
from pathlib import Path

from ..analysis.health import Health, judge
from ..hub.documents import METRICS, SETTINGS, STAGES, read_json, read_object
from ..utils.outputs import read_lines
from .exporting import best_checkpoint, number_of


LARGEST = 1e300  # of numbers that sums of some do not overflow; NaN, of which nothing can be told, is not below it


def judge_run(run: str | Path) -> Health:
    """What the log of a run says, be it finished, stopped or going on: what is wrong in which stage, and which
    checkpoint its readouts favour.

    Examples:
        >>> judge_run("runs/mine").is_healthy  # doctest: +SKIP

    Args:
        run: OUT of `layerlock pretrain`.

    Raises:
        ValueError: if there is no such run, or it has logged no losses yet.
    """
    run = Path(run).expanduser()
    health = judge(*read_run(run))
    checkpoint, text = _best(run, health.readouts)
    return replace(health, best_checkpoint=checkpoint, checkpoint_text=text)


health = judge_run  # what it is called in `layerlock_hf`


def read_run(run: Path) -> tuple[list[dict], list[dict], int]:
    """The log so far, the rows of `stages.json`, and the steps of the whole run.

    Raises:
        ValueError: saying which file is missing.
    """
    stages, max_steps = read_json(run / STAGES), read_object(run / SETTINGS).get("max_steps")
    for name, is_there in ((STAGES, stages), (SETTINGS, max_steps), (METRICS, (run / METRICS).is_file())):
        if not is_there:
            what = f"it has no {name}" if run.is_dir() else "there is no such folder"
            raise ValueError(f"RUN must be a folder of `layerlock pretrain`, got {run}: {what}")
    rows = [row for row in read_lines(run / METRICS) if isinstance(row, dict)]
    try:
        check_stages_file(stages)
        for row in rows:
            check_row(row)
        if not is_whole(max_steps):
            raise ValueError(f"max_steps is {max_steps!r}")
    except ValueError as error:
        raise ValueError(
            f"RUN must have files that `layerlock pretrain` wrote, got damaged ones in {run}: {error}"
        ) from None
    return rows, stages, max_steps


def is_whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def check_stages_file(stages):
    """Raise a `ValueError` unless these are rows of `stages.json`."""
    if not isinstance(stages, list):
        raise ValueError(f"{STAGES} has no list of stages but {stages!r:.80}")
    for row in stages:
        if not (
            isinstance(row, dict)
            and all(is_whole(row.get(name)) for name in ("start", "num_frozen"))
            and isinstance(row.get("target"), str)
        ):
            raise ValueError(f"{STAGES} has the stage {row!r:.80}")


def check_row(row: dict):
    """Raise a `ValueError` unless this is a line of `metrics.jsonl`. Lines with losses tell all of each objective."""
    has_losses = "learning_rate" in row
    if not is_whole(row.get("step")) or has_losses and not is_whole(row.get("stage")):
        raise ValueError(f"{METRICS} has a line of no step or stage, {row!r:.80}")
    labels = [name.removesuffix("/loss") for name in row if name.endswith("/loss")] if has_losses else []
    if has_losses and not labels:
        raise ValueError(f"{METRICS} has no objective in step {row['step']}")
    needed = [f"{label}/{part}" for label in labels for part in ("loss", "explained_variance", "target_variance")]
    for name, value in [*((name, row.get(name)) for name in needed), *row.items()]:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
        if not is_number and (name in needed or name.startswith("readout/") or name in ("loss", "learning_rate")):
            raise ValueError(f"{METRICS} has {name} {value!r:.40} in step {row['step']}")


def _best(run: Path, readouts: list[dict]) -> tuple[str | None, str]:
    """The checkpoint whose features did best in the readouts, and a sentence about it."""
    if not readouts:
        return None, (
            "No readouts were made during this run, and only they can tell which checkpoint to keep: train with "
            "--readout_data LABELLED --readout_steps N"
        )
    try:
        folder, step = best_checkpoint(run)
    except ValueError:
        return None, "No checkpoint was saved at a step of a readout: let save_steps be a multiple of readout_steps"
    step = readouts[-1]["step"] if step is None else number_of(folder)[1]
    scores = next(row for row in readouts if row["step"] == step)
    name = max((name for name in scores if "accuracy" in name), key=scores.get)
    return str(folder), f"{folder} was read best: {scores[name]:.1%} in step {step:,} ({name})"
