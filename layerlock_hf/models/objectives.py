"""What is trained now, against which target: a run is a list of stages, and a stage is a row of data.

B batch, T frames, N tokens of the grid, M target tokens, D width, P pixel values per token.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F


LOSSES = {"l1": F.l1_loss, "l2": F.mse_loss}


class Target:
    """What is predicted: a small frozen value that computes itself, knows its head and its loss.

    Attributes:
        loss: a key of `LOSSES`.
        head: name of the head that predicts it, a key of the configuration's `head_widths`.
        label: name in the logs.
        of: `"encoder"` or `"teacher"`, the network it is taken from.
        depth: layers of that network that it needs; 0: none.
    """

    def __post_init__(self):
        if self.loss not in LOSSES:
            raise ValueError(f"loss (pixel_loss in recipes) must be {' or '.join(LOSSES)}, got {self.loss!r}")

    def error(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """2 x (B, M, width of the head) -> ()"""
        return LOSSES[self.loss](prediction, target)


@dataclass(frozen=True)
class Pixels(Target):
    """The clip itself, cut into boxes.

    Args:
        normalize: give every colour of every box mean 0 and variance 1 (VideoMAE); LayerLock and 4DS do not.
        loss: `"l2"`, the mean squared error, or `"l1"`, the mean absolute one.
    """

    normalize: bool = False
    loss: Literal["l1", "l2"] = "l2"
    head: ClassVar[str] = "pixels"
    label: ClassVar[str] = "pixels"
    depth: ClassVar[int] = 0
    of: ClassVar[str] = "encoder"

    def compute(self, networks: dict, video: torch.Tensor, ids: torch.Tensor | None) -> torch.Tensor:
        """(B, T, C, H, W), (B, M) -> (B, M, P)"""
        encoder = networks["encoder"]
        patches = encoder.patchify(video, ids).float()
        if not self.normalize:
            return patches
        channels = patches.unflatten(-1, (-1, encoder.config.num_channels))
        deviation = channels.std(dim=-2, keepdim=True) + 1e-6
        return ((channels - channels.mean(dim=-2, keepdim=True)) / deviation).flatten(-2)

    def at_depth(self, depth: int) -> "Latents":
        """What LayerLock predicts in its place once `depth` layers are frozen, with its own loss (sec. 3.4)."""
        return Latents(depth)


@dataclass(frozen=True)
class Latents(Target):
    """Output of a network's first `depth` layers for the whole clip, without masking (LayerLock, sec. 3.3).

    Args:
        depth: number of layers passed.
        of: `"encoder"`, whose layers must be frozen, or `"teacher"`, a network that does not learn.
        normalize: layer norm without affine over the channels (V-JEPA); LayerLock predicts the raw residual stream.
        loss: `"l2"`, the mean squared error, or `"l1"`, the mean absolute one.
        has_own_head: keep a head for this depth alone (`latent_head_depths` of the configuration), instead of the one
            that is started afresh for every new depth.
    """

    depth: int
    of: Literal["encoder", "teacher"] = "encoder"
    normalize: bool = False
    loss: Literal["l1", "l2"] = "l2"
    has_own_head: bool = False

    @property
    def head(self) -> str:
        """Name of the head that predicts this."""
        return f"latents_{self.depth}" if self.has_own_head else "latents"

    @property
    def label(self) -> str:
        """Name in the logs."""
        return f"layer_{self.depth}" if self.of == "encoder" else f"{self.of}_layer_{self.depth}"

    def compute(self, networks: dict, video: torch.Tensor, ids: torch.Tensor | None) -> torch.Tensor:
        """(B, T, C, H, W), (B, M) -> (B, M, D). With `ids`, the pass itself runs on these tokens alone."""
        (latents,) = networks[self.of].tap(video, [self.depth], ids)
        latents = latents.float()
        return F.layer_norm(latents, latents.shape[-1:]) if self.normalize else latents

    def at_depth(self, depth: int) -> "Latents":
        """The same at another depth."""
        return dataclasses.replace(self, depth=depth)


@dataclass(frozen=True)
class Objective:
    """Predict `target` from the output of `read_at` layers.

    Args:
        read_at: depth at which the prediction is read.
        target: what is predicted.
        weight: factor of this objective in the sum.
        patch_fraction: share of the tokens that are predicted, drawn at random for every clip.
        weight_ramp_steps: steps over which the weight rises from 0, along a cosine (LayerLock, Table 3).
    """

    read_at: int
    target: Target
    weight: float = 1.0
    patch_fraction: float = 1.0
    weight_ramp_steps: int = 0

    def __post_init__(self):
        if not 0 < self.patch_fraction <= 1:
            raise ValueError(f"patch_fraction must be above 0 and at most 1, got {self.patch_fraction}")

    def select(self, target_ids: torch.Tensor | None, num_tokens: int) -> torch.Tensor | None:
        """The first `patch_fraction` of the ids, (B, M') -> (B, M); None stands for every token in the grid's order,
        which is also what as many ids as the grid has tokens stand for."""
        if self.patch_fraction < 1 and target_ids is None:
            raise ValueError(
                f"patch_fraction={self.patch_fraction} needs target_ids to draw from: give masks, or set it to 1"
            )
        if target_ids is None or self.patch_fraction == 1 and target_ids.shape[1] == num_tokens:
            return None
        return target_ids[:, : max(1, round(self.patch_fraction * target_ids.shape[1]))]

    def weight_at(self, step: int) -> float:
        """The weight in optimizer step `step`, counted from 0."""
        if step >= self.weight_ramp_steps:
            return self.weight
        return self.weight * 0.5 * (1 - math.cos(math.pi * step / self.weight_ramp_steps))


@dataclass(frozen=True)
class Stage:
    """What a run does from optimizer step `start` on.

    Args:
        start: first optimizer step.
        num_frozen: leading layers (and the embeddings) that no longer learn.
        objectives: what is minimised.
        local: cut the gradient at every depth that is read, so that each block learns from its own objective alone.
        overlap: layers before a cut that also learn from the next objective (LoCo).
        may_collapse: allow a target of the encoder itself deeper than the frozen prefix. It moves with the encoder
            that predicts it, and the representation collapses (LayerLock, Table 3): for that ablation only.

    Raises:
        ValueError: if a latent target lies deeper than the frozen prefix and `may_collapse` is not set, or objectives
            share a head.
    """

    start: int
    num_frozen: int
    objectives: tuple[Objective, ...]
    local: bool = False
    overlap: int = 0
    may_collapse: bool = False

    def __post_init__(self):
        if self.start < 0 or self.num_frozen < 0 or not self.objectives:
            raise ValueError(f"a stage needs start >= 0, num_frozen >= 0 and an objective, got {self}")
        if self.overlap < 0 or self.overlap and not self.local:
            raise ValueError(f"overlap must not be negative, and needs a local stage, got {self}")
        heads = [(objective.read_at, objective.target.head) for objective in self.objectives]
        if len({*heads}) < len(heads):
            raise ValueError(
                f"the stage that starts at step {self.start} predicts several targets with one head: give each a head"
            )
        for objective in self.objectives:
            target = objective.target
            if target.of == "encoder" and target.depth > self.num_frozen and not self.may_collapse:
                raise ValueError(
                    f"the stage that starts at step {self.start} predicts the output of layer "
                    f"{target.depth} but freezes {self.num_frozen} layers only: a target deeper than the "
                    "frozen prefix collapses"
                )

    @property
    def read_depths(self) -> list[int]:
        """The depths that predictions are read from, ascending."""
        return sorted({objective.read_at for objective in self.objectives})

    @property
    def labels(self) -> list[str]:
        """A name per objective: of its target, and of the depth where it is read if there are several."""
        prefix = "depth_{}/" if len(self.read_depths) > 1 else ""
        return [prefix.format(objective.read_at) + objective.target.label for objective in self.objectives]

    @property
    def needs_teacher(self) -> bool:
        """Whether a target is taken from a teacher."""
        return any(objective.target.of == "teacher" for objective in self.objectives)

    def at(self, step: int) -> "Stage":
        """The stage with the weights of optimizer step `step`."""
        objectives = (
            dataclasses.replace(objective, weight=objective.weight_at(step), weight_ramp_steps=0)
            for objective in self.objectives
        )
        return dataclasses.replace(self, objectives=tuple(objectives))
