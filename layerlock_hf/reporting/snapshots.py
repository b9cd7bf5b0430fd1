"""The models that a run has kept: of its stages, else of its checkpoints, and the newest one."""

import logging
from dataclasses import dataclass
from pathlib import Path

from ..hub.documents import SETTINGS
from ..pretraining.exporting import Source, find_source, number_of
from ..training.checkpoints import STAGES_FOLDER
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


def find_snapshots(folder: Path, stages: list[dict]) -> list[Snapshot]:
    """In the order of steps; at most `MAX_SNAPSHOTS`, evenly spread.

    Args:
        folder: of a run.
        stages: rows of its `stages.json`.

    Raises:
        ValueError: if it has kept none.
    """
    kept = sorted(folder.glob(f"{STAGES_FOLDER}/stage-*"), key=number_of)
    kept = kept or sorted(folder.glob("checkpoint-*"), key=number_of)
    found = []
    for path in kept:
        try:
            found.append(_snapshot(find_source(path), stages))
        except ValueError as error:  # what an earlier run left in the folder, or is being deleted
            logger.warning(f"{path} is left out of the pictures: {error}")
    try:
        end = find_source(folder)
    except ValueError:
        if not found:
            raise
        return spread(found, MAX_SNAPSHOTS)  # a run that has begun
    last = _snapshot(end, stages, name="end of the run" if end.folder == folder else None)
    return spread([one for one in found if one.step < last.step] + [last], MAX_SNAPSHOTS)


def _snapshot(source: Source, stages: list[dict], name: str | None = None) -> Snapshot:
    record = source.documents[SETTINGS]
    if "progress" not in record:
        raise ValueError(f"{source.folder} cannot be placed: the log of its run is missing")
    step = record["progress"]["step"]
    before = [number for number, stage in enumerate(stages) if stage["start"] < step]
    trained_in = before[-1] if before else None
    number = record.get("stage", trained_in or 0)
    name = name or (f"start of stage {number}" if "stage" in record else "checkpoint")
    return Snapshot(name, step, stages[number]["num_frozen"], trained_in, source)
