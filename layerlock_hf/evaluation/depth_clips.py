"""Clips of sequences with depth, to train a readout and to test it.

A sequence is a `DepthSequence`: `name`, `group`, `len` in frames, and `read(indices)`, which gives colours, uint8
(T, 3, H, W), and depth in metres, float32 (T, h, w), 0 where it is unknown.
"""

import bisect
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..data import (
    DECODE_TIMEOUT,
    MAX_ATTEMPTS,
    Augmentation,
    BadData,
    BadVideos,
    ClipTransform,
    DecoderLost,
    DecodingError,
    check_window,
    generator_for,
    isolated,
    repeat_last_frame,
)


class DepthTrainingClips(torch.utils.data.Dataset):
    """All clips of a run. Every window of every sequence is as likely as any other.

    Everything random about a position depends only on the seed and the position. A window that cannot be read is
    replaced by another one, and reported.

    Args:
        sequences: of `DepthSequence`.
        num_samples: number of clips of the run.
        num_frames: frames T of a clip.
        frame_stride: distance between consecutive frames of a clip.
        transform: how clips are cropped, flipped (LayerLock, sec. A.4.3) and recoloured; depth follows.
        seed: seed of everything random.
        bad_videos: the report of windows that cannot be read, out of `count_windows`; by default one in memory.
        decode_timeout: seconds before giving up on a window that hangs; 0 reads in this process, without a limit.

    Indexing raises `BadData` when too many windows cannot be read.

    Raises:
        ValueError: without sequences, if one is empty, or if a value is out of its bounds.
    """

    def __init__(
        self,
        sequences: Sequence,
        num_samples: int,
        num_frames: int = 16,
        frame_stride: int = 2,
        transform: ClipTransform | None = None,
        seed: int = 0,
        bad_videos: BadVideos | None = None,
        decode_timeout: float = DECODE_TIMEOUT,
    ):
        _check_sequences(sequences)
        check_window(num_frames, frame_stride)
        self.sequences = sequences
        self.num_samples = num_samples
        self.num_frames, self.frame_stride = num_frames, frame_stride
        self.transform = ClipTransform() if transform is None else transform
        self.seed = seed
        # The number of windows of all sequences up to each
        self._ends = list(itertools.accumulate(_num_starts(sequences, num_frames, frame_stride)))
        self.bad_videos = BadVideos(None, self._ends[-1]) if bad_videos is None else bad_videos
        self._read = isolated(self._read_window, decode_timeout)
        self._lost: dict[str, tuple[str, str]] = {}  # reason and kind

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, position: int) -> dict:
        """Clip `position` of the run.

        Returns:
            pixel_values_videos: uint8, shape (T, C, S, S).
            labels: depth in metres, float32, shape (T, S, S); 0 where it is unknown, and where a sequence is too
                short and its last frame repeated.
            position: the position.
        """
        if not 0 <= position < self.num_samples:
            raise IndexError(
                f"position must be at least 0 and less than num_samples={self.num_samples}, got {position}"
            )
        failures = []
        for attempt in range(MAX_ATTEMPTS):
            number, indices, _ = self._draws(position, attempt)
            name = _name(self.sequences[number], indices)
            try:
                colors, depths = self._window(position, attempt, name)
            except DecodingError as error:
                self.bad_videos.add(name, str(error), used=False, kind=error.kind)
                failures.append(f"{name} ({error})")
                continue
            return {
                "pixel_values_videos": torch.from_numpy(colors),
                "labels": torch.from_numpy(depths),
                "position": position,
            }
        raise BadData(
            f"no clip for position {position}: {MAX_ATTEMPTS} windows in a row cannot be read, among them "
            f"{'; '.join(failures[:3])}. Repair or remove the bad sequences."
        )

    def _draws(self, position: int, attempt: int) -> tuple[int, list[int], torch.Generator]:
        """The number of the sequence that a position shows, its frames, and what other draws come from."""
        generator = generator_for("depth clip", self.seed, position, attempt)
        window = int(torch.randint(self._ends[-1], (), generator=generator))
        number = bisect.bisect_right(self._ends, window)
        first = window - (self._ends[number - 1] if number else 0)
        return number, _indices(self.sequences[number], first, self.num_frames, self.frame_stride), generator

    def _window(self, position: int, attempt: int, name: str) -> tuple[np.ndarray, np.ndarray]:
        if name in self._lost:
            raise DecodingError(*self._lost[name])
        try:
            return self._read(position, attempt)
        except DecoderLost as error:
            self._lost[name] = str(error), error.kind
            raise

    def _read_window(self, position: int, attempt: int) -> tuple[np.ndarray, np.ndarray]:
        number, indices, generator = self._draws(position, attempt)

        def augment(height: int, width: int) -> Augmentation:
            return self.transform.draw(height, width, generator)

        return _read(self.sequences[number], indices, self.num_frames, self.transform.image_size, augment)


