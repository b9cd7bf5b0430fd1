"""Reading a video file with PyAV: when its frames are shown, and the frames in order, upright and RGB.

Chosen frames are sought and decoded step by step as in pretraining: of files whose times are wrong, such as AVI with
B-frames, other steps would give other frames. PyAV is not imported before a file is read, so that the models load
where it is missing. T frames, H and W pixels.
"""

import bisect
import contextlib
import functools
import io
import itertools
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch


MAX_PIXEL_ASPECT = 50  # more is a mistake in the file
# Packets after that of a frame until a decoder gives the frame; the most that a codec allows is 16
MAX_DELAY = 32
# Of a frame with its entry in a file; a header that claims more frames than have room is wrong
MIN_BYTES = 8
# By the names of FFmpeg's decoders
HIDES_FRAMES = {"vp8", "vp9", "libvpx", "libvpx-vp9"}
# What `_orientation` gives for turns anticlockwise
QUARTER_TURNS = [(False, 1, 1), (True, -1, 1), (False, -1, -1), (True, 1, -1)]


@dataclass(frozen=True)
class Timeline:
    """The frames of a file, found without decoding.

    Attributes:
        ticks: ascending times of the frames, in units of the stream's time base.
        keyframes: times of those that decoding can begin at, ascending.
        num_lost: number of frames that the header names and the file does not have.
    """

    ticks: list[int]
    keyframes: list[int]
    num_lost: int = 0


# From the times of the frames, in seconds, to the ascending indices of those to read.
ChooseByTime = Callable[[list[float]], list[int]]
# Frames, uint8 (T, 3, H, W); the width of a pixel over its height; and what is wrong with the file, or "".
Read = tuple[torch.Tensor, float, str]


def read_pyav(file: str | io.BytesIO, choose: ChooseByTime) -> Read:
    """Chosen frames, of a damaged file those that precede the damage.

    Args:
        file: the video.
        choose: which frames.

    Raises:
        ValueError: if nothing decodes.
    """
    by_index = functools.partial(_read_wanted, find_timeline=_timeline_of_index)
    by_packets = functools.partial(_read_wanted, find_timeline=_timeline_of_packets)
    for read in (by_index, by_packets, _read_in_order):
        with contextlib.suppress(_error_class()):  # is met again further down
            result = read(file, choose)
            if result is not None:
                return result
    return _read_up_to_damage(file, choose)


def _read_wanted(
    file: str | io.BytesIO, choose: ChooseByTime, find_timeline: Callable[..., Timeline | None]
) -> Read | None:
    """From the packets that the frames need; None where some are missing or damaged, or their times are wrong."""
    with _open(file) as container:
        stream = _video_stream(container)
        if stream.codec_context.pix_fmt == "pal8":  # only the first packet may bring the palette: seeking loses it
            return None
        timeline = find_timeline(container, stream)
        if timeline is None:
            return None
        num_frames, tick = len(timeline.ticks), float(stream.time_base)
        wanted = [timeline.ticks[index] for index in choose([ticks * tick for ticks in timeline.ticks])]
        picked, aspect = _decode_wanted(container, stream, sorted(set(wanted)), timeline)
    if picked.keys() != set(wanted):
        return None
    note = f"only {num_frames} of {num_frames + timeline.num_lost} frames decode" if timeline.num_lost else ""
    return torch.stack([picked[ticks] for ticks in wanted]), aspect, note


def _read_in_order(file: str | io.BytesIO, choose: ChooseByTime) -> Read | None:
    """From a file without times: its packets are counted; None where they give fewer frames than are needed."""
    with _open(file) as container:
        stream = _video_stream(container)
        num_frames = sum(packet.size > 0 and not packet.is_discard for packet in container.demux(stream))
        frame_rate = float(stream.average_rate or 1)
    if not num_frames:
        return None
    decoding = Decoding(file)
    picked = _pick(decoding, choose([index / frame_rate for index in range(num_frames)]))
    return None if picked is None else (picked, decoding.pixel_aspect, "")


def _read_up_to_damage(file: str | io.BytesIO, choose: ChooseByTime) -> Read:
    """From all frames that decode one after the other, before the first damage."""
    decoding = Decoding(file)
    ticks = [frame.pts for frame in decoding]
    if not ticks:
        raise ValueError("no frame can be decoded")
    if None in ticks or ticks != sorted(set(ticks)):
        seconds = [index / decoding.frame_rate for index in range(len(ticks))]
    else:
        seconds = [tick * decoding.tick for tick in ticks]
    note = f"only {len(ticks)} of {decoding.num_packets} frames decode" if decoding.is_damaged else ""
    return _pick(Decoding(file), choose(seconds)), decoding.pixel_aspect, note


