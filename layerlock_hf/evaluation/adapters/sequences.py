"""Recordings of colour and depth, made of what reads the one and what reads the other."""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers.utils import logging

from ...data import DecodingError, read_clip
from .base import DepthSequence
from .images import (
    MAX_MEDIAN,
    MIN_MEDIAN,
    NOT_METRIC,
    decode_colour,
    decode_depth,
    is_plausible,
    read_bytes,
    stack,
    to_metres,
)


logger = logging.get_logger(__name__)

NUMBER = re.compile(r"\d+$")  # at the end of a name, such as that of rgb_00000
# Frames looked at, from the first to the last, until one has known depth
NUM_LOOKED_AT = 5


class Frames(Protocol):
    """What reads some of a number of frames."""

    def __len__(self) -> int: ...

    def read(self, indices: list[int]) -> Tensor: ...


@dataclass(frozen=True)
class ImageFrames:
    """Colour in a JPEG or PNG per frame."""

    paths: Sequence[str]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices: list[int]) -> Tensor:
        """Uint8 (T, 3, H, W)."""
        paths = [self.paths[index] for index in indices]
        return stack([decode_colour(read_bytes(path), path) for path in paths], paths[0])


@dataclass(frozen=True)
class VideoFrames:
    """Colour in a video, of which some frames count: `frames` are their numbers, ascending."""

    path: str
    frames: Sequence[int]

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, indices: list[int]) -> Tensor:
        """Uint8 (T, 3, H, W)."""
        wanted = sorted({self.frames[index] for index in indices})

        def choose(num_frames: int) -> list[int]:
            if num_frames <= wanted[-1]:
                raise DecodingError(f"{self.path}: frame {wanted[-1]} is missing, only {num_frames} decode")
            return wanted

        frames = read_clip(self.path, choose).frames
        return frames[[wanted.index(self.frames[index]) for index in indices]]


@dataclass(frozen=True)
class DepthImages:
    """Depth in a 16-bit PNG per frame.

    Attributes:
        paths: of the images.
        per_metre: how many of their units are a metre.
        invalid: the number that means unknown depth, besides 0.
    """

    paths: Sequence[str]
    per_metre: float
    invalid: int = 0

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices: list[int]) -> Tensor:
        """Float32 (T, h, w) in metres, 0 where unknown."""
        paths = [self.paths[index] for index in indices]
        images = [to_metres(decode_depth(read_bytes(path), path), self.per_metre, self.invalid) for path in paths]
        return stack(images, paths[0])


@dataclass(frozen=True)
class PairedSequence:
    """A `DepthSequence` whose frame i is frame i of `colour` and of `depth`."""

    name: str
    group: str
    colour: Frames
    depth: Frames

    def __post_init__(self):
        if len(self.colour) != len(self.depth):
            raise ValueError(
                f"{self.name}: colour and depth must have the same number of frames, got {len(self.colour)} and "
                f"{len(self.depth)}"
            )

    def __len__(self) -> int:
        return len(self.depth)

    def read(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self.colour.read(indices), self.depth.read(indices)


@dataclass(frozen=True)
class Excerpt:
    """A `DepthSequence` of consecutive frames of another."""

    whole: DepthSequence
    frames: range

    def __post_init__(self):
        if self.frames.stop > len(self.whole):
            raise ValueError(
                f"{self.whole.name}: frames must be between 0 and {len(self.whole) - 1}, got {self.frames.stop - 1}"
            )

    @property
    def name(self) -> str:
        return f"{self.whole.name}:{self.frames.start}-{self.frames.stop - 1}"

    @property
    def group(self) -> str:
        return self.whole.group

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self.whole.read([self.frames[index] for index in indices])


def check_metric(name: str, num_frames: int, read: Callable[[list[int]], Tensor]):
    """Raise a `ValueError` if depth is not in metres, as far as a few frames tell, or none of these can be read.

    Args:
        name: of the recording, for the message.
        num_frames: that it has.
        read: gives the depth (T, h, w) of the frames with these numbers.
    """
    reason = "no pixel with known depth"
    for position in torch.linspace(0, num_frames - 1, min(NUM_LOOKED_AT, num_frames)).long().tolist():
        try:
            frame = read([position])[0]
        except DecodingError as error:
            if error.kind == NOT_METRIC:
                raise ValueError(f"{name}: depth is not metric: {error}") from error
            reason = str(error)
            continue
        if (frame > 0).any():
            if not is_plausible(frame):
                raise ValueError(
                    f"{name}: depth is not metric: the median depth of frame {position} must be between {MIN_MEDIAN} "
                    f"and {MAX_MEDIAN} m, got {frame[frame > 0].median().item():.4g} m"
                )
            return
    raise ValueError(f"{name}: no depth can be read: {reason}")


def numbered(folder: Path, *patterns: str) -> dict[int, str]:
    """The images of a folder by the number that each is called.

    Raises:
        ValueError: if one is called something else, or two have one number.
    """
    found = {}
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        digits = NUMBER.search(path.stem)
        if digits is None or int(digits[0]) in found:
            raise ValueError(f"{str(path)!r}: images of {str(folder)!r} must have a number each, such as 000000.png")
        found[int(digits[0])] = str(path)
    return found


def pair(name: str, colour: Collection, depth: Collection) -> list:
    """What names a frame, such as its number, of all that have colour and depth, in order; a warning of the others.

    Raises:
        ValueError: if there is none.
    """
    both = sorted(set(colour) & set(depth))
    if not both:
        raise ValueError(f"{name}: {len(colour)} frames of colour and {len(depth)} of depth, but no frame has both")
    if len(both) < max(len(colour), len(depth)):
        logger.warning(
            f"{name}: {len(both)} frames have both colour and depth, of {len(colour)} with colour and {len(depth)} "
            "with depth: the others are skipped"
        )
    return both
