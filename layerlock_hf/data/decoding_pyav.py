"""Reading chosen frames with PyAV, which lets us choose what is decoded packet by packet."""

import contextlib
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import av
import numpy as np

from .clips import Choose, Clip, Crop, DecodingError, one_line, shown_frames
from .rgb import to_clip


# FFmpeg prints hundreds of lines per damaged file; the reason reaches the user through DecodingError and Clip.note.
av.logging.set_level(av.logging.PANIC)

# Packets after that of a frame until a decoder gives the frame; the most that a codec allows is 16
MAX_DELAY = 32
# Of a frame with its entry in a file; a header that claims more frames than have room is wrong
MIN_BYTES = 8
# By the names of FFmpeg's decoders
HIDES_FRAMES = {"vp8", "vp9", "libvpx", "libvpx-vp9"}


def read_pyav(
    file: str | io.BytesIO, choose: Choose, crop: Crop | None, frame_rate: float | None, device: str = "cpu"
) -> Clip:
    """`read_clip` by PyAV alone, from a path or a file object.

    Raises:
        DecodingError: as `read_clip`.
    """
    try:
        return (
            _if_readable(_read_wanted, file, True, choose, crop, frame_rate)
            or _if_readable(_read_wanted, file, False, choose, crop, frame_rate)
            or _if_readable(_read_in_order, file, choose, crop, frame_rate)
            or _read_up_to_damage(file, choose, crop, frame_rate)
        )
    except av.FFmpegError as error:
        raise DecodingError(one_line(error.strerror or error)) from error
    except (RuntimeError, ValueError, MemoryError) as error:
        raise DecodingError(f"{type(error).__name__}: {one_line(error)}") from error


def _if_readable(read: Callable[..., Clip | None], *arguments) -> Clip | None:
    """What `read` gives; None if the file cannot be read on somewhere, or not be sought in."""
    try:
        return read(*arguments)
    except av.FFmpegError:
        return None


@dataclass
class Timeline:
    """The frames of a video stream, found without decoding.

    Attributes:
        pts: ascending times of the frames, in units of the stream's time base.
        keyframes: times of those that decoding can begin at, ascending.
        num_lost: number of frames that the header names and the file does not have.
    """

    pts: np.ndarray
    keyframes: np.ndarray
    num_lost: int = 0


def video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """
    Raises:
        DecodingError: where there is none that can be decoded.
    """
    stream = container.streams.best("video")
    if stream is None:
        raise DecodingError("no video stream", "no video")
    if stream.codec_context is None:
        raise DecodingError("FFmpeg has no decoder for this codec", "unsupported")
    # Threads would report an error some frames after the damage, depending on the number of cores
    stream.thread_type = "NONE"
    return stream


def open_video(file: str | io.BytesIO) -> av.container.InputContainer:
    """A file, which FFmpeg may read and nothing else: not what a playlist inside it names at a URL.

    Raises:
        av.FFmpegError: where FFmpeg finds no format that it knows.
    """
    return av.open(file, options={"protocol_whitelist": "file"})


def read_packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet | None]:
    """The packets of a stream, then None if the rest of the file cannot be read."""
    try:
        yield from container.demux(stream)
    except av.FFmpegError:
        yield None


def _open(file: str | io.BytesIO) -> av.container.InputContainer:
    """
    Raises:
        DecodingError: where FFmpeg finds no format that it knows.
    """
    try:
        return open_video(file)
    except av.FFmpegError as error:
        raise DecodingError(one_line(error.strerror or error)) from error


def _read_wanted(
    file: str | io.BytesIO, trusts_index: bool, choose: Choose, crop: Crop | None, frame_rate: float | None
) -> Clip | None:
    """The clip, from the packets that it needs; None where some are missing or damaged."""
    with _open(file) as container:
        stream = video_stream(container)
        if stream.codec_context.pix_fmt == "pal8":  # only the first packet may bring the palette: seeking loses it
            return None
        timeline = _timeline(container, stream, trusts_index)
        if timeline is None:
            return None
        shown = shown_frames(timeline.pts * float(stream.time_base), frame_rate)
        wanted = timeline.pts[shown[choose(len(shown))]].tolist()
        frames = _decode_wanted(container, stream, sorted(set(wanted)), timeline)
        if frames is None:
            return None
        seconds = np.array(wanted) * float(stream.time_base)
        clip = to_clip(stream, [frames[pts] for pts in wanted], seconds, len(shown), crop)
    if timeline.num_lost:
        num_frames = len(timeline.pts)
        clip.note = f"only {num_frames} of {num_frames + timeline.num_lost} frames decode"
        clip.is_partial = True
    return clip


