"""Crops, flips and changes of colour, the same for all frames of a clip, and the generators they draw from."""

import hashlib
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .timing import timed


RESIZE_FACTOR = 1.15
# V-JEPA's bounds of width over height
ASPECT_RATIO = (0.75, 1.35)
MAX_CROP_ATTEMPTS = 10

# Shares of red, green and blue in brightness (ITU-R BT.601)
LUMA = torch.tensor([0.299, 0.587, 0.114])
# What the readouts of 4DS use on SSv2. Hue is in turns of the colour circle.
MAX_BRIGHTNESS, MAX_CONTRAST, MAX_SATURATION, MAX_HUE = 0.125, 0.4, 0.4, 0.2
MAX_STRENGTH = 2.5
MAX_RESIZE_FACTOR = 10


def generator_for(*key: int | str) -> torch.Generator:
    """A generator that depends only on the key, so that no draw depends on workers, ranks or order."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


class ColorChange(NamedTuple):
    """One affine map of RGB for all pixels of a clip.

    The numbers are those of LayerLock, Table 12, the space is not: by its caption deltas and factors apply to "the
    corresponding channel", of hue, saturation and value. Here hue turns about the axis of greys and saturation is the
    distance from grey. This differs for strong colours, but takes only one matrix product per clip.

    Attributes:
        brightness: what is added, in grey levels (of 255).
        contrast: factor of the distance from the clip's mean brightness.
        saturation: factor of the distance from grey.
        hue: rotation about the axis of greys, in radians.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float

    def matrix(self) -> torch.Tensor:
        """All but the shift, (3, 3)."""
        saturation = self.saturation * torch.eye(3) + (1 - self.saturation) * LUMA.expand(3, 3)
        return self.contrast * _hue_rotation(self.hue) @ saturation


UNCHANGED = ColorChange(brightness=0.0, contrast=1.0, saturation=1.0, hue=0.0)


@dataclass(frozen=True)
class Augmentation:
    """What `ClipTransform` drew for one clip.

    Attributes:
        box: top, left, height and width of the window that is kept, in pixels of the frame.
        is_flipped: whether the clip is mirrored left to right.
        color: the change of colours, None for none.
    """

    box: tuple[int, int, int, int]
    is_flipped: bool
    color: ColorChange | None

    def crop(self, frames: torch.Tensor, first_row: int = 0, first_column: int = 0) -> torch.Tensor:
        """A view of the window: (T, C, H, W) to (T, C, h, w). The frames may begin at another row or column than 0."""
        top, left, height, width = self.box
        top, left = top - first_row, left - first_column
        return frames[..., top : top + height, left : left + width]

    def finish(self, crop: torch.Tensor, image_size: int) -> torch.Tensor:
        """Resize, flip and recolour what `crop` returned, on the CPU: uint8 (T, C, h, w) to (T, C, S, S)."""
        frames = resize(crop, image_size)
        if self.is_flipped:
            frames = frames.flip(-1)
        return frames if self.color is None else _recolor(frames, self.color)