class DepthTestClips(torch.utils.data.Dataset):
    """Clips of all sequences, in order and without overlap. Nothing is random.

    A sequence too short for one clip repeats its last frame; in a longer one, the end that fills no clip is left out.

    Args:
        sequences: of `DepthSequence`.
        num_frames: frames T of a clip.
        frame_stride: distance between consecutive frames of a clip.
        transform: that of the training clips, at whose scale the centre is seen.
        max_clips: maximum number of clips, evenly spread over all of them.
        decode_timeout: seconds before giving up on a clip that hangs; 0 reads in this process, without a limit.

    Raises:
        ValueError: without sequences, if one is empty, or if a value is out of its bounds.
    """

    def __init__(
        self,
        sequences: Sequence,
        num_frames: int = 16,
        frame_stride: int = 2,
        transform: ClipTransform | None = None,
        max_clips: int | None = None,
        decode_timeout: float = DECODE_TIMEOUT,
    ):
        _check_sequences(sequences)
        check_window(num_frames, frame_stride)
        if max_clips is not None and max_clips < 1:
            raise ValueError(f"max_clips must be at least 1, got {max_clips}")
        self.sequences = sequences
        self.num_frames, self.frame_stride = num_frames, frame_stride
        self.transform = ClipTransform() if transform is None else transform
        clips = [
            (number, first)
            for number, num_starts in enumerate(_num_starts(sequences, num_frames, frame_stride))
            for first in range(0, num_starts, num_frames * frame_stride)
        ]
        kept = len(clips) if max_clips is None else min(max_clips, len(clips))
        # The sequence and the first frame of each: the middle ones of equal parts of the list
        self._clips = [clips[(2 * part + 1) * len(clips) // (2 * kept)] for part in range(kept)]
        self._read = isolated(self._read_clip, decode_timeout)

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> dict:
        """Clip `index`.

        Returns:
            pixel_values_videos: uint8, shape (1, T, C, S, S).
            labels: depth in metres, float32, shape (T, S, S), 0 where it is unknown.
            index: the index.
            group: what the sequence belongs with.

            Of a clip that cannot be read instead:
            index: the index.
            name: the sequence and its frames.
            error: the reason.
            kind: a word or two by which reasons are counted.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index must be at least 0 and less than {len(self)}, the number of clips, got {index}")
        sequence, indices = self._shown(index)
        try:
            colors, depths = self._read(index)
        except DecodingError as error:
            name = _name(sequence, indices)
            return {"index": index, "name": name, "error": str(error), "kind": error.kind}
        return {
            "pixel_values_videos": torch.from_numpy(colors)[None],
            "labels": torch.from_numpy(depths),
            "index": index,
            "group": sequence.group,
        }

    def names(self) -> list[str]:
        """Of every clip: its sequence and frames."""
        return [_name(*self._shown(index)) for index in range(len(self))]

    def groups(self) -> list[str]:
        """Of every clip: what its sequence belongs with."""
        return [self._shown(index)[0].group for index in range(len(self))]

    def _shown(self, index: int):
        """The sequence of a clip, and its frames."""
        number, first = self._clips[index]
        sequence = self.sequences[number]
        return sequence, _indices(sequence, first, self.num_frames, self.frame_stride)

    def _read_clip(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return _read(*self._shown(index), self.num_frames, self.transform.image_size, self.transform.center)


def count_windows(sequences: Sequence, num_frames: int, frame_stride: int) -> int:
    """The number of clips that differ in their frames, of all sequences together."""
    return sum(_num_starts(sequences, num_frames, frame_stride))


def crop_depth(depths: torch.Tensor, augmentation: Augmentation, height: int, width: int, size: int) -> torch.Tensor:
    """The depth at the centre of every pixel of `augmentation.finish`, of the nearest pixel that has been measured.

    Nothing is averaged: between an object and what is behind it there is nothing. What the nearest pixel was measured
    at is at most half a pixel of `depths` away, in each direction.

    Args:
        depths: shape (T, h, w), of the same view as the colours, in another number of pixels perhaps.
        augmentation: of colours of this height and width.
        height: of the colours, in pixels.
        width: likewise.
        size: side S of the result.

    Returns:
        shape (T, S, S).
    """
    top, left, box_height, box_width = augmentation.box
    rows = _nearest(top, box_height, height, depths.shape[-2], size)
    columns = _nearest(left, box_width, width, depths.shape[-1], size)
    seen = depths[:, rows[:, None], columns]
    return seen.flip(-1) if augmentation.is_flipped else seen


def _nearest(first: int, length: int, total: int, num_pixels: int, size: int) -> torch.Tensor:
    """Which of `num_pixels` in a row hold the centres of `size` parts of [first, first + length) of `total`."""
    # In whole numbers: ((2 i + 1) / (2 size) * length + first) / total * num_pixels
    return ((2 * torch.arange(size) + 1) * length + 2 * size * first) * num_pixels // (2 * size * total)


def _read(
    sequence, indices: list[int], num_frames: int, image_size: int, augment: Callable[[int, int], Augmentation]
) -> tuple[np.ndarray, np.ndarray]:
    """Colours and depth of these frames, cropped alike, and brought to their number."""
    colors, depths = sequence.read(indices)
    if not len(colors) == len(depths) == len(indices):
        counts = f"{len(colors)} of colour and {len(depths)} of depth"
        raise ValueError(f"{_name(sequence, indices)}: `read` must give {len(indices)} frames, got {counts}")
    height, width = colors.shape[-2:]
    augmentation = augment(height, width)
    colors = augmentation.finish(augmentation.crop(colors), image_size)
    depths = crop_depth(depths, augmentation, height, width, image_size)
    missing = depths.new_zeros(num_frames - len(depths), image_size, image_size)
    return repeat_last_frame(colors, num_frames).contiguous().numpy(), torch.cat([depths, missing]).numpy()


def _num_starts(sequences: Sequence, num_frames: int, frame_stride: int) -> list[int]:
    """The number of frames of each sequence that a clip may begin with."""
    span = (num_frames - 1) * frame_stride + 1
    return [max(1, len(sequence) - span + 1) for sequence in sequences]


def _indices(sequence, first: int, num_frames: int, frame_stride: int) -> list[int]:
    return list(range(first, len(sequence), frame_stride))[:num_frames]


def _name(sequence, indices: list[int]) -> str:
    return f"{sequence.name}, frames {indices[0]} to {indices[-1]}"


def _check_sequences(sequences: Sequence):
    if len(sequences) == 0:
        raise ValueError("sequences must hold at least one sequence, got none")
    for sequence in sequences:
        if len(sequence) == 0:
            raise ValueError(f"sequence {sequence.name!r} has no frames: remove it")