def timeline_seconds(file: str | io.BytesIO) -> np.ndarray | None:
    """When the frames of a video appear, in seconds on the clock of the file, ascending; None if that is unknown.

    Raises:
        DecodingError: if this is no video.
    """
    try:
        with _open(file) as container:
            stream = video_stream(container)
            timeline = _timeline(container, stream, trusts_index=True)
            return None if timeline is None else timeline.pts * float(stream.time_base)
    except av.FFmpegError as error:
        raise DecodingError(one_line(error.strerror or error)) from error


def _timeline(container: av.container.InputContainer, stream: av.VideoStream, trusts_index: bool) -> Timeline | None:
    timeline = _timeline_of_index(stream) if trusts_index else None
    return timeline or _timeline_of_packets(container, stream)


def _timeline_of_index(stream: av.VideoStream) -> Timeline | None:
    """From the index of a file, without reading the rest; None unless it is complete and of a constant rate."""
    entries = getattr(stream, "index_entries", ())  # PyAV has them from 16 on
    if len(entries) != stream.frames or not stream.frames or stream.start_time is None:
        return None
    if any(entry.is_discard for entry in entries):
        return None
    times = np.fromiter((entry.timestamp for entry in entries), np.int64, len(entries))  # of decoding
    steps = np.diff(times)
    if len(steps) and (steps[0] <= 0 or np.any(steps != steps[0])):
        return None
    # Where the rate is constant, frames are shown as they are decoded, only later
    pts = times - times[0] + stream.start_time
    return Timeline(pts, pts[[entry.is_keyframe for entry in entries]])


def _timeline_of_packets(container: av.container.InputContainer, stream: av.VideoStream) -> Timeline | None:
    """From all packets of the file; None where they have no times."""
    codec = stream.codec_context.name
    packets = [packet for packet in container.demux(stream) if packet.size and not _is_hidden(packet, codec)]
    pts = [packet.pts for packet in packets if not packet.is_discard]
    if not pts or None in pts or len(set(pts)) < len(pts):
        return None
    keyframes = [packet.pts for packet in packets if packet.is_keyframe and packet.pts is not None]
    # The header of a truncated file still knows how many frames there were
    num_lost = max(0, stream.frames - len(packets))
    if container.format.name == "avi":  # it counts ticks, for several of which a frame may be shown
        num_lost = max(0, stream.frames - (packets[-1].dts or 0) - 1)
    if stream.frames * MIN_BYTES > container.size:  # as of a file that was written to a pipe
        num_lost = 0
    return Timeline(np.sort(pts), np.sort(keyframes), num_lost)


def _is_hidden(packet: av.Packet, codec: str) -> bool:
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


def _decode_wanted(
    container: av.container.InputContainer, stream: av.VideoStream, wanted: list[int], timeline: Timeline
) -> dict[int, av.VideoFrame] | None:
    """The frames at these ascending times, or None where one is missing."""
    _prepare(container, stream)
    are_independent = len(timeline.keyframes) >= len(timeline.pts)
    # Frames between which whole groups of pictures can be passed over are sought one by one
    groups = np.searchsorted(timeline.keyframes, wanted, side="right")
    is_far = (np.diff(groups) > 1) & (not are_independent)
    starts = [0, *(np.flatnonzero(is_far) + 1).tolist(), len(wanted)]
    frames = {}
    for first, end in zip(starts[:-1], starts[1:], strict=True):
        keyframe = timeline.keyframes[groups[first] - 1] if groups[first] else wanted[first]
        container.seek(int(keyframe), stream=stream, backward=True)
        frames.update(_decode_run(container, stream, wanted[first:end], are_independent))
    return frames if len(frames) == len(wanted) else None


def _prepare(container: av.container.InputContainer, stream: av.VideoStream):
    stream.codec_context.skip_frame = "DEFAULT"
    stream.codec_context.open(strict=False)  # dav1d keeps what it is opened with
    if stream.codec_context.name == "h264" and "444" in (stream.codec_context.pix_fmt or ""):
        # Only the first frame names the x264 version, without which FFmpeg garbles 4:4:4 files of old versions
        container.seek(stream.start_time or 0, stream=stream)
        next(container.demux(stream)).decode()


def _decode_run(
    container: av.container.InputContainer, stream: av.VideoStream, run: list[int], are_independent: bool
) -> dict[int, av.VideoFrame]:
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
        except av.FFmpegError:
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


