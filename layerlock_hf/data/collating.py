"""Batches of clips and masks."""

import torch

from .masking import random_mask
from .transforms import generator_for


class PretrainingCollator:
    """Stack samples of `PretrainingClips` and draw a mask for each, which depends on seed and position alone.

    Args:
        num_tokens: number N of patches of a clip.
        mask_ratio: fraction of patches hidden from the encoder.
        seed: seed of the masks.
    """

    def __init__(self, num_tokens: int, mask_ratio: float, seed: int = 0):
        if not 0 < mask_ratio < 1:
            raise ValueError(f"mask_ratio is {mask_ratio}; give a fraction between 0 and 1, both excluded")
        self.num_tokens = num_tokens
        self.mask_ratio = mask_ratio
        self.seed = seed

    def __call__(self, samples: list[dict]) -> dict[str, torch.Tensor]:
        """
        Returns:
            pixel_values_videos: uint8, shape (B, T, C, H, W).
            context_ids: shape (B, K).
            target_ids: shape (B, N).
            num_padded: shape (), the number of clips whose last frame is repeated.
        """
        masks = [
            random_mask(self.num_tokens, self.mask_ratio, generator_for("mask", self.seed, sample["position"]))
            for sample in samples
        ]
        return {
            "pixel_values_videos": torch.stack([sample["pixel_values_videos"] for sample in samples]),
            "context_ids": torch.stack([context_ids for context_ids, _ in masks]),
            "target_ids": torch.stack([target_ids for _, target_ids in masks]),
            "num_padded": torch.tensor(sum(sample["is_padded"] for sample in samples)),
        }
