"""Crops, flips and changes of colour, the same for all frames of a clip, and the generators they draw from."""

import hashlib
import math

import torch
import torch.nn.functional as F


MAX_CROP_ATTEMPTS = 10

# Shares of red, green and blue in brightness (ITU-R BT.601)
LUMA = torch.tensor([0.299, 0.587, 0.114])
# What the readouts of 4DS use on SSv2. Hue is in turns of the colour circle.
MAX_BRIGHTNESS, MAX_CONTRAST, MAX_SATURATION, MAX_HUE = 0.125, 0.4, 0.4, 0.2
MAX_STRENGTH = 2.5


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


def random_resized_crop(
    frames: torch.Tensor,
    image_size: int,
    generator: torch.Generator | None = None,
    scale: tuple[float, float] = (0.3, 1.0),
    aspect_ratio: tuple[float, float] = (0.75, 1.35),
) -> torch.Tensor:
    """Resize a window of random area, shape and place to a square (V-JEPA's augmentation, with its defaults).

    Args:
        frames: uint8, shape (T, C, H, W).
        image_size: side of the result in pixels.
        generator: source of randomness.
        scale: bounds of the window's area, as fractions of the frame.
        aspect_ratio: bounds of the window's width over its height.

    Returns:
        uint8, shape (T, C, image_size, image_size).
    """
    check_scale(scale)
    if not 0 < aspect_ratio[0] <= aspect_ratio[1]:
        raise ValueError(f"aspect_ratio is {aspect_ratio}; give two positive bounds, the lower one first")
    top, left, height, width = _random_window(*frames.shape[-2:], scale, aspect_ratio, generator)
    return _resize(frames[..., top : top + height, left : left + width], image_size)


def check_scale(scale: tuple[float, float]):
    """
    Raises:
        ValueError: unless these are bounds of a fraction of the frame.
    """
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(
            f"scale (crop_scale in recipes) is {tuple(scale)}; give two fractions above 0 and up to 1, the lower first"
        )


def repeat_last_frame(frames: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Bring a clip that is too short to its length: (T', C, H, W) -> (T, C, H, W)"""
    missing = num_frames - len(frames)
    return torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)]) if missing else frames


def random_flip(frames: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Mirror all frames left to right with probability 0.5; shape (T, C, H, W) is kept."""
    return frames.flip(-1) if torch.rand((), generator=generator) < 0.5 else frames


def color_jitter(
    frames: torch.Tensor, strength: float = 1.0, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Change brightness, contrast, saturation and hue at random, all pixels of the clip by one affine map.

    Args:
        frames: uint8 RGB, shape (T, 3, H, W).
        strength: factor of the largest changes. At 1 brightness changes by 0.125 of the range, contrast and saturation
            by a factor in [0.6, 1.4], hue by 0.2 turns; 0 changes nothing.
        generator: source of randomness.

    Returns:
        uint8, shape (T, 3, H, W).
    """
    check_strength(strength)
    brightness, contrast, saturation, hue = (strength * (2 * torch.rand(4, generator=generator) - 1)).tolist()
    contrast, saturation = 1 + MAX_CONTRAST * contrast, 1 + MAX_SATURATION * saturation
    matrix = saturation * torch.eye(3) + (1 - saturation) * LUMA.expand(3, 3)
    matrix = contrast * _hue_rotation(2 * math.pi * MAX_HUE * hue) @ matrix
    colors = frames.flatten(2).float()  # (T, 3, H * W)
    grey = LUMA @ colors.mean(dim=(0, 2))
    shift = (1 - contrast) * grey + 255 * MAX_BRIGHTNESS * brightness
    # A convolution of 1x1 took 40 times as long on a CPU
    changed = (matrix @ colors).add_(shift)
    return changed.round_().clamp_(0, 255).to(torch.uint8).view_as(frames)


def check_strength(strength: float):
    """
    Raises:
        ValueError: if this is no strength of `color_jitter`.
    """
    if not 0 <= strength <= MAX_STRENGTH:
        raise ValueError(
            f"strength (jitter_strength in recipes) is {strength}; give 0 to {MAX_STRENGTH}, where contrast and "
            "saturation may vanish"
        )


def _hue_rotation(angle: float) -> torch.Tensor:
    """The rotation of RGB about the axis of greys, (3, 3): by a third of a turn red becomes green."""
    next_channel = torch.eye(3).roll(1, dims=0)
    thirds = [(1 + 2 * math.cos(angle - turn)) / 3 for turn in (0, 2 * math.pi / 3, 4 * math.pi / 3)]
    return thirds[0] * torch.eye(3) + thirds[1] * next_channel + thirds[2] * next_channel.T


def _crop(frames: torch.Tensor, size: int, resize_factor: float, down: float, right: float) -> torch.Tensor:
    """The crop whose corner lies at the fractions `down` and `right` of the possible ones."""
    if resize_factor < 1:
        raise ValueError(f"resize_factor is {resize_factor}; give at least 1, a crop cannot exceed the frame")
    height, width = frames.shape[-2:]
    # Cropping the source first resizes only the pixels that are kept.
    side = max(1, round(min(height, width) / resize_factor))
    top, left = round(down * (height - side)), round(right * (width - side))
    crop = frames[..., top : top + side, left : left + side]
    return _resize(crop, size)


def _random_window(
    height: int,
    width: int,
    scale: tuple[float, float],
    aspect_ratio: tuple[float, float],
    generator: torch.Generator | None,
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a window, drawn as in torchvision: the logarithm of the shape is uniform."""
    for _ in range(MAX_CROP_ATTEMPTS):
        area, shape, down, right = torch.rand(4, generator=generator).tolist()
        area = height * width * (scale[0] + area * (scale[1] - scale[0]))
        shape = aspect_ratio[0] * (aspect_ratio[1] / aspect_ratio[0]) ** shape
        rows, columns = round(math.sqrt(area / shape)), round(math.sqrt(area * shape))
        if 0 < rows <= height and 0 < columns <= width:
            return int(down * (height - rows + 1)), int(right * (width - columns + 1)), rows, columns
    # The largest window at the centre whose shape is within the bounds
    rows = min(height, max(1, round(width / aspect_ratio[0])))
    columns = min(width, max(1, round(height * aspect_ratio[1])))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def _resize(frames: torch.Tensor, size: int) -> torch.Tensor:
    return F.interpolate(frames, size=(size, size), mode="bilinear", antialias=True)