def _read_in_order(file: str | io.BytesIO, choose: Choose, crop: Crop | None, frame_rate: float | None) -> Clip | None:
    """The clip from a file without times: its frames are counted; None where some are missing or damaged."""
    with _open(file) as container:
        stream = video_stream(container)
        num_frames = sum(1 for packet in container.demux(stream) if packet.size and not packet.is_discard)
        if not num_frames:
            return None
        shown = shown_frames(_counted_seconds(num_frames, stream, frame_rate), frame_rate)
        wanted = shown[choose(len(shown))].tolist()
        kept, frames, times = set(wanted), {}, []
        for index, frame in enumerate(Decoding(file)):
            times.append((frame.pts, frame.dts))
            if index in kept:
                frames[index] = frame
            if index == wanted[-1] + MAX_DELAY:  # as many more as show whether the times are right
                break
        if len(frames) < len(kept):
            return None
        seconds = _seconds(times[wanted[0] :], stream)[np.array(wanted) - wanted[0]]
        return to_clip(stream, [frames[index] for index in wanted], seconds, len(shown), crop)


def _read_up_to_damage(file: str | io.BytesIO, choose: Choose, crop: Crop | None, frame_rate: float | None) -> Clip:
    """The clip from all frames that decode one after the other, before the first damage."""
    decoding = Decoding(file)
    times = [(frame.pts, frame.dts) for frame in decoding]
    if not times:
        raise DecodingError("no frame can be decoded")
    num_frames = len(times)
    with _open(file) as container:
        stream = video_stream(container)
        seconds = _seconds(times, stream)
        is_timed = np.all(np.diff(seconds) > 0) and not np.isnan(seconds[0])
        shown = shown_frames(seconds if is_timed else _counted_seconds(num_frames, stream, frame_rate), frame_rate)
        wanted = shown[choose(len(shown))].tolist()
        kept = set(wanted)
        frames = {index: frame for index, frame in enumerate(Decoding(file)) if index in kept}
        clip = to_clip(stream, [frames[index] for index in wanted], seconds[wanted], len(shown), crop)
        if decoding.is_damaged:
            claimed = max(stream.frames, _num_packets(container, stream))
            is_short = claimed > num_frames
            clip.note = f"only {num_frames} of {claimed} frames decode" if is_short else "cannot be read to its end"
            clip.is_partial = True
    return clip


def _counted_seconds(num_frames: int, stream: av.VideoStream, frame_rate: float | None) -> np.ndarray:
    """When frames without times appear, by the rate of the file, or where it has none by the one asked for."""
    return np.arange(num_frames) / float(stream.average_rate or frame_rate or 1)


def _num_packets(container: av.container.InputContainer, stream: av.VideoStream) -> int:
    """Of the part of a file that can be read."""
    return sum(packet.size > 0 for packet in read_packets(container, stream) if packet is not None)


def _seconds(times: list[tuple[int | None, int | None]], stream: av.VideoStream) -> np.ndarray:
    """When the decoded frames of a file are shown, shape (N,), from the `pts` and `dts` of each.

    Where the first are wrong, as in AVI, it is when the decoder gives the frames, as for `ffmpeg`, else NaN.
    """
    given = [dts for _, dts in times]
    num_given = given.index(None) if None in given else len(given)
    num_left = len(given) - num_given  # in the decoder at the end of the file: they follow in usual steps
    if num_given > 1 and num_left <= MAX_DELAY:
        step = float(np.median(np.diff(given[:num_given])))
        given[num_given:] = [given[num_given - 1] + step * (1 + index) for index in range(num_left)]
    for ticks in ([pts for pts, _ in times], given):
        if None not in ticks and np.all(np.diff(ticks) >= 0):
            return np.array(ticks) * float(stream.time_base)
    return np.full(len(times), math.nan)


class Decoding:
    """The frames of a file before the first damage, in order of presentation.

    Attributes:
        is_damaged: whether there is damage, once all frames are passed.
    """

    def __init__(self, file: str | io.BytesIO):
        self.file = file
        self.is_damaged = False

    def __iter__(self) -> Iterator[av.VideoFrame]:
        with _open(self.file) as container:
            stream = video_stream(container)
            started = False
            for packet in read_packets(container, stream):
                if packet is None:
                    self.is_damaged = True
                    break
                try:
                    frames = packet.decode()
                except av.FFmpegError:
                    # A recording may start in the middle of a group of pictures: what precedes the first frame is
                    # skipped
                    if not started:
                        continue
                    self.is_damaged = True
                    break
                started = started or bool(frames)
                yield from frames
            if self.is_damaged:
                # Frames after the damage refer to missing ones; those still in the decoder precede it
                with contextlib.suppress(av.FFmpegError):
                    yield from stream.decode(None)
