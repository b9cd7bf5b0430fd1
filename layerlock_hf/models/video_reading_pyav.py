"""The reader of video files, by PyAV, which lets us choose what is decoded packet by packet.

The processor and the pipelines read through it as pretraining and evaluation do. Frames are those of PyAV, as stored:
`video_reading_rgb` makes them upright and RGB. T frames.
"""

import contextlib
import io
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .video_reading_opening import (
    DecodingError,
    as_decoding_errors,
    ffmpeg_error,
    open_video,
    read_packets,
    video_stream,
)
from .video_reading_rgb import upright_aspect
from .video_reading_timeline import (
    MAX_DELAY,
    Choose,
    Timeline,
    choose_by_time,
    counted_seconds,
    lost_frames,
    seconds_of_decoded,
    timeline_of_index,
    timeline_of_packets,
)


OUTPUT_CORRUPT = 1 << 3  # AV_CODEC_FLAG_OUTPUT_CORRUPT of FFmpeg: frames come though some of their references do not
CONTAINER_TICKS = 1_000_000  # a second, where FFmpeg speaks of a whole file (AV_TIME_BASE)


@dataclass(frozen=True)
class ChosenFrames:
    """Frames of one video.

    Attributes:
        frames: T frames of PyAV; one that is shown for long may come several times.
        seconds: float64, shape (T,), when each is first shown, on the clock of the file; NaN where that is unknown.
        num_frames: number of frames of the video, on the timeline that they were chosen from.
        pixel_aspect: width over height of a pixel of the upright frames.
        note: what the file has lost, None if nothing.
    """

    frames: list[Any]
    seconds: torch.Tensor
    num_frames: int
    pixel_aspect: float
    note: str | None


def read_frames(file: str | io.BytesIO, choose: Choose | None = None, frame_rate: float | None = None) -> ChosenFrames:
    """Chosen frames, of a damaged file those that precede the damage.

    Args:
        file: what `openable` gives for the video.
        choose: the frames, on a timeline of constant rate, where one that is shown for long counts several times; by
            default every frame of the file, once. Called again where fewer frames decode than there seemed to be.
        frame_rate: frames per second of the timeline; by default the average of the video.

    Raises:
        DecodingError: if nothing decodes.
    """
    for read, *options in ((_read_wanted, True), (_read_wanted, False), (_read_in_order,)):
        with contextlib.suppress(ffmpeg_error()):  # somewhere the file cannot be read on, or not be sought in
            found = read(file, choose, frame_rate, *options)
            if found is not None:
                return found
    return _read_up_to_damage(file, choose, frame_rate)


def seconds_of_frames(file: str | io.BytesIO) -> torch.Tensor | None:
    """When the frames of a video appear, in seconds on the clock of the file, ascending; None if that is unknown.

    Raises:
        DecodingError: if this is no video, or cannot be read to its end.
    """
    with as_decoding_errors(), open_video(file) as container:
        stream = video_stream(container)
        timeline = _find_timeline(container, stream, trusts_index=True)
        return None if timeline is None else timeline.ticks.double() * float(stream.time_base)


def _find_timeline(container, stream, trusts_index: bool) -> Timeline | None:
    timeline = timeline_of_index(stream) if trusts_index else None
    return timeline or timeline_of_packets(container, stream)


def _read_wanted(
    file: str | io.BytesIO, choose: Choose | None, frame_rate: float | None, trusts_index: bool
) -> ChosenFrames | None:
    """From the packets that the frames need; None where some are missing or damaged, or their times are wrong."""
    with open_video(file) as container:
        stream = video_stream(container)
        if stream.codec_context.pix_fmt == "pal8":  # only the first packet may bring the palette: seeking loses it
            return None
        timeline = _find_timeline(container, stream, trusts_index)
        if timeline is None:
            return None
        seconds = timeline.ticks.double() * float(stream.time_base)
        chosen, num_frames = choose_by_time(seconds, choose, frame_rate)
        wanted = timeline.ticks[chosen].tolist()
        frames = _decode_wanted(container, stream, sorted(set(wanted)), timeline)
        if frames is None:
            return None
        note = _note_of_lost(len(timeline.ticks), len(timeline.ticks) + timeline.num_lost)
        aspect = upright_aspect(stream.sample_aspect_ratio, frames[wanted[0]])
        return ChosenFrames([frames[tick] for tick in wanted], seconds[chosen], num_frames, aspect, note)


