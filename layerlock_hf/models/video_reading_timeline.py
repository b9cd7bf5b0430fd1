"""When the frames of a video file are shown, and which frame a player shows at a time. N frames of a file."""

import itertools
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch


# From the number of frames of a video to the ascending indices of those to read.
Choose = Callable[[int], list[int]]

# Average over usual interval between frames, up to which the rate is constant but for some that were dropped
MAX_GAPS = 1.1
# Packets after that of a frame until a decoder gives the frame; the most that a codec allows is 16
MAX_DELAY = 32
# Of a frame with its entry in a file; a header that claims more frames than have room is wrong
MIN_BYTES = 8
# By the names of FFmpeg's decoders
HIDES_FRAMES = {"vp8", "vp9", "libvpx", "libvpx-vp9"}


@dataclass(frozen=True)
class Timeline:
    """The frames of a file, found without decoding.

    Attributes:
        ticks: int64 (N,), ascending times of the frames, in units of the stream's time base.
        keyframes: int64, times of those that decoding can begin at, ascending.
        num_lost: number of frames that the header names and the file does not have.
    """

    ticks: torch.Tensor
    keyframes: torch.Tensor
    num_lost: int = 0


def choose_by_time(seconds: torch.Tensor, choose: Choose | None, frame_rate: float | None) -> tuple[list[int], int]:
    """The chosen frames of a video, counted on a timeline of constant rate, and how many that has; without `choose`
    every frame of the file, once.

    Args:
        seconds: float64 (N,), ascending times at which the frames appear.
        choose: as of `shown_frames`, indices on the timeline.
        frame_rate: as of `shown_frames`.
    """
    if choose is None:
        return list(range(len(seconds))), len(seconds)
    shown = shown_frames(seconds, frame_rate)
    return shown[choose(len(shown))].tolist(), len(shown)


def shown_frames(seconds: torch.Tensor, frame_rate: float | None = None) -> torch.Tensor:
    """The frame that a player shows at each tick of a timeline of constant frame rate.

    Taken mid-tick, so that rounded timestamps of a constant rate give 0, 1, 2, ..., without resampling.

    Args:
        seconds: float64 (N,), ascending times at which the frames appear.
        frame_rate: ticks per second; by default the usual rate of the frames, or the average if it varies.

    Returns:
        indices of frames, one per tick.
    """
    if len(seconds) == 1:
        return torch.zeros(1, dtype=torch.int64)
    intervals, span = seconds.diff(), (seconds[-1] - seconds[0]).item()
    # `median` of an even number is the lower one of the two in the middle
    usual = (intervals.median() - (-intervals).median()).item() / 2
    average = float(intervals.numpy().mean())  # which rounds as it did for runs of old, and rounding decides ties
    tick = usual if average <= MAX_GAPS * usual else average
    length = span + tick  # the last frame is shown as long as others
    tick = tick if frame_rate is None else 1 / frame_rate
    times = (torch.arange(max(1, round(length / tick)), dtype=torch.float64) + 0.5) * tick + seconds[0]
    return torch.searchsorted(seconds, times, right=True) - 1


def counted_seconds(num_frames: int, frame_rate: float | None) -> torch.Tensor:
    """When frames without times appear, at this rate; float64, shape (num_frames,)."""
    return torch.arange(num_frames, dtype=torch.float64) / float(frame_rate or 1)


def timeline_of_index(stream) -> Timeline | None:
    """From the index of a file, without reading the rest; None unless it is complete and of a constant rate."""
    entries = getattr(stream, "index_entries", ())  # PyAV has them from 16 on
    if len(entries) != stream.frames or not stream.frames or stream.start_time is None:
        return None
    table = [(entry.timestamp, entry.is_keyframe, entry.is_discard) for entry in entries]
    times, are_keyframes, are_discards = zip(*table, strict=True)  # of decoding
    step = times[1] - times[0] if len(times) > 1 else 1
    if any(are_discards) or step <= 0 or times != tuple(range(times[0], times[0] + step * len(times), step)):
        return None
    # Where the rate is constant, frames are shown as they are decoded, only later
    ticks = stream.start_time + step * torch.arange(len(times))
    return Timeline(ticks, ticks[[index for index, is_keyframe in enumerate(are_keyframes) if is_keyframe]])


def timeline_of_packets(container, stream) -> Timeline | None:
    """From all packets of the file; None where they have no times."""
    codec = stream.codec_context.name
    packets = [packet for packet in container.demux(stream) if packet.size and not _is_hidden(packet, codec)]
    ticks = [packet.pts for packet in packets if not packet.is_discard]
    if not ticks or None in ticks or len(set(ticks)) < len(ticks):
        return None
    keyframes = [packet.pts for packet in packets if packet.is_keyframe and packet.pts is not None]
    num_lost = lost_frames(container, stream, len(packets), packets[-1].dts)
    return Timeline(*(torch.tensor(sorted(times), dtype=torch.int64) for times in (ticks, keyframes)), num_lost)


def lost_frames(container, stream, num_packets: int, last: int | None) -> int:
    """Number of frames that the header of a truncated file still knows and the file does not have.

    Args:
        container: the file, read to its end.
        stream: of the video.
        num_packets: that the file has.
        last: `dts` of the last of them.
    """
    if stream.frames * MIN_BYTES > container.size:  # as of a file that was written to a pipe
        return 0
    # AVI counts ticks, for several of which a frame may be shown
    num_there = (last or 0) + 1 if container.format.name == "avi" else num_packets
    return max(0, stream.frames - num_there)


def seconds_of_decoded(times: list[tuple[int | None, int | None]], tick: float) -> torch.Tensor:
    """When the decoded frames of a file are shown: float64, shape (N,).

    Where their times of showing are wrong, as in AVI, it is when the decoder gives the frames, as for `ffmpeg`, else
    NaN.

    Args:
        times: `pts` and `dts` of each.
        tick: unit of these, in seconds.
    """
    given = [dts for _, dts in times]
    num_given = given.index(None) if None in given else len(given)
    num_left = len(given) - num_given  # in the decoder at the end of the file: they follow in usual steps
    if num_given > 1 and num_left <= MAX_DELAY:
        step = statistics.median(after - before for before, after in itertools.pairwise(given[:num_given]))
        given[num_given:] = [given[num_given - 1] + step * (1 + index) for index in range(num_left)]
    for ticks in ([pts for pts, _ in times], given):
        if None not in ticks and all(before <= after for before, after in itertools.pairwise(ticks)):
            return torch.tensor(ticks, dtype=torch.float64) * tick
    return torch.full((len(times),), math.nan, dtype=torch.float64)


def _is_hidden(packet, codec: str) -> bool:
    """Whether the frame is there for others to refer to only, and never shown."""
    if codec not in HIDES_FRAMES:
        return False
    data = memoryview(packet)
    if codec == "vp8":
        return not data[0] & 0b10000  # RFC 6386, sec. 9.1: show_frame
    if data[-1] & 0b11100000 == 0b11000000:  # VP9 specification, annex B: a superframe shows one of its frames
        return False
    bits = data[0] << 1 if data[0] & 0b110000 == 0b110000 else data[0]  # profile 3 has a reserved bit
    return not bits & 0b1010  # sec. 6.2: show_existing_frame, show_frame
