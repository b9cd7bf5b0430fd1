"""The models that a run has kept: of its stages, else of its checkpoints, and the newest one."""

import logging
from dataclasses import dataclass
from pathlib import Path

from ..hub.documents import SETTINGS
from ..hub.repository import check_weights
from ..pretraining.exporting import Source, find_source, is_sharded, number_of
from ..training.checkpoints import STAGES_FOLDER, fault
from .spreading import spread


logger = logging.getLogger(__name__)

MAX_SNAPSHOTS = 9


@dataclass(frozen=True)
class Snapshot:
    """A model on its way.

    Attributes:
        name: what it is, in words.
        step: optimizer steps that it has learned for.
        num_frozen: leading layers that were frozen then.
        trained_in: the row of `stages.json` that its last step was of, None before the first.
        source: where it lies.
    """

    name: str
    step: int
    num_frozen: int
    trained_in: int | None
    source: Source


def find_snapshots(folder: Path, stages: list[dict]) -> tuple[list[Snapshot], list[str]]:
    """In the order of steps; at most `MAX_SNAPSHOTS`, evenly spread. And why others are left out: they are damaged, or
    an earlier run left them in the folder.

    Args:
        folder: of a run.
        stages: rows of its `stages.json`.

    Raises:
        ValueError: if it has kept none that is whole.
    """
    kept = sorted(folder.glob(f"{STAGES_FOLDER}/stage-*"), key=number_of)
    kept = kept or sorted(folder.glob("checkpoint-*"), key=number_of)
    found, left_out = [], []
    for path in kept:
        try:
            found.append(_snapshot(find_source(path), stages))
        except ValueError as error:
            left_out.append(_told(error, path, folder))
    try:
        end = find_source(folder)
    except ValueError:
        if not found:
            raise
        return spread(found, MAX_SNAPSHOTS), left_out  # a run that has begun
    try:
        last = _snapshot(end, stages, name="end of the run" if end.folder == folder else None)
    except ValueError as error:
        if not found:
            raise
        if end.folder not in kept:  # of these it has been told
            left_out.append(_told(error, end.folder, folder))
        return spread(found, MAX_SNAPSHOTS), left_out
    return spread([one for one in found if one.step < last.step] + [last], MAX_SNAPSHOTS), left_out


def _told(error: ValueError, path: Path, folder: Path) -> str:
    """Why a model is left out, of which the terminal is told, too."""
    logger.warning(f"{path} is left out of the pictures: {error}")
    return str(error).replace(f"{folder}/", "")


def _snapshot(source: Source, stages: list[dict], name: str | None = None) -> Snapshot:
    if is_sharded(source):
        if reason := fault(source.folder):
            raise ValueError(f"{source.folder} is not complete: {reason}")
    check_weights(source.folder)
    record = source.documents[SETTINGS]
    if "progress" not in record:
        raise ValueError(f"{source.folder} cannot be placed: the log of its run is missing")
    step = record["progress"]["step"]
    before = [number for number, stage in enumerate(stages) if stage["start"] < step]
    trained_in = before[-1] if before else None
    number = record.get("stage", trained_in or 0)
    name = name or (f"start of stage {number}" if "stage" in record else "checkpoint")
    return Snapshot(name, step, stages[number]["num_frozen"], trained_in, source)