def _decode_wanted(container, stream, wanted: list[int], timeline: Timeline) -> dict[int, Any] | None:
    """The frames at these ascending times, by time; None where one is missing."""
    stream.codec_context.skip_frame = "DEFAULT"
    stream.codec_context.open(strict=False)  # dav1d keeps what it is opened with
    if stream.codec_context.name == "h264" and "444" in (stream.codec_context.pix_fmt or ""):
        # Only the first frame names the x264 version, without which FFmpeg garbles 4:4:4 files of old versions
        container.seek(stream.start_time or 0, stream=stream)
        next(container.demux(stream)).decode()
    are_independent = len(timeline.keyframes) >= len(timeline.ticks)
    groups = torch.searchsorted(timeline.keyframes, torch.tensor(wanted), right=True).tolist()
    # Frames between which whole groups of pictures can be passed over are sought one by one
    runs, last_group = [], -math.inf
    for tick, group in zip(wanted, groups, strict=True):
        if not runs or group - last_group > 1 and not are_independent:
            runs.append((int(timeline.keyframes[group - 1]) if group else tick, []))
        runs[-1][1].append(tick)
        last_group = group
    frames = {}
    for start, run in runs:
        container.seek(start, stream=stream, backward=True)
        frames.update(_decode_run(container, stream, run, are_independent))
    return frames if len(frames) == len(wanted) else None


def _decode_run(container, stream, run: list[int], are_independent: bool) -> dict[int, Any]:
    """Those of the frames at these times that decode, from the packet on at which the container stands.

    Frames that are not wanted are not decoded, if no other frame refers to them (none does if they are independent).
    """
    missing, frames, num_late, last = set(run), {}, 0, -math.inf
    is_skipping = None
    for packet in container.demux(stream):
        if is_skipping is None and packet.size and (packet.pts is None or packet.pts > run[0]):
            break  # it stands behind the first one
        if are_independent and packet.size and packet.pts not in missing:
            is_skipping = False
            continue
        if is_skipping is not (packet.pts not in missing):
            is_skipping = packet.pts not in missing
            stream.codec_context.skip_frame = "NONREF" if is_skipping and packet.size else "DEFAULT"
        try:
            decoded = packet.decode()
        except ffmpeg_error():
            break
        for frame in decoded:
            if frame.pts is None or frame.pts < last:
                return {}  # AVI has no times of showing; those that FFmpeg guesses are wrong here
            last = frame.pts
            if frame.pts in missing:
                missing.remove(frame.pts)
                frames[frame.pts] = frame
        num_late += packet.dts is not None and packet.dts > run[-1]
        if not missing or num_late > MAX_DELAY:
            break
    return frames


def _read_in_order(file: str | io.BytesIO, choose: Choose | None, frame_rate: float | None) -> ChosenFrames | None:
    """From a file without times: its packets are counted; None where they give fewer frames than are needed."""
    with open_video(file) as container:
        stream = video_stream(container)
        packets = [(packet.dts, packet.is_discard) for packet in container.demux(stream) if packet.size]
        num_frames = sum(not is_discard for _, is_discard in packets)
        if not num_frames:
            return None
        num_lost = lost_frames(container, stream, len(packets), packets[-1][0])
        seconds = counted_seconds(num_frames, stream.average_rate or frame_rate)
    chosen, length = choose_by_time(seconds, choose, frame_rate)
    decoding, kept, frames, times = Decoding(file), set(chosen), {}, []
    # As many more as show whether the times are right
    for index, frame in enumerate(itertools.islice(decoding, chosen[-1] + MAX_DELAY + 1)):
        times.append((frame.pts, frame.dts))
        if index in kept:
            frames[index] = frame
    if len(frames) < len(kept):
        return None
    seconds = seconds_of_decoded(times[chosen[0] :], decoding.tick)[torch.tensor(chosen) - chosen[0]]
    note = _note_of_lost(num_frames, num_frames + num_lost)
    return ChosenFrames([frames[index] for index in chosen], seconds, length, decoding.pixel_aspect, note)


def _read_up_to_damage(file: str | io.BytesIO, choose: Choose | None, frame_rate: float | None) -> ChosenFrames:
    """From all frames that decode one after the other, before the first damage."""
    decoding = Decoding(file)
    times = [(frame.pts, frame.dts) for frame in decoding]
    if not times:
        raise DecodingError("no frame can be decoded")
    seconds = seconds_of_decoded(times, decoding.tick)
    is_timed = not seconds[0].isnan() and bool((seconds.diff() > 0).all())
    counted = seconds if is_timed else counted_seconds(len(times), decoding.average_rate or frame_rate)
    chosen, length = choose_by_time(counted, choose, frame_rate)
    again, kept = itertools.islice(Decoding(file), chosen[-1] + 1), set(chosen)
    frames = {index: frame for index, frame in enumerate(again) if index in kept}
    found = [frames[index] for index in chosen]
    return ChosenFrames(found, seconds[chosen], length, decoding.pixel_aspect, decoding.note)