class Decoding:
    """The frames of a file before the first damage, in order of presentation.

    Args:
        file: the video.

    Attributes, once all frames are passed:
        is_damaged: whether there is damage.
        num_packets: number of frames that the file has or claims to have.
        pixel_aspect: width over height of a pixel of the upright frames.
        tick: unit of the frames' times, in seconds.
        frame_rate: average number of frames per second, 1 where that is unknown.
    """

    def __init__(self, file: str | io.BytesIO):
        self.file = file
        self.is_damaged = False
        self.num_packets = 0
        self.pixel_aspect = 1.0

    def __iter__(self) -> Iterator:
        with _as_value_errors(), _open(self.file) as container:
            stream = _video_stream(container)
            self.tick, self.frame_rate = float(stream.time_base), float(stream.average_rate or 1)
            is_first = True
            for frame in self._frames(container, stream):
                if is_first:
                    self.pixel_aspect = _pixel_aspect(stream, frame)
                    is_first = False
                yield frame
            self.num_packets = max(self.num_packets, stream.frames)

    def _frames(self, container, stream) -> Iterator:
        has_begun = False
        for packet in self._packets(container, stream):
            try:
                frames = packet.decode() if not self.is_damaged else []
            except _error_class():
                # A recording may start in the middle of a group of pictures: what precedes the first frame is skipped
                self.is_damaged, frames = has_begun, []
            has_begun = has_begun or bool(frames)
            yield from frames
        if self.is_damaged:
            # Frames after the damage refer to missing ones; those still in the decoder precede it
            with contextlib.suppress(_error_class()):
                yield from stream.decode(None)

    def _packets(self, container, stream) -> Iterator:
        """Those after the damage, too, which are counted."""
        try:
            for packet in container.demux(stream):
                self.num_packets += packet.size > 0
                yield packet
        except _error_class():
            self.is_damaged = True


class Upright:
    """Makes frames of one file RGB as `ffmpeg` does, and turns and mirrors them as the file asks.

    PyAV's own way differs for 10-bit and interlaced video.
    """

    def __init__(self):
        self._graph, self._shape, self._orientation = None, None, None

    def __call__(self, frame) -> torch.Tensor:
        """uint8, shape (3, H, W)

        Raises:
            ValueError: if the size differs from that of the frames before.
        """
        shape = (frame.format.name, frame.width, frame.height)
        if self._graph is None:
            self._graph, self._shape, self._orientation = _rgb_graph(frame), shape, _orientation(frame)
        if shape != self._shape:
            raise ValueError("the size of the frames changes within the video")
        self._graph.push(frame)
        pixels = torch.from_numpy(self._graph.pull().to_ndarray())
        lies_on_side, row_step, column_step = self._orientation
        pixels = pixels.transpose(0, 1) if lies_on_side else pixels
        mirrored = [dim for dim, step in ((0, row_step), (1, column_step)) if step < 0]
        return pixels.flip(mirrored).permute(2, 0, 1).contiguous()


def sensible_aspect(ratio) -> float:
    """The aspect of a pixel from a file's metadata, where it makes sense; square otherwise."""
    aspect = float(ratio) if ratio else 1.0
    return aspect if 1 / MAX_PIXEL_ASPECT <= aspect <= MAX_PIXEL_ASPECT else 1.0


def _pixel_aspect(stream, frame) -> float:
    """Of the upright frame."""
    aspect = sensible_aspect(stream.sample_aspect_ratio)
    return 1 / aspect if _orientation(frame)[0] else aspect


def _timeline_of_index(container, stream) -> Timeline | None:
    """From the index of a file, without reading the rest; None unless it is complete and of a constant rate."""
    entries = getattr(stream, "index_entries", ())  # PyAV has them from 16 on
    if len(entries) != stream.frames or not stream.frames or stream.start_time is None:
        return None
    times = [entry.timestamp for entry in entries]  # of decoding
    steps = {after - before for before, after in zip(times[:-1], times[1:], strict=True)}
    if any(entry.is_discard for entry in entries) or len(steps) > 1 or min(steps, default=1) <= 0:
        return None
    # Where the rate is constant, frames are shown as they are decoded, only later
    ticks = [time - times[0] + stream.start_time for time in times]
    return Timeline(ticks, [tick for tick, entry in zip(ticks, entries, strict=True) if entry.is_keyframe])


def _timeline_of_packets(container, stream) -> Timeline | None:
    """From all packets of the file; None where they have no times."""
    codec = stream.codec_context.name
    packets = [packet for packet in container.demux(stream) if packet.size and not _is_hidden(packet, codec)]
    ticks = [packet.pts for packet in packets if not packet.is_discard]
    if not ticks or None in ticks or len(set(ticks)) < len(ticks):
        return None
    keyframes = [packet.pts for packet in packets if packet.is_keyframe and packet.pts is not None]
    # AVI counts ticks, and a file that was written to a pipe claims anything
    has_claim = container.format.name != "avi" and stream.frames * MIN_BYTES <= container.size
    num_lost = max(0, stream.frames - len(packets)) if has_claim else 0
    return Timeline(sorted(ticks), sorted(keyframes), num_lost)


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


