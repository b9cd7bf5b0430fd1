"""The clips of a pretraining run."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from ..models.video_reading_timeline import Choose
from ..models.video_reading_torchcodec import torchcodec_decoder
from .clips import Crop, DecodingError
from .decoding import read_clip
from .isolation import DecoderLost, Isolated
from .order import ClipOrder
from .reports import BadData, BadVideos
from .timing import timed
from .transforms import Augmentation, ClipTransform, bounding_box, generator_for, repeat_last_frame
from .video_access import fetch, is_remote, name_of


MAX_ATTEMPTS = 10
DECODE_TIMEOUT = 60.0
# Remote videos that a process fetches at once, and holds in memory
NUM_FETCHES = 8
DEVICES = ("cpu", "cuda")


@dataclass
class ClipGroup:
    """What the process that decodes makes of one video.

    Attributes:
        frames: uint8, one array per clip: (T, C, S, S), or before its augmentation (T', C, h, w), T' <= T.
        augmentations: what was drawn for each clip.
        are_augmented: whether that is done to the frames, or still to be done.
        is_padded: whether the video is too short, and its last frame repeated.
        timestamps: when the T' frames that are no repetition are shown, in seconds; NaN where that is unknown.
        num_frames: of the video.
        note, kind: what is wrong with the video, if anything.
    """

    frames: list[np.ndarray]
    augmentations: list[Augmentation]
    are_augmented: bool
    is_padded: bool
    timestamps: list[float]
    num_frames: int
    note: str | None
    kind: str = "damaged"

    def samples(self, positions: list[int], index: int) -> list[dict]:
        """The clips at these positions, of the video in row `index`, as `PretrainingClips` gives them."""
        samples = []
        for frames, augmentation, position in zip(self.frames, self.augmentations, positions, strict=True):
            pixels = torch.from_numpy(frames)
            if self.are_augmented:
                content = {"pixel_values_videos": pixels}
            else:
                content = {"crop": pixels, "augmentation": augmentation}
            samples.append(content | {"position": position, "video_index": index, "is_padded": self.is_padded})
        return samples


class PretrainingClips(torch.utils.data.Dataset):
    """All clips of a run, as one pass over positions; `ClipOrder` decides which video a position shows.

    The randomness of a position (video, window, crop, flip, colours, replacement) depends only on the seed and the
    position: neither the number of processes and workers nor resuming a run changes any clip. Asked for a whole
    batch, as by a `DataLoader`, it decodes a group of `clips_per_video` positions once, and fetches remote videos
    several at a time.

    Args:
        videos: the dataset of `load_videos`.
        num_samples: number of clips of the run.
        num_frames: frames T of a clip.
        frame_stride: distance between consecutive frames of a clip.
        transform: how clips are cropped, flipped and recoloured.
        seed: seed of all randomness.
        clips_per_video: number of clips made from one decoded window, each augmented independently: see `ClipOrder`.
        source_weights: share of the clips from each source of `videos`; by default all videos are shown equally often.
        frame_rate: frames per second at which `frame_stride` counts; by default each video's own.
        bad_videos: the report of unusable videos; by default one in memory.
        decode_timeout: seconds before giving up on a video that hangs. Clips are made in a child process, so that one
            that crashes harms nothing else; 0 makes them in this process, without a limit.
        device: "cpu", or "cuda" to decode on the GPU, from data workers that were not forked: their start method is
            "forkserver" or "spawn".
        augment_on_device: leave resizing, flips and colours to the trainer: samples hold `crop` and `augmentation`.

    Indexing raises `BadData` once too many videos are unusable.
    """

    def __init__(
        self,
        videos,
        num_samples: int,
        num_frames: int = 16,
        frame_stride: int = 2,
        transform: ClipTransform | None = None,
        seed: int = 0,
        clips_per_video: int = 1,
        source_weights: Sequence[float] | None = None,
        frame_rate: float | None = None,
        bad_videos: BadVideos | None = None,
        decode_timeout: float = DECODE_TIMEOUT,
        device: str = "cpu",
        augment_on_device: bool = False,
    ):
        if len(videos) == 0:
            raise ValueError("videos must hold at least one video, got none")
        check_window(num_frames, frame_stride, frame_rate)
        _check_device(device)
        self.videos = videos
        self.num_samples = num_samples
        self.num_frames = num_frames
        self.frame_stride = frame_stride
        self.transform = ClipTransform() if transform is None else transform
        self.seed = seed
        self.frame_rate = frame_rate
        self.bad_videos = bad_videos if bad_videos is not None else BadVideos(None, len(videos))
        self.device = device
        self.augment_on_device = augment_on_device
        sources = videos.with_format("torch")["source"][:] if "source" in videos.column_names else None
        self.order = ClipOrder(len(videos), sources, source_weights, clips_per_video, seed)
        self._make = isolated(self._make_group, decode_timeout)
        self._lost: dict[int, tuple[str, str]] = {}  # reason and kind
        self._home = os.getpid()

    def __setstate__(self, state: dict):
        self.__dict__ = {**state, "_home": os.getpid()}

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, position: int) -> dict:
        """Clip `position` of the run.

        Returns:
            pixel_values_videos: uint8, shape (T, C, S, S).
            position: the position.
            video_index: the row of the video that is shown, which may be a replacement.
            is_padded: whether the video is too short, and its last frame repeated.

            With `augment_on_device` instead of `pixel_values_videos`:
            crop: uint8, shape (T', C, h, w), the window of the frames that the clip shows; T' < T if `is_padded`.
            augmentation: the `Augmentation` whose `finish` makes the clip of it.
        """
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[dict]:
        """The clips of several positions, at less cost than one by one."""
        for position in positions:
            if not 0 <= position < self.num_samples:
                raise IndexError(
                    f"position must be at least 0 and less than num_samples={self.num_samples}, got {position}"
                )
        if self.device != "cpu" and (os.getpid() != self._home or torch.cuda.is_initialized()):
            raise RuntimeError(
                "a process that uses the GPU, or was forked from one that does, cannot start another that decodes on "
                'it: give the DataLoader num_workers of at least 1 and multiprocessing_context="forkserver"'
            )
        groups = [(first, list(members)) for first, members in itertools.groupby(positions, self.order.first_of)]
        samples = []
        for start in range(0, len(groups), NUM_FETCHES):
            some = groups[start : start + NUM_FETCHES]
            fetched = self._fetch_remote([self.order.video_at(first) for first, _ in some])
            for first, members in some:
                samples += self._samples(first, members, fetched)
        return samples

    def group_of(self, index: int, positions: list[int], attempt: int = 0) -> ClipGroup:
        """The clips at positions of one group, of the video in row `index`.

        Args:
            index: the row.
            positions: of the run.
            attempt: how many videos before could not be used.

        Raises:
            DecodingError: if this video cannot be used either.
        """
        source = self._fetch_remote([index])[index]
        return self._group(index, source, self.order.first_of(positions[0]), positions, attempt)

    def _samples(self, first: int, positions: list[int], fetched: dict) -> list[dict]:
        """The clips of positions of one group, of the first video that can be used."""
        failures, kinds = [], set()
        for attempt, index in enumerate(self._candidates(first)):
            try:
                if attempt == 0:
                    group = self._group(index, fetched[index], first, positions, attempt)
                else:
                    group = self.group_of(index, positions, attempt)
            except DecodingError as error:
                name = self._name(index)
                self.bad_videos.add(name, str(error), used=False, kind=error.kind)
                failures.append(f"{name} ({error})")
                kinds.add(error.kind)
                continue
            if group.note is not None:
                self.bad_videos.add(self._name(index), group.note, used=True, kind=group.kind)
            return group.samples(positions, index)
        if kinds == {"network"}:
            advice = "Once the network is back, resume from the last checkpoint"
        else:
            advice = "Repair or remove the bad videos"
        raise BadData(
            f"no clip for position {first}: {MAX_ATTEMPTS} videos in a row cannot be used, among them "
            f"{'; '.join(failures[:3])}. {advice}."
        )

    def _candidates(self, first: int) -> Iterator[int]:
        yield self.order.video_at(first)
        for attempt in range(1, MAX_ATTEMPTS):
            yield self.order.replacement(first, attempt)

    def _name(self, index: int) -> str:
        return name_of(self.videos[index], index)

    def _fetch_remote(self, indices: list[int]) -> dict[int, str | bytes | DecodingError | None]:
        """The remote ones of these videos, or why they cannot be had; None for the others, and for those given up.

        No thread outlives the call: the process that decodes may be forked from this one at any time later.
        """
        fetched = dict.fromkeys(indices)
        with timed("fetch"):
            rows = {index: self.videos[index] for index in fetched if index not in self._lost}
            remote = {index: row for index, row in rows.items() if is_remote(row)}
            if remote:
                with ThreadPoolExecutor(min(NUM_FETCHES, len(remote))) as pool:
                    fetched |= zip(remote, pool.map(_fetch_or_error, remote.values()), strict=True)
        return fetched

    def _group(
        self, index: int, source: str | bytes | DecodingError | None, first: int, positions: list[int], attempt: int
    ) -> ClipGroup:
        if index in self._lost:
            raise DecodingError(*self._lost[index])
        if isinstance(source, DecodingError):
            raise source
        try:
            return self._make(index, source, first, positions, attempt)
        except DecoderLost as error:
            self._lost[index] = str(error), error.kind
            raise

    def _make_group(
        self, index: int, source: str | bytes | None, first: int, positions: list[int], attempt: int
    ) -> ClipGroup:
        augmentations = []

        def box(*shape: float) -> tuple[int, int, int, int]:
            augmentations[:] = [self.draw(position, *shape, attempt=attempt) for position in positions]
            return bounding_box(augmentations)

        with timed("fetch"):
            source = fetch(self.videos[index]) if source is None else source
        is_resized = len(positions) == 1 and not self.augment_on_device
        crop = Crop(box, self.transform.image_size if is_resized else None)
        window = self.window(first, attempt)
        with timed("decode"):
            clip = read_clip(source, window, crop=crop, frame_rate=self.frame_rate, device=self.device)
        kind = "damaged"
        if clip.note is None and clip.num_frames < self.num_frames:
            clip.note = f"has {clip.num_frames} frames, fewer than a clip of {self.num_frames}"
            kind = "too short"
        elif clip.note is None and 2 * len(clip.frames) <= self.num_frames:
            clip.note = (
                f"has {clip.num_frames} frames, of which a clip shows {len(clip.frames)} at frame_stride="
                f"{self.frame_stride}, and repeats the last"
            )
            kind = "too short"
        top, left, _, _ = bounding_box(augmentations)
        frames = []
        with timed("transform"):
            for augmentation in augmentations:
                part = clip.frames if is_resized else augmentation.crop(clip.frames, top, left)
                if not self.augment_on_device:
                    part = repeat_last_frame(augmentation.finish(part, self.transform.image_size), self.num_frames)
                frames.append(part.contiguous().numpy())
        return ClipGroup(
            frames,
            augmentations,
            are_augmented=not self.augment_on_device,
            is_padded=len(clip.frames) < self.num_frames,
            timestamps=clip.timestamps.tolist(),
            num_frames=clip.num_frames,
            note=clip.note,
            kind=kind,
        )

    def window(self, first: int, attempt: int = 0) -> Choose:
        """The function from the number of frames of a video to the frames that the clips of a group show.

        Args:
            first: the first position of the group.
            attempt: number of videos tried before that could not be used.
        """
        fraction, _ = self._draws(first, attempt)
        span = (self.num_frames - 1) * self.frame_stride + 1

        # Draws nothing: a second choice for the same video with another number of frames is as random as the first
        def choose(available: int) -> list[int]:
            start = int(fraction * max(1, available - span + 1))
            return list(range(start, available, self.frame_stride))[: self.num_frames]

        return choose

    def draw(
        self, position: int, height: int, width: int, pixel_aspect: float = 1.0, attempt: int = 0
    ) -> Augmentation:
        """How the clip at a position is augmented if its video has frames of this shape."""
        _, generator = self._draws(position, attempt)
        return self.transform.draw(height, width, generator, pixel_aspect)

    def _draws(self, position: int, attempt: int) -> tuple[float, torch.Generator]:
        """Where in the video the window of a position lies, as a fraction, and what its other draws come from."""
        generator = generator_for("clip", self.seed, position, attempt)
        return float(torch.rand((), generator=generator)), generator


def check_window(num_frames: int, frame_stride: int, frame_rate: float | None = None):
    """
    Raises:
        ValueError: naming the setting that is out of range.
    """
    for name, value in (("num_frames", num_frames), ("frame_stride", frame_stride)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if frame_rate is not None and not 0 < frame_rate <= 1000:
        raise ValueError(f"frame_rate must be above 0 and at most 1000 frames per second, got {frame_rate}")


def isolated(function: Callable, decode_timeout: float) -> Callable:
    """A function that decodes, made to run in a child process; the function itself if `decode_timeout` is 0."""
    if decode_timeout != 0 and not 0.1 <= decode_timeout <= 1e6:
        raise ValueError(
            f"decode_timeout must be between 0.1 and 1e6 seconds, or 0 for no limit, got {decode_timeout}"
        )
    torchcodec_decoder()  # loaded here once, and not by every child within its first decode_timeout
    return Isolated(function, decode_timeout) if decode_timeout else function


def _fetch_or_error(row: dict) -> str | bytes | DecodingError:
    try:
        return fetch(row)
    except DecodingError as error:
        return error


def _check_device(device: str):
    if device not in DEVICES:
        raise ValueError(f"device (decode_device in recipes) must be one of {', '.join(DEVICES)}, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device (decode_device in recipes) must be cpu where PyTorch finds no GPU, got cuda")
    if device == "cuda" and torchcodec_decoder() is None:
        raise ValueError("device (decode_device in recipes) must be cpu where torchcodec does not load, got cuda")
