"""What a page lets people try: the models that a run has kept, and readouts."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from ..data import MaskArguments
from ..data.masks import MaskStrategy
from ..evaluation.predict import TASKS, load_model, load_processor
from ..hub.documents import RESULTS, SETTINGS, title_of
from ..hub.repository import find_processor
from ..models import LayerLockVideoProcessor, Objective
from ..pretraining.exporting import ENDINGS, Source, find_source, load
from ..pretraining.planning import settings_of
from ..reporting.reconstructions import pixel_objective
from ..reporting.recorded import Run


READOUTS = {ENDINGS[ending]: task for ending, task in TASKS.items()}  # by the kind of their source


@dataclass(frozen=True)
class Kept:
    """A model and what is on record of how it was trained.

    Attributes:
        source: where it lies.
        masks: of its run, None if they are not on record.
        objective: the one with pixels that it was trained for last, None if there is none.
    """

    source: Source
    masks: MaskStrategy | None = None
    objective: Objective | None = None

    @property
    def name(self) -> str:
        """What it is in the history of its run."""
        return title_of(self.source.documents)


def find_kept(folder: Path) -> list[Kept]:
    """The models that a run of pretraining has kept, in the order of steps; of any other folder the one that it holds.

    Args:
        folder: a run of pretraining, a checkpoint, a repository, or a readout.

    Raises:
        ValueError: if it holds no model.
    """
    if (folder / RESULTS).is_file() or not (folder / SETTINGS).is_file():
        return [Kept(find_source(folder))]
    run = Run(folder)
    masks = settings_of(MaskArguments, run.record["settings"]).build()
    kept = []
    for one in run.snapshots:
        can_decode = one.source.kind == "pretraining" and one.trained_in is not None
        objective = pixel_objective(run.planned.stages[one.trained_in]) if can_decode else None
        kept.append(Kept(one.source, masks, objective))
    return kept


@dataclass(frozen=True)
class Readout:
    """A model for classes or depth, with the processor that cuts its clips."""

    source: Source
    model: PreTrainedModel
    processor: LayerLockVideoProcessor


def open_readout(folder: Path, kind: str) -> Readout:
    """
    Args:
        folder: of `layerlock readout`, or a model or repository.
        kind: "classification" or "depth".

    Raises:
        ValueError: if it holds something else.
    """
    source = find_source(folder)
    if source.kind != kind:
        raise ValueError(
            f"READOUT must be one for {kind}, got {folder}, which is for {source.kind}: train one with `layerlock "
            f"readout --task {kind}`"
        )
    return Readout(source, load_model(str(source.folder), READOUTS[kind]), load_processor(str(source.folder)))


class Subject:
    """The models that a page lets people try. Models of stages are loaded when they are asked for, one at a time.

    Args:
        kept: of `find_kept`.
        classes: a readout for classes.
        depth: a readout for depth. A sole model that is a readout is one of these itself.

    Raises:
        ValueError: as of `open_readout`.
    """

    def __init__(self, kept: Sequence[Kept], classes: Path | None = None, depth: Path | None = None):
        self.kept = list(kept)
        given = {"classification": classes, "depth": depth}
        last = self.kept[-1].source
        if last.kind in READOUTS and given[last.kind] is None:
            given[last.kind] = last.folder
        self.readouts = {kind: open_readout(folder, kind) for kind, folder in given.items() if folder is not None}
        self.processor = find_processor(last.folder)
        self.model = functools.lru_cache(maxsize=1)(self._load)

    def _load(self, place: int) -> PreTrainedModel:
        return load(self.kept[place].source).float().eval()

    @property
    def num_layers(self) -> int:
        """Of the encoder."""
        return self.model(len(self.kept) - 1).base_model.config.num_hidden_layers
