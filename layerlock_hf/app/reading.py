"""A video that somebody has dropped, as models see it. Nobody knows what it is: a child process reads it.

T frames, S side of the square that a model takes, h and w of the frames as they are shown.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..data import DECODE_TIMEOUT, DecodingError, Isolated, read_clip
from ..evaluation.depth_videos import shown
from ..models import LayerLockVideoProcessor
from ..models.depth_windows import window_of


MAX_MB, MAX_SECONDS = 100, 30
BYTES_PER_MB = 10**6


@dataclass(frozen=True)
class Taken:
    """The clip that a model takes of a video.

    Attributes:
        pixels: as the model takes them, float32 (1, T, 3, S, S).
        frames: as they are shown, uint8 (N, 3, h, w); N is below T where the video is so short.
        frame_size: height and width of the frames of the file.
        box: top, left, height and width of what the clip shows of them, in pixels of them.
        span: seconds from the beginning of the video to the first frame and to the last.
        note: what is wrong with the video, or None.
    """

    pixels: torch.Tensor
    frames: torch.Tensor
    frame_size: tuple[int, int]
    box: tuple[int, int, int, int]
    span: tuple[float, float]
    note: str | None

    @property
    def frame_rate(self) -> float:
        """Of the clip, in frames per second."""
        start, end = self.span
        return (len(self.frames) - 1) / (end - start) if end > start else 1.0


class Reader:
    """Takes the clips of several models out of the beginning of a video. Calls must not overlap.

    Args:
        processors: of the models.
        max_mb: of a file.
        max_seconds: of a video, of which the rest is left out. The clips are the middle of what is read.
    """

    def __init__(self, processors: Mapping[str, LayerLockVideoProcessor], max_mb: float, max_seconds: float):
        self.processors, self.max_mb, self.max_seconds = processors, max_mb, max_seconds
        self._take = Isolated(self._arrays, DECODE_TIMEOUT)

    def __call__(self, path: str) -> dict[str, Taken]:
        """
        Raises:
            DecodingError: if the video is too large, or cannot be read.
        """
        megabytes = os.path.getsize(path) / BYTES_PER_MB
        if megabytes > self.max_mb:
            raise DecodingError(
                f"the file must have at most {self.max_mb:g} MB, got {megabytes:.1f} MB: cut the video, or choose a "
                "smaller one",
                "too large",
            )
        return {
            name: Taken(torch.from_numpy(pixels), torch.from_numpy(frames), *rest)
            for name, (pixels, frames, *rest) in self._take(path).items()
        }

    def _arrays(self, path: str) -> dict[str, tuple]:
        """What a `Taken` is made of, with arrays in the place of tensors, as `Isolated` passes them on."""
        ends = read_clip(path, lambda length: sorted({0, length - 1}))
        begin, end = ends.timestamps[0].item(), ends.timestamps[-1].item()
        average = (ends.num_frames - 1) / (end - begin) if end > begin else 1.0
        return {name: self._clip(path, processor, begin, average) for name, processor in self.processors.items()}

    def _clip(self, path: str, processor: LayerLockVideoProcessor, begin: float, average: float) -> tuple:
        most = max(1, int(self.max_seconds * (processor.frame_rate or average)))
        clip = read_clip(
            path, lambda length: processor.sample_frames(min(length, most)), frame_rate=processor.frame_rate
        )
        # The frames are chosen already: one window of them
        window = window_of(clip.frames, clip.pixel_aspect, processor, processor.num_frames, stride=1)
        frames: np.ndarray = shown(clip.frames, clip.pixel_aspect).numpy()
        span = tuple(clip.timestamps[place].item() - begin for place in (0, -1))
        return window.clips.numpy(), frames, window.frame_size, window.box, span, clip.note


def told(name: str, clip: Taken) -> str:
    """What was taken of a video, in a line."""
    start, end = clip.span
    line = f"{len(clip.frames)} frames of {Path(name).name}, from {start:.2f} to {end:.2f} s"
    return f"{line} ({clip.note})" if clip.note else line