def _decode_wanted(container, stream, wanted: list[int], timeline: Timeline) -> tuple[dict[int, torch.Tensor], float]:
    """Those of the frames at these ascending times that decode, (3, H, W), by time; and the aspect of a pixel."""
    stream.codec_context.skip_frame = "DEFAULT"
    stream.codec_context.open(strict=False)  # dav1d keeps what it is opened with
    if stream.codec_context.name == "h264" and "444" in (stream.codec_context.pix_fmt or ""):
        # Only the first frame names the x264 version, without which FFmpeg garbles 4:4:4 files of old versions
        container.seek(stream.start_time or 0, stream=stream)
        next(container.demux(stream)).decode()
    are_independent = len(timeline.keyframes) >= len(timeline.ticks)
    # Frames between which whole groups of pictures can be passed over are sought one by one
    runs, last_group = [], -math.inf
    for tick in wanted:
        group = bisect.bisect_right(timeline.keyframes, tick)
        if not runs or group - last_group > 1 and not are_independent:
            runs.append((timeline.keyframes[group - 1] if group else tick, []))
        runs[-1][1].append(tick)
        last_group = group
    upright, picked, aspect = Upright(), {}, 1.0
    for start, run in runs:
        container.seek(start, stream=stream, backward=True)
        for frame in _decode_run(container, stream, run, are_independent):
            aspect = aspect if picked else _pixel_aspect(stream, frame)
            picked[frame.pts] = upright(frame)
    return picked, aspect


def _decode_run(container, stream, run: list[int], are_independent: bool) -> list:
    """Those of the frames at these times that decode, from the packet on at which the container stands.

    Frames that are not wanted are not decoded, if no other frame refers to them (none does if they are independent).
    """
    missing, frames, num_late, last = set(run), [], 0, -math.inf
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
        except _error_class():
            break
        for frame in decoded:
            if frame.pts is None or frame.pts < last:
                return []  # AVI has no times of showing; those that FFmpeg guesses are wrong here
            last = frame.pts
            if frame.pts in missing:
                missing.remove(frame.pts)
                frames.append(frame)
        num_late += packet.dts is not None and packet.dts > run[-1]
        if not missing or num_late > MAX_DELAY:
            break
    return frames


def _pick(frames: Iterator, wanted: list[int]) -> torch.Tensor | None:
    """The frames of these ascending indices, (T, 3, H, W); None where one is missing."""
    kept, upright = set(wanted), Upright()
    picked = {
        index: upright(frame) for index, frame in enumerate(itertools.islice(frames, wanted[-1] + 1)) if index in kept
    }
    return torch.stack([picked[index] for index in wanted]) if len(picked) == len(kept) else None


def _av():
    try:
        import av.filter
    except ImportError as error:
        raise ImportError(
            "videos decode with torchcodec or PyAV: pip install torchcodec, or pip install av"
        ) from error
    return av


def _error_class() -> type[Exception]:
    return _av().FFmpegError


@contextlib.contextmanager
def _as_value_errors() -> Iterator[None]:
    try:
        yield
    except _error_class() as error:
        raise ValueError(str(error)) from error


def _open(file: str | io.BytesIO):
    # The whitelist keeps a playlist inside a file from opening network connections
    return _av().open(file, options={"protocol_whitelist": "file"})


def _video_stream(container):
    stream = container.streams.best("video")
    if stream is None:
        raise ValueError("no video stream")
    if stream.codec_context is None:
        raise ValueError("FFmpeg has no decoder for this codec")
    # Threaded decoding would report an error some frames after the damage, depending on the number of cores
    stream.thread_type = "NONE"
    return stream


def _orientation(frame) -> tuple[bool, int, int]:
    """Whether rows and columns are to be swapped, then the steps, 1 or -1, at which to read rows and columns.

    A frame may be mirrored, too, which `frame.rotation` does not tell.
    """
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV refuses all side data for one of a kind that it does not know, such as EXIF
        return QUARTER_TURNS[round(frame.rotation / 90) % 4]
    if matrix is None:
        return False, 1, 1
    # A pixel at (x, y) is shown at (a x + c y, b x + d y): ISO/IEC 14496-12, sec. 6.2.2
    a, b, _, c, d = struct.unpack_from("=5i", matrix)
    lies_on_side = abs(b) + abs(c) > abs(a) + abs(d)
    across, down = (c, b) if lies_on_side else (a, d)
    return lies_on_side, -1 if down < 0 else 1, -1 if across < 0 else 1


def _rgb_graph(frame):
    graph = _av().filter.Graph()
    graph.threads = 1  # starting others takes longer than a frame does
    size = f"{frame.width}x{frame.height}"
    graph.link_nodes(
        graph.add("buffer", video_size=size, pix_fmt=frame.format.name, time_base=str(frame.time_base)),
        graph.add("scale"),
        graph.add("format", "rgb24"),
        graph.add("buffersink"),
    ).configure()
    return graph
