"""What the cost of a run depends on: the run itself, and the GPUs that it is to run on."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from ..models.configuration_layerlock import LayerLockViTConfig
from ..models.objectives import Stage
from ..utils.bounds import check_bounds
from .gpus import Gpu


# Context and target tokens of every type of mask; None: all tokens of the clip
Sizes = tuple[tuple[int, int | None], ...]


@dataclass(frozen=True)
class PlannedRun:
    """A run, as far as its cost depends on it.

    Args:
        name: of its recipe.
        config: of the model.
        stages: of the run.
        unfrozen: the stages that it would have if nothing were ever frozen.
        masks: sizes of the masks of several groups of clips.
        max_steps: of the optimizer.
        global_batch_size: clips of a step on all GPUs; None: as many as they take at a time.
        batch_size: clips per GPU at a time, None if that is left open.
        accumulation: batches of a step, without a `global_batch_size`.
        bf16: whether it computes in half precision.
        tf32: whether it computes in TF32 otherwise.
        checkpointing: whether layers are computed again in the backward pass instead of keeping activations.
        settle_blocks: whether local stages keep the activations of one block at a time.
        frozen_dtype: of frozen layers, if not that of the others.
        teacher: configuration of the teacher; None: it is of the model's own size, and moves with it.
    """

    name: str
    config: LayerLockViTConfig
    stages: list[Stage]
    unfrozen: list[Stage]
    masks: list[Sizes]
    max_steps: int
    global_batch_size: int | None = None
    batch_size: int | None = None
    accumulation: int = 1
    bf16: bool = False
    tf32: bool = False
    checkpointing: bool = False
    settle_blocks: bool = True
    frozen_dtype: str | None = None
    teacher: LayerLockViTConfig | None = None

    def lengths(self, stages: list[Stage]) -> list[int]:
        """Steps of each of these stages within the run: 0 of those that begin after its end."""
        starts = [min(stage.start, self.max_steps) for stage in stages]
        return [after - before for before, after in pairwise([*starts, self.max_steps])]

    def mean(self, count: Callable[[Sizes], int]) -> float:
        """The mean over the masks of what is counted with their sizes."""
        groups = Counter(self.masks)
        return sum(number * count(sizes) for sizes, number in groups.items()) / groups.total()

    @property
    def largest_masks(self) -> Sizes:
        """Those of the group with the most tokens, which sets the peak of memory."""
        return max(self.masks, key=lambda sizes: sum(seen + hidden for seen, hidden in sizes))


@dataclass(frozen=True)
class Machine:
    """The GPUs of a run.

    Args:
        gpu: of which kind.
        num_gpus: how many.
        fsdp2: whether they share the model (FSDP2) instead of holding a copy each (DDP).
        utilisation: share of the peak rate at which they compute.
        price: of an hour of one GPU, in any currency; None if it does not matter.

    Raises:
        ValueError: naming what is out of bounds.
    """

    gpu: Gpu
    num_gpus: int = 1
    fsdp2: bool = False
    utilisation: float = 0.35
    price: float | None = None

    def __post_init__(self):
        bounds = {"num_gpus": (1, math.inf), "utilisation": (0.01, 1), "price": (0, math.inf)}
        check_bounds(self, bounds)
