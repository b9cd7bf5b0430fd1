"""What decoders return: frames of one video, on a timeline of constant frame rate."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..models.video_reading_opening import DecodingError, one_line
from .transforms import resize


__all__ = ["Clip", "Crop", "DecodingError", "one_line"]


@dataclass
class Clip:
    """Frames of one video.

    Attributes:
        frames: uint8 RGB, shape (T, C, H, W), turned upright as the rotation metadata asks.
        timestamps: float64, shape (T,), when each frame is first shown, in seconds on the clock of the file.
        num_frames: number of frames of the video, on the timeline they were chosen from.
        pixel_aspect: width of a pixel over its height; a player stretches the frames accordingly.
        note: None for a healthy video, else what is wrong with it.
        is_partial: whether the video is shorter than it claims, because the rest is damaged or missing.
    """

    frames: torch.Tensor
    timestamps: torch.Tensor
    num_frames: int
    pixel_aspect: float = 1.0
    note: str | None = None
    is_partial: bool = False


@dataclass(frozen=True)
class Crop:
    """The part of the frames of a clip that is kept.

    Attributes:
        box: from height and width of a frame in pixels, and the aspect of a pixel, to the top, left, height and width
            that are kept.
        image_size: side of the square that this is resized to, as by `transforms.resize` (default: not resized).
    """

    box: Callable[[int, int, float], tuple[int, int, int, int]]
    image_size: int | None = None

    def cut(self, frames: torch.Tensor, pixel_aspect: float = 1.0) -> torch.Tensor:
        """uint8: (T, C, H, W) -> what is kept of it."""
        top, left, height, width = self.box(*frames.shape[-2:], pixel_aspect)
        frames = frames[..., top : top + height, left : left + width]
        return frames if self.image_size is None else resize(frames, self.image_size)