class Decoding:
    """The frames of a file, in order of presentation, to be passed once.

    Args:
        file: what `openable` gives for the video.
        stops_at_damage: whether frames end before the first damage. If not, packets that do not decode are passed
            over, and FFmpeg conceals what later frames miss, as the `ffmpeg` program does.

    Attributes, from the first frame on:
        tick: unit of the frames' times, in seconds.
        average_rate: average number of frames per second, None where that is unknown.
        pixel_aspect: width over height of a pixel of the upright frames.
        duration: seconds that the file claims to last, None where it does not tell.
        has_times: whether `pts` of a frame is when it is shown. In AVI it is not: `dts` is, as for `ffmpeg`.

    Attributes, once all frames are passed:
        is_damaged: whether there is damage.
        note: what the file has lost, None if nothing.
    """

    def __init__(self, file: str | io.BytesIO, stops_at_damage: bool = True):
        self.file, self.stops_at_damage = file, stops_at_damage
        self.is_damaged = False
        self.note: str | None = None
        self._failed: list[int | None] = []  # times of packets, in ticks
        self._concealed: list[int | None] = []  # of frames, likewise

    def __iter__(self) -> Iterator[Any]:
        with open_video(self.file) as container:
            stream = video_stream(container)
            self.tick, self.average_rate = float(stream.time_base), stream.average_rate and float(stream.average_rate)
            self.duration = container.duration and container.duration / CONTAINER_TICKS
            self.has_times = container.format.name != "avi"
            num_frames = num_packets = 0
            last, is_cut = None, False
            if not self.stops_at_damage:
                stream.codec_context.thread_count = 1  # of dav1d: more would lose frames beside the damage
            for packet in read_packets(container, stream):
                if packet is None:
                    self.is_damaged = is_cut = True
                    break
                if packet.size:
                    num_packets, last = num_packets + 1, packet.dts
                for frame in self._decode(packet, num_frames > 0):
                    if num_frames == 0:
                        self.pixel_aspect = upright_aspect(stream.sample_aspect_ratio, frame)
                        if not self.stops_at_damage:
                            # Without it HEVC leaves out what follows damage, up to the next keyframe. With it from
                            # the start, H.264 would give what precedes the first keyframe, too
                            stream.codec_context.flags |= OUTPUT_CORRUPT
                    num_frames += 1
                    yield frame
            if is_cut or self.is_damaged and self.stops_at_damage:
                # Frames after the damage refer to missing ones; those still in the decoder precede it
                with contextlib.suppress(ffmpeg_error()):
                    for frame in stream.decode(None):
                        num_frames += 1
                        yield frame
                claimed = max(stream.frames, num_packets)
                self.note = _note_of_lost(num_frames, claimed) or "cannot be read to its end"
            elif num_lost := lost_frames(container, stream, num_packets, last):
                self.note = _note_of_lost(num_frames, num_packets + num_lost)
            if not self.stops_at_damage:
                notes = filter(None, (self._note_of_damage(num_packets, num_frames), self.note))
                self.note = "; ".join(notes) or None

    def _decode(self, packet, has_begun: bool) -> list[Any]:
        """What follows the damage is counted and, where frames stop at it, not decoded."""
        if self.stops_at_damage and self.is_damaged:
            return []
        try:
            frames = packet.decode()
        except ffmpeg_error():
            # A recording may start in the middle of a group of pictures: what precedes the first frame is skipped
            if has_begun:
                self.is_damaged = True
                self._failed.append(self._tick_of(packet))
            return []
        if not self.stops_at_damage:
            self._concealed += [self._tick_of(frame) for frame in frames if frame.is_corrupt]
            self.is_damaged |= bool(self._concealed)
        return frames

    def _tick_of(self, item) -> int | None:
        """When a frame, or that of a packet, is shown."""
        return item.pts if self.has_times else item.dts

    def _note_of_damage(self, num_packets: int, num_frames: int) -> str | None:
        """What to tell of damage that was passed; None if there was none."""
        told = []
        if self._failed:
            told.append(f"{len(self._failed)} of {num_packets} packets do not decode")
        if self._concealed:
            told.append(f"{len(self._concealed)} of {num_frames} frames have errors that FFmpeg conceals")
        ticks = [tick for tick in self._failed + self._concealed if tick is not None]
        place = f" at {min(ticks) * self.tick:.2f} s" if ticks else ""
        return f"damaged{place}: {', '.join(told)}" if told else None


def _note_of_lost(num_frames: int, num_claimed: int) -> str | None:
    """What to tell of a file that claims so many frames and has fewer; None if it has them."""
    return f"only {num_frames} of {num_claimed} frames decode" if num_frames < num_claimed else None
