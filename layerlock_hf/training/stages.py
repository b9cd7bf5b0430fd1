"""A run as a list of stages: plain methods, freeze schedules, and LayerLock as what one does to a method."""

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from ..models.objectives import Latents, Objective, Pixels, Stage


def stage_at(stages: list[Stage], step: int) -> Stage:
    """The stage that optimizer step `step` (counted from 0) belongs to."""
    return max((stage for stage in stages if stage.start <= step), key=lambda stage: stage.start)


def check_stages(stages: list[Stage]) -> list[Stage]:
    """The stages themselves, if they form a valid run.

    Raises:
        ValueError: unless the first starts at step 0, the starts ascend and the frozen prefix never shrinks.
    """
    if not stages or stages[0].start != 0:
        raise ValueError(f"the first stage must start at step 0, got {stages}")
    for before, after in pairwise(stages):
        if after.start <= before.start:
            raise ValueError(f"stages must have ascending starts, got {before.start} and then {after.start}")
        if after.num_frozen < before.num_frozen:
            raise ValueError(
                f"num_frozen must not fall, as frozen layers stay frozen, got {before.num_frozen} -> "
                f"{after.num_frozen} for the stage at step {after.start}"
            )
    return stages


@dataclass(frozen=True)
class FreezeSchedule:
    """How many layers are frozen when, and which layer is then predicted (LayerLock, sec. 4.3 and Table 8).

    The n-th freezing happens at step `start + (n - 1) * interval` and extends the frozen prefix to
    `n * layers_per_freeze` layers, or to `max_frozen` if that is less.

    Args:
        start: step of the first freezing.
        interval: steps between freezings.
        layers_per_freeze: layers frozen at each.
        num_freezes: number of freezings. Default: as many as it takes to reach `max_frozen`.
        max_frozen: maximum number of frozen layers.
        target_layers: the layer predicted after each freezing, for the tables of the paper that do not predict the
            last frozen one.

    Raises:
        ValueError: if neither or both ends are missing, or the targets do not fit the freezings.
    """

    start: int
    interval: int
    layers_per_freeze: int = 1
    num_freezes: int | None = None
    max_frozen: int | None = None
    target_layers: tuple[int, ...] | None = None

    def __post_init__(self):
        if self.num_freezes is None and self.max_frozen is None:
            raise ValueError("a freeze schedule must end: set num_freezes or max_frozen")
        for name in ("start", "interval", "layers_per_freeze", "num_freezes", "max_frozen"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.target_layers is None:
            return
        if len(self.target_layers) != len(self.freezings()):
            raise ValueError(
                f"target_layers must name {len(self.freezings())} layers, one per freezing, got "
                f"{len(self.target_layers)}: {self.target_layers}"
            )
        for target, (step, num_frozen) in zip(self.target_layers, self.freezings(), strict=True):
            if not 1 <= target <= num_frozen:
                raise ValueError(
                    f"target_layers must lie within the frozen layers, got layer {target} from step {step} on, when "
                    f"only {num_frozen} layers are frozen"
                )

    def freezings(self) -> list[tuple[int, int]]:
        """(step, number of frozen layers) of each freezing."""
        num_freezes = self.num_freezes or -(-self.max_frozen // self.layers_per_freeze)
        counts = [n * self.layers_per_freeze for n in range(1, num_freezes + 1)]
        if self.max_frozen is not None:
            counts = [min(count, self.max_frozen) for count in counts]
        return [(self.start + n * self.interval, count) for n, count in enumerate(counts)]


@dataclass(frozen=True)
class Freezings:
    """Freezings at any steps, each of which predicts the last frozen layer from then on.

    Args:
        rows: (step, number of frozen layers) of each.
    """

    rows: tuple[tuple[int, int], ...]
    target_layers: ClassVar[None] = None

    def freezings(self) -> list[tuple[int, int]]:
        """(step, number of frozen layers) of each freezing."""
        return list(self.rows)


def mae(depth: int, normalize: bool = False, patch_fraction: float = 1.0, loss: str = "l2") -> list[Stage]:
    """Plain masked autoencoding: predict the pixels from what is read after `depth` layers."""
    return [Stage(0, 0, (Objective(depth, Pixels(normalize, loss), patch_fraction=patch_fraction),))]


def teacher_latents(depth: int, target_layer: int) -> list[Stage]:
    """Predict a layer of a teacher: of a moving average of the encoder (V-JEPA), or of a frozen network (SALT)."""
    return [Stage(0, 0, (Objective(depth, Latents(target_layer, of="teacher", normalize=True, loss="l1")),))]


def mae_and_latents(depth: int, layers: list[int], weight: float = 1.0, ramp_steps: int = 0) -> list[Stage]:
    """Pixels and the encoder's own latents without any freezing, which collapses (LayerLock, Table 3)."""
    latents = (
        Objective(depth, Latents(layer, has_own_head=True), weight=weight, weight_ramp_steps=ramp_steps)
        for layer in layers
    )
    return [Stage(0, 0, (Objective(depth, Pixels()), *latents), may_collapse=True)]


def blockwise(depths: list[int], normalize: bool = True, overlap: int = 0) -> list[Stage]:
    """Every block of layers, which ends at one of `depths`, learns from its own reconstruction, all at once.

    Args:
        overlap: layers before the border of two blocks that learn from both (LoCo).
    """
    objectives = tuple(Objective(depth, Pixels(normalize)) for depth in depths)
    return [Stage(0, 0, objectives, local=True, overlap=overlap)]


def blockwise_in_sequence(depths: list[int], steps_per_block: int, normalize: bool = True) -> list[Stage]:
    """One block after the other, each on top of the frozen ones before it."""
    borders = [0, *depths[:-1]]
    return [
        Stage(index * steps_per_block, num_frozen, (Objective(depth, Pixels(normalize)),))
        for index, (num_frozen, depth) in enumerate(zip(borders, depths, strict=True))
    ]


def locked(
    base: list[Stage],
    schedule: FreezeSchedule | Freezings,
    predict_latents: bool = True,
    patch_fraction: float = 1.0,
    keep_targets: bool = False,
) -> list[Stage]:
    """LayerLock on top of a method: freeze by the schedule, and from each freezing on predict the frozen layers.

    Args:
        base: the method, up to the first freezing.
        schedule: the freezings.
        predict_latents: False freezes but keeps the target of the method (LayerLock, sec. 4.1).
        patch_fraction: share of the tokens on which the latents are computed and predicted (LayerLock, sec. 3.4).
        keep_targets: predict all targets so far, each with a head of its own (LayerLock, Table 5).

    Raises:
        ValueError: if the method has several objectives, so that it is unclear which to replace, or ends too late.
    """
    stages = list(base)
    if predict_latents and len(base[-1].objectives) > 1:
        raise ValueError(
            f"freezing replaces the only target of a method, but this one has {len(base[-1].objectives)}: set "
            "predict_latents to False to freeze without predicting latents"
        )
    targets = schedule.target_layers or [num_frozen for _, num_frozen in schedule.freezings()]
    for (step, num_frozen), depth in zip(schedule.freezings(), targets, strict=True):
        last = stages[-1]
        objectives = last.objectives
        if predict_latents:
            (objective, *_) = last.objectives
            target = objective.target.at_depth(depth)
            if keep_targets:
                target = dataclasses.replace(target, has_own_head=True)
            new = dataclasses.replace(objective, target=target, patch_fraction=patch_fraction)
            objectives = (*objectives, new) if keep_targets else (new,)
        stages.append(dataclasses.replace(last, start=step, num_frozen=num_frozen, objectives=objectives))
    return check_stages(stages)
