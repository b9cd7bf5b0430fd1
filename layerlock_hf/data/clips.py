"""What decoders return: frames of one video, on a timeline of constant frame rate."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch


class DecodingError(Exception):
    """A video, or the frames asked for, cannot be read; the message is the reason, in one line.

    Args:
        message: the reason.
        kind: a word or two by which reasons are counted.
    """

    def __init__(self, message: str, kind: str = "damaged"):
        super().__init__(message, kind)  # both, so that it can be pickled
        self.kind = kind

    def __str__(self) -> str:
        return self.args[0]


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


# From the number of frames of a video to the ascending indices of those to read
Choose = Callable[[int], list[int]]


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


# Average over usual interval between frames, up to which the rate is constant but for some that were dropped
MAX_GAPS = 1.1
MAX_PIXEL_ASPECT = 50  # more is a mistake in the file


def shown_frames(seconds: np.ndarray, frame_rate: float | None = None) -> np.ndarray:
    """The frame that a player shows at each tick of a timeline of constant frame rate.

    Taken mid-tick, so that rounded timestamps of a constant rate give 0, 1, 2, ..., without resampling.

    Args:
        seconds: ascending times at which the frames appear, shape (N,).
        frame_rate: ticks per second; by default the usual rate of the frames, or the average if it varies.

    Returns:
        indices of frames, one per tick.
    """
    if len(seconds) == 1:
        return np.zeros(1, dtype=int)
    intervals = np.diff(seconds)
    usual, average = np.median(intervals), intervals.mean()
    tick = usual if average <= MAX_GAPS * usual else average
    length = seconds[-1] - seconds[0] + tick  # the last frame is shown as long as others
    if frame_rate is not None:
        tick = 1 / frame_rate
    num_ticks = max(1, round(length / tick))
    times = seconds[0] + (np.arange(num_ticks) + 0.5) * tick
    return np.searchsorted(seconds, times, side="right") - 1


def pixel_aspect(ratio) -> float:
    """The aspect of a pixel from a file's metadata, where it makes sense; square otherwise."""
    aspect = float(ratio) if ratio else 1.0
    return aspect if 1 / MAX_PIXEL_ASPECT <= aspect <= MAX_PIXEL_ASPECT else 1.0


def one_line(error: object) -> str:
    """A message for a report."""
    return " ".join(str(error).split())[:200]
