"""What is trained now, against which target: a run is a list of stages, and a stage is a row of data.

B batch, T frames, N tokens of the grid, M target tokens, D width, P pixel values per token.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from .modeling_layerlock import take_tokens


@dataclass(frozen=True)
class Pixels:
    """The clip itself, cut into boxes.

    Args:
        normalize: give every box mean 0 and variance 1 (VideoMAE); LayerLock and 4DS do not.
    """

    normalize: bool = False
    head: ClassVar[str] = "pixels"
    depth: ClassVar[int] = 0

    def compute(self, encoder, video: torch.Tensor, ids: torch.Tensor | None) -> torch.Tensor:
        """(B, T, C, H, W), (B, M) -> (B, M, P)"""
        patches = take_tokens(encoder.patchify(video), ids).float()
        return F.layer_norm(patches, patches.shape[-1:], eps=1e-6) if self.normalize else patches


@dataclass(frozen=True)
class Latents:
    """Output of the encoder's first `depth` layers for the whole clip, without masking (LayerLock, sec. 3.3).

    Args:
        depth: number of layers passed.
        normalize: layer norm without affine over the channels; LayerLock predicts the raw residual stream.
    """

    depth: int
    normalize: bool = False
    head: ClassVar[str] = "latents"

    def compute(self, encoder, video: torch.Tensor, ids: torch.Tensor | None) -> torch.Tensor:
        """(B, T, C, H, W), (B, M) -> (B, M, D). With `ids`, the pass itself runs on these tokens alone."""
        (latents,) = encoder.tap(video, [self.depth], ids)
        latents = latents.float()
        return F.layer_norm(latents, latents.shape[-1:]) if self.normalize else latents


@dataclass(frozen=True)
class Objective:
    """Predict `target` from what is read after `source` layers.

    Args:
        source: depth at which the prediction is read.
        target: what is predicted.
        weight: factor of this objective in the sum.
        patch_fraction: share of the tokens that are predicted, drawn at random for every clip.
    """

    source: int
    target: Pixels | Latents
    weight: float = 1.0
    patch_fraction: float = 1.0

    def __post_init__(self):
        if not 0 < self.patch_fraction <= 1:
            raise ValueError(f"patch_fraction must lie in (0, 1], got {self.patch_fraction}")

    def select(self, target_ids: torch.Tensor | None) -> torch.Tensor | None:
        """The first `patch_fraction` of the ids, (B, N) -> (B, M); None stands for every token."""
        if self.patch_fraction == 1:
            return None
        if target_ids is None:
            raise ValueError(
                f"predicting a fraction {self.patch_fraction} of the tokens needs target_ids to draw from"
            )
        return target_ids[:, : max(1, round(self.patch_fraction * target_ids.shape[1]))]


@dataclass(frozen=True)
class Stage:
    """What a run does from optimizer step `start` on.

    Args:
        start: first optimizer step.
        num_frozen: leading layers (and the embeddings) that no longer learn.
        objectives: what is minimised.

    Raises:
        ValueError: if a latent target lies deeper than the frozen prefix: such a target moves with the encoder that
            predicts it, and the representation collapses (LayerLock, Table 3).
    """

    start: int
    num_frozen: int
    objectives: tuple[Objective, ...]

    def __post_init__(self):
        if self.start < 0 or self.num_frozen < 0 or not self.objectives:
            raise ValueError(f"a stage needs start >= 0, num_frozen >= 0 and an objective, got {self}")
        for objective in self.objectives:
            if objective.target.depth > self.num_frozen:
                raise ValueError(
                    f"the stage that starts at step {self.start} predicts the output of layer "
                    f"{objective.target.depth} but freezes {self.num_frozen} layers only: a target deeper than the "
                    "frozen prefix collapses"
                )
