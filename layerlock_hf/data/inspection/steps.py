"""What a data worker does for a clip, step by step, with the seconds each step takes."""

import contextlib
import functools
import io
import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import av
import numpy as np
import torch
from accelerate.utils import send_to_device

from ...data import (
    Augmentation,
    BadVideos,
    Crop,
    DecodingError,
    Isolated,
    PretrainingClips,
    PretrainingCollator,
    read_clip,
    repeat_last_frame,
)
from ..decoding_pyav import open_video
from ..video_access import fetch, is_remote, name_of


# In order: those of a data worker, and those of the process that trains
WORKER_STEPS = ("fetch", "decode", "transform", "hand over", "collate")
MAIN_STEPS = ("transfer", "augment")
# Packets at the start of a video that tell how far its keyframes are apart
MAX_PACKETS = 600
NUM_BATCHES = 5


@dataclass
class Facts:
    """What a file says of its video.

    Attributes:
        height, width: of a frame in pixels, as stored.
        codec: such as "h264".
        frame_rate: frames per second, None where it is not known.
        keyframe_interval: mean number of frames from one keyframe to the next; of a lone keyframe the frames after it.
    """

    height: int
    width: int
    codec: str
    frame_rate: float | None
    keyframe_interval: float


@dataclass
class Look:
    """One clip of a run, as it came to be.

    Attributes:
        name: of the video.
        position: of the clip in the run.
        frames: uint8, the clip (T, C, S, S), or the crop (T', C, h, w) that it is made of on the device.
        is_crop: which of the two.
        timestamps: of the frames in seconds, fewer than T where the last one is repeated; NaN where not known.
        num_frames: of the video.
        facts: about the file.
        augmentation: what was drawn.
        note: what is wrong with the video, None for a healthy one.
        seconds: by step.
    """

    name: str
    position: int
    frames: np.ndarray
    is_crop: bool
    timestamps: list[float]
    num_frames: int
    facts: Facts
    augmentation: Augmentation
    note: str | None
    seconds: dict[str, float] = field(default_factory=dict)

    def clip(self, image_size: int, num_frames: int) -> np.ndarray:
        """What the model sees, uint8, shape (T, C, S, S)."""
        if not self.is_crop:
            return self.frames
        return repeat_last_frame(
            self.augmentation.finish(torch.from_numpy(self.frames), image_size), num_frames
        ).numpy()

    def sample(self, position: int) -> dict:
        """What `PretrainingClips` hands to the collator."""
        frames = torch.from_numpy(self.frames)
        if self.is_crop:
            content = {"crop": frames, "augmentation": self.augmentation}
        else:
            content = {"pixel_values_videos": frames}
        return content | {"position": position, "video_index": 0, "is_padded": False}


def look_at_clips(clips: PretrainingClips, decode_timeout: float, num_clips: int, report: BadVideos) -> list[Look]:
    """The first clip of each of the first videos of a run that can be decoded; the others are reported.

    As in a run they are made in a child process, unless `decode_timeout` is 0.
    """
    make = functools.partial(_look_at, clips)
    make = Isolated(make, decode_timeout) if decode_timeout else make
    looks, is_warm = [], False
    per_video = clips.order.clips_per_video
    for position in range(0, per_video * len(clips.videos), per_video):
        if len(looks) == num_clips:
            break
        index = clips.order.video_at(position)
        row = clips.videos[index]
        watch = _Stopwatch()
        try:
            source = fetch(row) if is_remote(row) else None  # others are read where they are decoded
            watch.lap("fetch")
            if not is_warm:  # what is loaded and started at the first clip is no part of any
                make(index, source, position)
                is_warm = True
                watch.restart()
            look = make(index, source, position)
            watch.lap("make")
        except DecodingError as error:
            report.add(name_of(row, index), str(error), used=False, kind=error.kind)
            continue
        if look.note is not None:
            report.add(look.name, look.note, used=True)
        if decode_timeout:
            look.seconds["hand over"] = max(0.0, watch.seconds["make"] - sum(look.seconds.values()))
        del look.seconds["facts"]
        look.seconds["fetch"] += watch.seconds["fetch"]
        for step in ("fetch", "decode"):  # done once for all clips of the video
            look.seconds[step] /= per_video
        looks.append(look)
    return looks