@dataclass(frozen=True)
class ClipTransform:
    """How the clips of a run are cropped, flipped and recoloured at random.

    Without `crop_scale` the shortest side is resized to `resize_factor * image_size`, and a random square of
    `image_size` pixels taken. With it, a window of random area, shape and place is resized to a square (V-JEPA).

    Args:
        image_size: side of the frames in pixels.
        resize_factor: at least 1; the larger it is, the less of the frame is seen. None means 1.15.
        crop_scale: bounds of the window's area, as fractions of the frame.
        jitter_strength: factor of the colour changes. At 1, brightness changes by up to 0.125 of the range,
            contrast and saturation by a factor in [0.6, 1.4], hue by up to 0.2 turns; 0 leaves colours alone.
        jitter_probability: share of the clips with colour jitter (LayerLock, sec. A.4.1: 0.8).
        gray_probability: share of the clips turned to grey, jittered or not (LayerLock, sec. A.4.1: 0.1).
        flip_probability: share of the clips that are flipped left to right. 0 where a class is a direction, as in
            "pushing something from left to right".
        ignores_aspect: squeeze every frame to a square, whatever its shape. Otherwise videos of different
            shapes can be told apart by the part that is seen, and so can classes that are filmed in different shapes.

    Raises:
        ValueError: if a value is out of its bounds, or both `resize_factor` and `crop_scale` are given.
    """

    image_size: int = 224
    resize_factor: float | None = None
    crop_scale: tuple[float, float] | None = None
    jitter_strength: float = 0.0
    jitter_probability: float = 1.0
    gray_probability: float = 0.0
    flip_probability: float = 0.5
    ignores_aspect: bool = False

    def __post_init__(self):
        if self.image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {self.image_size}")
        if self.crop_scale is not None:
            if self.resize_factor is not None:
                raise ValueError(
                    f"resize_factor={self.resize_factor} and crop_scale={self.crop_scale} are both set: leave one of "
                    "them out"
                )
            _check_scale(self.crop_scale)
        _check_strength(self.jitter_strength)
        for name in ("jitter_probability", "gray_probability", "flip_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, a share of the clips, got {getattr(self, name)}")
        _check_resize_factor(self.central_factor)

    @property
    def central_factor(self) -> float:
        """The `resize_factor` at which `center_crop` shows videos at the scale of these clips."""
        return RESIZE_FACTOR if self.resize_factor is None else self.resize_factor

    def draw(
        self, height: int, width: int, generator: torch.Generator | None = None, pixel_aspect: float = 1.0
    ) -> Augmentation:
        """Draw for one clip.

        Args:
            height: of its frames, in pixels.
            width: likewise.
            generator: source of randomness.
            pixel_aspect: width of a pixel over its height; clips show the frame with square pixels.
        """
        aspect = self._aspect(height, width, pixel_aspect)
        box = _where_pixels_are_square(height, width, aspect, lambda *shape: self._draw_box(*shape, generator))
        is_flipped = bool(torch.rand((), generator=generator) < self.flip_probability)
        return Augmentation(box, is_flipped, self._draw_color(generator))

    def center(self, height: int, width: int, pixel_aspect: float = 1.0) -> Augmentation:
        """The square at the centre of frames of this shape, at the scale of the random ones, and nothing else."""
        aspect = self._aspect(height, width, pixel_aspect)
        box = _where_pixels_are_square(
            height, width, aspect, lambda *shape: _square(*shape, self.central_factor, 0.5, 0.5)
        )
        return Augmentation(box, is_flipped=False, color=None)

    def _aspect(self, height: int, width: int, pixel_aspect: float) -> float:
        return height / width if self.ignores_aspect else pixel_aspect

    def _draw_box(self, height: int, width: int, generator: torch.Generator | None) -> tuple[int, int, int, int]:
        if self.crop_scale is not None:
            return _window(height, width, self.crop_scale, generator)
        down, right = torch.rand(2, generator=generator).tolist()
        return _square(height, width, self.central_factor, down, right)

    def _draw_color(self, generator: torch.Generator | None) -> ColorChange | None:
        """Draws what is needed alone: runs depend on every draw, and on their order."""
        color = None
        if self.jitter_strength > 0 and _happens(self.jitter_probability, generator):
            color = _jitter(self.jitter_strength, generator)
        if self.gray_probability > 0 and _happens(self.gray_probability, generator):
            color = (color or UNCHANGED)._replace(saturation=0.0, hue=0.0)
        return color


def bounding_box(augmentations: list[Augmentation]) -> tuple[int, int, int, int]:
    """Top, left, height and width of the smallest window that holds those of all."""
    tops, lefts, heights, widths = zip(*(augmentation.box for augmentation in augmentations), strict=True)
    bottom, right = max(map(sum, zip(tops, heights, strict=True))), max(map(sum, zip(lefts, widths, strict=True)))
    return min(tops), min(lefts), bottom - min(tops), right - min(lefts)


def center_crop(
    frames: torch.Tensor,
    size: int,
    resize_factor: float = 1.0,
    pixel_aspect: float = 1.0,
    ignores_aspect: bool = False,
) -> torch.Tensor:
    """Resize the shortest side to `resize_factor * size` and take the square at the centre.

    Args:
        frames: uint8, shape (T, C, H, W).
        size: side of the result in pixels.
        resize_factor: at least 1; the larger it is, the less of the frame is seen.
        pixel_aspect: width of a pixel of `frames` over its height.
        ignores_aspect: as of `ClipTransform`.

    Returns:
        uint8, shape (T, C, size, size).
    """
    transform = ClipTransform(size, resize_factor, ignores_aspect=ignores_aspect)
    augmentation = transform.center(*frames.shape[-2:], pixel_aspect)
    return augmentation.finish(augmentation.crop(frames), size)


def resize(frames: torch.Tensor, size: int) -> torch.Tensor:
    """Resize uint8 frames to a square, on whatever device they are: (T, C, H, W) to (T, C, size, size)."""
    if frames.shape[-2:] == (size, size):
        return frames
    with timed("transform"):
        if frames.device.type == "cpu":
            return _interpolate(frames, size)
        # CPUs alone resize bytes, rounding once per direction. The other differs by 1 in up to a fifth of the pixels.
        return _resize_in_floating_point(frames, size)


