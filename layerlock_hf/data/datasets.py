"""The clips of a pretraining run."""

import numpy as np
import torch

from .clips import Clip, DecodingError
from .decoding import read_clip
from .decoding_torchcodec import torchcodec_decoder
from .isolation import DecoderLost, Isolated
from .reports import BadData, BadVideos
from .transforms import (
    check_scale,
    check_strength,
    color_jitter,
    generator_for,
    random_crop,
    random_flip,
    random_resized_crop,
    repeat_last_frame,
)


MAX_ATTEMPTS = 10
RESIZE_FACTOR = 1.15
DECODE_TIMEOUT = 60.0

# What a row without a value stands for
NO_VIDEO = {"path": None, "bytes": None}


class PretrainingClips(torch.utils.data.Dataset):
    """All clips of a run, as one pass over positions: clip p belongs to epoch p // len(videos).

    Every epoch visits every video once, in an order of its own. What is random about a position (video, window, crop,
    flip, replacement) depends on the seed and the position alone: neither the number of processes and workers nor a
    resumed run changes any clip.

    Args:
        videos: the dataset of `load_videos`.
        num_samples: number of clips of the run.
        num_frames: frames T of a clip.
        frame_stride: distance between consecutive frames of a clip.
        image_size: side of the frames in pixels.
        resize_factor: see `random_crop`; 1.15 by default.
        crop_scale: the `scale` of `random_resized_crop`, which then takes the place of `random_crop`.
        jitter_strength: the `strength` of `color_jitter`; 0 leaves colours alone.
        seed: seed of everything random.
        bad_videos: the report of videos that cannot be used; by default one in memory.
        decode_timeout: seconds until a video that hangs is given up. Clips are made in a child process, so that one
            that crashes harms nothing else; 0 makes them in this process, without a limit.

    Indexing raises `BadData` when too many videos cannot be used.
    """

    def __init__(
        self,
        videos,
        num_samples: int,
        num_frames: int = 16,
        frame_stride: int = 2,
        image_size: int = 224,
        resize_factor: float | None = None,
        crop_scale: tuple[float, float] | None = None,
        jitter_strength: float = 0.0,
        seed: int = 0,
        bad_videos: BadVideos | None = None,
        decode_timeout: float = DECODE_TIMEOUT,
    ):
        if len(videos) == 0:
            raise ValueError("videos is empty; give at least one video")
        for name, value in (("num_frames", num_frames), ("frame_stride", frame_stride), ("image_size", image_size)):
            if value < 1:
                raise ValueError(f"{name} is {value}; give at least 1")
        if crop_scale is not None:
            if resize_factor is not None:
                raise ValueError(f"resize_factor is {resize_factor} and crop_scale {crop_scale}; give one of the two")
            check_scale(crop_scale)
        check_strength(jitter_strength)
        resize_factor = RESIZE_FACTOR if resize_factor is None else resize_factor
        if resize_factor < 1:
            raise ValueError(f"resize_factor is {resize_factor}; give at least 1")
        if decode_timeout != 0 and not 0.1 <= decode_timeout <= 1e6:
            raise ValueError(f"decode_timeout is {decode_timeout}; give seconds from 0.1 on, or 0 for no limit")
        self.videos = videos
        self.num_samples = num_samples
        self.num_frames = num_frames
        self.frame_stride = frame_stride
        self.image_size = image_size
        self.resize_factor = resize_factor
        self.crop_scale = crop_scale
        self.jitter_strength = jitter_strength
        self.seed = seed
        self.bad_videos = bad_videos if bad_videos is not None else BadVideos(None, len(videos))
        torchcodec_decoder()  # loaded here once, and not by every child within its first decode_timeout
        self._epoch = -1
        self._order: list[int] = []
        self._make = Isolated(self._make_clip, decode_timeout) if decode_timeout else self._make_clip
        self._lost: dict[int, str] = {}

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, position: int) -> dict:
        """Clip `position` of the run.

        Returns:
            pixel_values_videos: uint8, shape (T, C, H, W).
            position: the position.
            is_padded: whether the video is too short, and its last frame repeated.
        """
        if not 0 <= position < self.num_samples:
            raise IndexError(f"position {position} is outside the run of {self.num_samples} clips")
        failures = []
        for attempt in range(MAX_ATTEMPTS):
            index = self._video_at(position) if attempt == 0 else self._replacement(position, attempt)
            try:
                frames, is_padded, note = self._clip(index, position, attempt)
            except DecodingError as error:
                name = self._name(index)
                self.bad_videos.add(name, str(error), used=False)
                failures.append(f"{name} ({error})")
                continue
            if note is not None:
                self.bad_videos.add(self._name(index), note, used=True)
            return {"pixel_values_videos": torch.from_numpy(frames), "position": position, "is_padded": is_padded}
        raise BadData(
            f"no clip for position {position}: {MAX_ATTEMPTS} videos in a row cannot be decoded, among them "
            f"{'; '.join(failures[:3])}. Repair or remove the bad videos."
        )

    def _video_at(self, position: int) -> int:
        epoch, offset = divmod(position, len(self.videos))
        if epoch != self._epoch:
            generator = generator_for("epoch", self.seed, epoch)
            self._order = torch.randperm(len(self.videos), generator=generator).tolist()
            self._epoch = epoch
        return self._order[offset]

    def _replacement(self, position: int, attempt: int) -> int:
        generator = generator_for("replacement", self.seed, position, attempt)
        return int(torch.randint(len(self.videos), (), generator=generator))

    def _name(self, index: int) -> str:
        """The name of a video in reports."""
        video = self.videos[index]["video"] or NO_VIDEO
        # The path of embedded bytes is a mere file name, which several rows may share.
        is_path = video["bytes"] is None and video["path"] is not None
        return video["path"] if is_path else f"row {index} ({video['path']})"

    def _clip(self, index: int, position: int, attempt: int) -> tuple[np.ndarray, bool, str | None]:
        if index in self._lost:
            raise DecodingError(self._lost[index])
        try:
            return self._make(index, position, attempt)
        except DecoderLost as error:
            self._lost[index] = str(error)
            raise

    def _make_clip(self, index: int, position: int, attempt: int) -> tuple[np.ndarray, bool, str | None]:
        """Frames (T, C, H, W) of a video, whether the last one is repeated, and what is wrong with the video."""
        generator = generator_for("clip", self.seed, position, attempt)
        video = self.videos[index]["video"] or NO_VIDEO
        source = video["path"] if video["bytes"] is None else video["bytes"]
        if source is None:
            raise DecodingError("the row has no video")
        clip = self._read(source, generator)
        frames = self._transform(clip.frames, generator)
        if clip.num_frames < self.num_frames:
            clip.note = clip.note or f"has {clip.num_frames} frames, fewer than a clip of {self.num_frames}"
        full = repeat_last_frame(frames, self.num_frames)
        return full.contiguous().numpy(), len(frames) < len(full), clip.note

    def _read(self, source: str | bytes, generator: torch.Generator) -> Clip:
        # Drawn before decoding: a second choice for the same video with another number of frames draws nothing new.
        fraction = float(torch.rand((), generator=generator))
        span = (self.num_frames - 1) * self.frame_stride + 1

        def choose(available: int) -> list[int]:
            start = int(fraction * max(1, available - span + 1))
            return list(range(start, available, self.frame_stride))[: self.num_frames]

        return read_clip(source, choose)

    def _transform(self, frames: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        if self.crop_scale is None:
            frames = random_crop(frames, self.image_size, self.resize_factor, generator)
        else:
            frames = random_resized_crop(frames, self.image_size, generator, self.crop_scale)
        frames = random_flip(frames, generator)
        return color_jitter(frames, self.jitter_strength, generator) if self.jitter_strength else frames
