"""Crops and flips of clips, the same for all frames of a clip, and the random generators they draw from."""

import hashlib

import torch
import torch.nn.functional as F


def generator_for(*key: int | str) -> torch.Generator:
    """A generator that depends on the key alone, so that no draw depends on workers, ranks or order."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def random_crop(
    frames: torch.Tensor, size: int, resize_factor: float = 1.0, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Resize the shortest side to `resize_factor * size`, then take a random square of `size` pixels.

    Args:
        frames: uint8, shape (T, C, H, W).
        size: side of the result in pixels.
        resize_factor: at least 1; the larger, the smaller the part of the frame that is seen.
        generator: source of randomness.

    Returns:
        uint8, shape (T, C, size, size).
    """
    down, right = torch.rand(2, generator=generator).tolist()
    return _crop(frames, size, resize_factor, down, right)


def center_crop(frames: torch.Tensor, size: int, resize_factor: float = 1.0) -> torch.Tensor:
    """`random_crop` at the centre: (T, C, H, W) to (T, C, size, size)."""
    return _crop(frames, size, resize_factor, 0.5, 0.5)


def random_flip(frames: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Mirror all frames left to right with probability 0.5; shape (T, C, H, W) is kept."""
    return frames.flip(-1) if torch.rand((), generator=generator) < 0.5 else frames


def _crop(frames: torch.Tensor, size: int, resize_factor: float, down: float, right: float) -> torch.Tensor:
    """The crop whose corner lies at the fractions `down` and `right` of the possible ones."""
    if resize_factor < 1:
        raise ValueError(f"resize_factor is {resize_factor}; give at least 1, a crop cannot exceed the frame")
    height, width = frames.shape[-2:]
    # Cropping the source first resizes only the pixels that are kept.
    side = max(1, round(min(height, width) / resize_factor))
    top, left = round(down * (height - side)), round(right * (width - side))
    crop = frames[..., top : top + side, left : left + side]
    return F.interpolate(crop, size=(size, size), mode="bilinear", antialias=True)
