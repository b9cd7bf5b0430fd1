"""Batches of clips and masks."""

import torch

from .masks import MaskStrategy


class PretrainingCollator:
    """Stack samples of `PretrainingClips` and draw their masks, which depend on seed and position alone.

    Args:
        grid_size: number of patches of a clip in time, height and width, N = t * h * w.
        masks: the mask strategy, such as `RandomMask(0.95)`.
        seed: seed of the masks.
    """

    def __init__(self, grid_size: tuple[int, int, int], masks: MaskStrategy, seed: int = 0):
        self.grid_size = grid_size
        self.masks = masks
        self.seed = seed

    def __call__(self, samples: list[dict]) -> dict[str, torch.Tensor | list[torch.Tensor]]:
        """
        Returns:
            pixel_values_videos: uint8, shape (B, T, C, H, W). Of samples that hold a `crop` and an `augmentation`
                there is instead what `BatchAugmentation` makes these of: crops, crop_shapes and augmentations.
            context_ids: shape (B, K), or a list of such, one per type of mask, if the strategy draws several.
            target_ids: shape (B, M), or a list as for `context_ids`.
            num_padded: shape (), the number of clips whose last frame is repeated.
        """
        pairs = self.masks(self.grid_size, [sample["position"] for sample in samples], self.seed)
        context_ids, target_ids = (ids[0] if len(ids) == 1 else list(ids) for ids in zip(*pairs, strict=True))
        return {
            **(_crops(samples) if "crop" in samples[0] else _clips(samples)),
            "context_ids": context_ids,
            "target_ids": target_ids,
            "num_padded": torch.tensor(sum(sample["is_padded"] for sample in samples)),
        }


def _clips(samples: list[dict]) -> dict:
    return {"pixel_values_videos": torch.stack([sample["pixel_values_videos"] for sample in samples])}


def _crops(samples: list[dict]) -> dict:
    # They differ in size. In one tensor they are one file shared with the worker, of which a process may hold about a
    # thousand, and one copy to the device.
    crops = [sample["crop"] for sample in samples]
    return {
        "crops": torch.cat([crop.flatten() for crop in crops]),
        "crop_shapes": [tuple(crop.shape) for crop in crops],
        "augmentations": [sample["augmentation"] for sample in samples],
    }