def repeat_last_frame(frames: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Extend a clip that is too short: (T', C, H, W) -> (T, C, H, W)"""
    missing = num_frames - len(frames)
    return torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)]) if missing else frames


def _resize_in_floating_point(frames: torch.Tensor, size: int) -> torch.Tensor:
    return _interpolate(frames.float(), size).round_().to(torch.uint8)


def _interpolate(frames: torch.Tensor, size: int) -> torch.Tensor:
    return F.interpolate(frames, size=(size, size), mode="bilinear", antialias=True)


def _check_resize_factor(resize_factor: float):
    if not 1 <= resize_factor <= MAX_RESIZE_FACTOR:
        raise ValueError(
            f"resize_factor must be between 1 and {MAX_RESIZE_FACTOR}, got {resize_factor}: a crop cannot exceed the "
            "frame, and 1.15 leaves a margin of 15%"
        )


def _check_scale(scale: tuple[float, float]):
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(
            f"crop_scale must be two fractions above 0 and up to 1, the lower one first, got {tuple(scale)}"
        )


def _check_strength(strength: float):
    if not 0 <= strength <= MAX_STRENGTH:
        raise ValueError(
            f"jitter_strength must be between 0 and {MAX_STRENGTH}, where contrast and saturation may vanish, got "
            f"{strength}"
        )


def _square(height: int, width: int, resize_factor: float, down: float, right: float) -> tuple[int, int, int, int]:
    """The box whose corner lies at the fractions `down` and `right` of the possible ones."""
    # Cropping the source first resizes only the pixels that are kept.
    side = max(1, round(min(height, width) / resize_factor))
    return round(down * (height - side)), round(right * (width - side)), side, side


def _window(
    height: int, width: int, scale: tuple[float, float], generator: torch.Generator | None
) -> tuple[int, int, int, int]:
    """A box drawn as in torchvision: the logarithm of its shape is uniform."""
    lowest, highest = ASPECT_RATIO
    for _ in range(MAX_CROP_ATTEMPTS):
        area, shape, down, right = torch.rand(4, generator=generator).tolist()
        area = height * width * (scale[0] + area * (scale[1] - scale[0]))
        shape = lowest * (highest / lowest) ** shape
        rows, columns = round(math.sqrt(area / shape)), round(math.sqrt(area * shape))
        if 0 < rows <= height and 0 < columns <= width:
            return int(down * (height - rows + 1)), int(right * (width - columns + 1)), rows, columns
    # The largest one at the centre whose shape is within the bounds
    rows = min(height, max(1, round(width / lowest)))
    columns = min(width, max(1, round(height * highest)))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def _where_pixels_are_square(height: int, width: int, pixel_aspect: float, choose_box) -> tuple[int, int, int, int]:
    """The box that is chosen of a frame as a player shows it, in the pixels that the frame is stored in."""
    shown_width = max(1, round(width * pixel_aspect))
    top, left, rows, columns = choose_box(height, shown_width)
    columns = min(width, max(1, round(columns * width / shown_width)))
    return top, min(width - columns, round(left * width / shown_width)), rows, columns


def _happens(probability: float, generator: torch.Generator | None) -> bool:
    """Draws nothing where it is certain."""
    return probability == 1 or bool(torch.rand((), generator=generator) < probability)


def _jitter(strength: float, generator: torch.Generator | None) -> ColorChange:
    brightness, contrast, saturation, hue = (strength * (2 * torch.rand(4, generator=generator) - 1)).tolist()
    return ColorChange(
        255 * MAX_BRIGHTNESS * brightness,
        1 + MAX_CONTRAST * contrast,
        1 + MAX_SATURATION * saturation,
        2 * math.pi * MAX_HUE * hue,
    )


def _hue_rotation(angle: float) -> torch.Tensor:
    """The rotation of RGB about the axis of greys, (3, 3): by a third of a turn red becomes green."""
    next_channel = torch.eye(3).roll(1, dims=0)
    thirds = [(1 + 2 * math.cos(angle - turn)) / 3 for turn in (0, 2 * math.pi / 3, 4 * math.pi / 3)]
    return thirds[0] * torch.eye(3) + thirds[1] * next_channel + thirds[2] * next_channel.T


def _recolor(frames: torch.Tensor, color: ColorChange) -> torch.Tensor:
    colors = frames.flatten(2).float()  # (T, 3, H * W)
    grey = LUMA @ colors.mean(dim=(0, 2))
    shift = (1 - color.contrast) * grey + color.brightness
    # A convolution of 1x1 took 40 times as long on a CPU
    changed = (color.matrix() @ colors).add_(shift)
    return changed.round_().clamp_(0, 255).to(torch.uint8).view_as(frames)