def _look_at(clips: PretrainingClips, index: int, source: str | bytes | None, position: int) -> Look:
    """The clip of the video in row `index` as `PretrainingClips` makes it, in the same steps."""
    watch = _Stopwatch()
    row = clips.videos[index]
    source = fetch(row) if source is None else source
    watch.lap("fetch")

    drawn = []

    def box(*shape: float) -> tuple[int, int, int, int]:
        drawn[:] = [clips.draw(position, *shape)]
        return drawn[0].box

    clip = read_clip(source, clips.window(position), crop=Crop(box), frame_rate=clips.frame_rate, device=clips.device)
    watch.lap("decode")

    augmentation, frames = drawn[0], clip.frames
    if not clips.augment_on_device:
        frames = augmentation.finish(frames, clips.transform.image_size)
        frames = repeat_last_frame(frames, clips.num_frames)
    frames = frames.contiguous().numpy()
    watch.lap("transform")

    facts = _facts(source)
    watch.lap("facts")
    note = clip.note
    if note is None and clip.num_frames < clips.num_frames:
        note = f"has {clip.num_frames} frames, fewer than a clip of {clips.num_frames}"
    return Look(
        name=name_of(row, index),
        position=position,
        frames=frames,
        is_crop=clips.augment_on_device,
        timestamps=clip.timestamps.tolist(),
        num_frames=clip.num_frames,
        facts=facts,
        augmentation=augmentation,
        note=note,
        seconds=watch.seconds,
    )


def _facts(source: str | bytes) -> Facts:
    """From the first packets, before any damage."""
    file = io.BytesIO(source) if isinstance(source, bytes) else os.path.abspath(source)
    are_keyframes = []
    with open_video(file) as container:
        stream = container.streams.best("video")
        with contextlib.suppress(av.FFmpegError):
            packets = (packet for packet in container.demux(stream) if packet.size)
            for packet in itertools.islice(packets, MAX_PACKETS):
                are_keyframes.append(packet.is_keyframe)
        rate = stream.average_rate or stream.guessed_rate
        interval = len(are_keyframes) / max(1, sum(are_keyframes))
        return Facts(stream.height, stream.width, stream.codec_context.name, rate and float(rate), interval)


class _Stopwatch:
    def __init__(self):
        self.seconds = {}
        self.restart()

    def restart(self):
        self._last = time.perf_counter()

    def lap(self, name: str):
        self.seconds[name] = time.perf_counter() - self._last
        self.restart()


def time_batches(
    looks: list[Look],
    collator: PretrainingCollator,
    batch_transform: Callable[[dict], dict] | None,
    batch_size: int,
    device: torch.device,
    is_pinned: bool,
) -> dict[str, float]:
    """Seconds per clip to make a batch, its masks included, to bring it to a GPU, and to augment it there."""
    num_threads = torch.get_num_threads()
    rounds = []
    for number in range(NUM_BATCHES):
        # Other positions have other masks to draw
        positions = range(number * batch_size, (number + 1) * batch_size)
        samples = [look.sample(position) for position, look in zip(positions, itertools.cycle(looks), strict=False)]
        torch.set_num_threads(1)  # those of a worker
        watch = _Stopwatch()
        batch = collator(samples)
        watch.lap("collate")
        torch.set_num_threads(num_threads)
        if device.type != "cpu":
            # A thread of the main process pins batches while the device computes
            batch = {
                name: value.pin_memory() if is_pinned and isinstance(value, torch.Tensor) else value
                for name, value in batch.items()
            }
            _wait_for(device)
            watch.restart()
            batch = send_to_device(batch, device)
            _wait_for(device)
            watch.lap("transfer")
        if batch_transform is not None:
            watch.restart()
            batch_transform(batch)
            _wait_for(device)
            watch.lap("augment")
        rounds.append(watch.seconds)
    return {step: float(np.median([seconds[step] for seconds in rounds])) / batch_size for step in rounds[0]}


def _wait_for(device: torch.device):
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def clips_per_second(
    clips: PretrainingClips,
    collator: PretrainingCollator,
    batch_size: int,
    first: int,
    num_workers: int,
    seconds: float,
) -> float:
    """What a `DataLoader` of so many workers yields, from batch `first` on, to one who does nothing else."""
    positions = range(first * batch_size, len(clips))
    loader = torch.utils.data.DataLoader(
        clips, batch_size, sampler=positions, num_workers=num_workers, collate_fn=collator
    )
    batches = iter(loader)
    for _ in range(max(1, num_workers)):  # every worker has started
        next(batches)
    begin, num_clips = time.perf_counter(), 0
    while time.perf_counter() < begin + seconds or num_clips == 0:
        next(batches)
        num_clips += batch_size
    return num_clips / (time.perf_counter() - begin)
