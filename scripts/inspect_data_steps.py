"""What a data worker does for a clip, step by step, with the seconds each step takes."""

import contextlib
import functools
import io
import itertools
import os
import time
from dataclasses import dataclass, field

import av
import numpy as np
import torch
from accelerate.utils import send_to_device

from layerlock_hf.data import (
    Augmentation,
    BadVideos,
    ClipTransform,
    DecodingError,
    Isolated,
    PretrainingClips,
    PretrainingCollator,
    generator_for,
    read_clip,
    repeat_last_frame,
)


# Those of a worker, in order; the last one is the main process's
STEPS = ("fetch", "decode", "transform", "hand over", "collate", "transfer")
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
        frames: what the model sees, uint8, shape (T, C, S, S).
        indices: the frames' numbers in the video, fewer than T where the last one is repeated.
        num_frames: of the video.
        facts: about the file.
        augmentation: what was drawn.
        note: what is wrong with the video, None for a healthy one.
        seconds: by step.
    """

    name: str
    position: int
    frames: np.ndarray
    indices: list[int]
    num_frames: int
    facts: Facts
    augmentation: Augmentation
    note: str | None
    seconds: dict[str, float] = field(default_factory=dict)


def fetch(row: dict) -> str | bytes:
    video = row["video"] or {"path": None, "bytes": None}
    source = video["path"] if video["bytes"] is None else video["bytes"]
    if source is None:
        raise DecodingError("the row has no video")
    return source


def name_of(row: dict, index: int) -> str:
    video = row["video"] or {"path": None, "bytes": None}
    return video["path"] if video["bytes"] is None and video["path"] else f"row {index} ({video['path']})"


def look_at_clips(
    clips: PretrainingClips, transform: ClipTransform, decode_timeout: float, num_clips: int, report: BadVideos
) -> list[Look]:
    """The first clips of a run whose videos can be decoded; the others are reported.

    As in a run they are made in a child process, unless `decode_timeout` is 0.
    """
    order = torch.randperm(len(clips.videos), generator=generator_for("epoch", clips.seed, 0)).tolist()
    look = functools.partial(_look_at, clips, transform)
    make = Isolated(look, decode_timeout) if decode_timeout else look
    looks, is_warm = [], False
    for position, index in enumerate(order):
        if len(looks) == num_clips:
            break
        name = name_of(clips.videos[index], index)
        try:
            if not is_warm:  # what is loaded and started at the first clip is no part of any
                make(index, position)
                is_warm = True
            begin = time.perf_counter()
            seen = make(index, position)
            whole = time.perf_counter() - begin
        except DecodingError as error:
            report.add(name, str(error), used=False)
            continue
        if seen.note is not None:
            report.add(name, seen.note, used=True)
        if decode_timeout:
            seen.seconds["hand over"] = max(0.0, whole - sum(seen.seconds.values()))
        del seen.seconds["facts"]
        looks.append(seen)
    return looks


def _look_at(clips: PretrainingClips, transform: ClipTransform, index: int, position: int) -> Look:
    """The clip of the video in row `index` as `PretrainingClips` makes it, in the same steps."""
    watch = _Stopwatch()
    generator = generator_for("clip", clips.seed, position, 0)
    row = clips.videos[index]
    source = fetch(row)
    watch.lap("fetch")

    fraction = float(torch.rand((), generator=generator))
    span = (clips.num_frames - 1) * clips.frame_stride + 1
    chosen = []

    def choose(available: int) -> list[int]:
        start = int(fraction * max(1, available - span + 1))
        chosen[:] = list(range(start, available, clips.frame_stride))[: clips.num_frames]
        return list(chosen)

    clip = read_clip(source, choose)
    watch.lap("decode")

    augmentation = transform.draw(*clip.frames.shape[-2:], generator)
    frames = augmentation.finish(augmentation.crop(clip.frames), transform.image_size)
    frames = repeat_last_frame(frames, clips.num_frames).contiguous().numpy()
    watch.lap("transform")

    facts = _facts(source)
    watch.lap("facts")
    note = clip.note
    if note is None and clip.num_frames < clips.num_frames:
        note = f"has {clip.num_frames} frames, fewer than a clip of {clips.num_frames}"
    name = name_of(row, index)
    return Look(name, position, frames, chosen, clip.num_frames, facts, augmentation, note, watch.seconds)


def _facts(source: str | bytes) -> Facts:
    """From the first packets, before any damage."""
    file = io.BytesIO(source) if isinstance(source, bytes) else os.path.abspath(source)
    are_keyframes = []
    # As for decoding: no file may have this one read other files over a network
    with av.open(file, options={"protocol_whitelist": "file"}) as container:
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
        self._last = time.perf_counter()

    def lap(self, name: str):
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now


def time_batches(
    looks: list[Look], collator: PretrainingCollator, batch_size: int, device: torch.device, is_pinned: bool
) -> dict[str, float]:
    """Seconds per clip to make a batch, its masks included, and on a GPU those to bring it there."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # those of a worker
    seconds = {"collate": [], "transfer": []}
    for number in range(NUM_BATCHES):
        # Other positions have other masks to draw
        positions = range(number * batch_size, (number + 1) * batch_size)
        samples = [
            {"pixel_values_videos": torch.from_numpy(look.frames), "position": position, "is_padded": False}
            for position, look in zip(positions, itertools.cycle(looks), strict=False)
        ]
        begin = time.perf_counter()
        batch = collator(samples)
        seconds["collate"].append(time.perf_counter() - begin)
        if device.type == "cpu":
            continue
        # A thread of the main process pins batches while the device computes
        batch = {
            name: ids.pin_memory() if is_pinned and isinstance(ids, torch.Tensor) else ids
            for name, ids in batch.items()
        }
        torch.accelerator.synchronize()
        begin = time.perf_counter()
        send_to_device(batch, device)
        torch.accelerator.synchronize()
        seconds["transfer"].append(time.perf_counter() - begin)
    torch.set_num_threads(num_threads)
    return {name: float(np.median(values)) / batch_size for name, values in seconds.items() if values}


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
