"""What a data worker does for a clip, step by step, with the seconds each step takes.

The steps are timed where they are done, in the loader itself: see `data.timing`.
"""

import contextlib
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
    DecodingError,
    PretrainingClips,
    PretrainingCollator,
    isolated,
    repeat_last_frame,
)
from ...models.video_reading_opening import open_video
from ..timing import measured
from ..video_access import fetch, name_of


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
        sample: what `PretrainingClips` hands to the collator.
        timestamps: of the frames in seconds, fewer than T where the last one is repeated; NaN where not known.
        num_frames: of the video.
        facts: about the file.
        augmentation: what was drawn.
        seconds: by step.
    """

    name: str
    position: int
    sample: dict
    timestamps: list[float]
    num_frames: int
    facts: Facts
    augmentation: Augmentation
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def is_crop(self) -> bool:
        """Whether the sample is the crop (T', C, h, w) that the clip is made of on the device."""
        return "crop" in self.sample

    def clip(self, image_size: int, num_frames: int) -> np.ndarray:
        """What the model sees, uint8, shape (T, C, S, S)."""
        if not self.is_crop:
            return self.sample["pixel_values_videos"].numpy()
        return repeat_last_frame(self.augmentation.finish(self.sample["crop"], image_size), num_frames).numpy()


def look_at_clips(clips: PretrainingClips, decode_timeout: float, num_clips: int, report: BadVideos) -> list[Look]:
    """The first clip of each of the first videos of a run that can be decoded; the others are reported.

    All clips of its video are made, by the steps of the run itself, and take equal shares of the time.

    Args:
        clips: of the run.
        decode_timeout: seconds until a video whose header hangs is given up; 0 for no limit.
        num_clips: how many to look at.
        report: of the videos that are bad.
    """
    facts_of = isolated(_facts, decode_timeout)
    looks, is_warm = [], False
    per_video = clips.order.clips_per_video
    for first in range(0, per_video * len(clips.videos), per_video):
        if len(looks) == num_clips:
            break
        index, positions = clips.order.video_at(first), list(range(first, first + per_video))
        row = clips.videos[index]
        name = name_of(row, index)
        try:
            if not is_warm:  # what is loaded and started at the first clip is no part of any
                clips.group_of(index, positions)
                is_warm = True
            with measured() as seconds:
                group = clips.group_of(index, positions)
            facts = facts_of(fetch(row))
        except DecodingError as error:
            report.add(name, str(error), used=False, kind=error.kind)
            continue
        if group.note is not None:
            report.add(name, group.note, used=True, kind=group.kind)
        looks.append(
            Look(
                name=name,
                position=first,
                sample=group.samples(positions, index)[0],
                timestamps=group.timestamps,
                num_frames=group.num_frames,
                facts=facts,
                augmentation=group.augmentations[0],
                seconds={step: value / per_video for step, value in seconds.items()},
            )
        )
    return looks


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
        samples = [
            look.sample | {"position": position}
            for position, look in zip(positions, itertools.cycle(looks), strict=False)
        ]
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
