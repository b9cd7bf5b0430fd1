"""Reading a video file with PyAV: when its frames are shown, and the frames in order, upright and RGB.

PyAV is not imported before a file is read, so that the models load where it is missing. T frames, H and W pixels.
"""

import bisect
import contextlib
import io
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch


MAX_PIXEL_ASPECT = 50  # more is a mistake in the file
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
        tick: that unit, in seconds.
        num_lost: number of frames that the header names and the file does not have.
    """

    ticks: list[int]
    keyframes: list[int]
    tick: float
    num_lost: int


def read_pyav(file: str | io.BytesIO, choose: Callable[[list[float]], list[int]]) -> tuple[torch.Tensor, float, str]:
    """Chosen frames, of a damaged file those that precede the damage.

    Args:
        file: the video.
        choose: from the times of the frames, in seconds, to the ascending indices of those to read.

    Returns:
        uint8, shape (T, 3, H, W); the width of a pixel over its height; and what is wrong with the file, or "".

    Raises:
        ValueError: if nothing decodes.
    """
    timeline = _timeline(file)
    if timeline is not None:
        wanted = [timeline.ticks[index] for index in choose([tick * timeline.tick for tick in timeline.ticks])]
        keyframe = timeline.keyframes[max(0, bisect.bisect_right(timeline.keyframes, wanted[0]) - 1)]
        decoding, num_frames = Decoding(file, start=keyframe), len(timeline.ticks)
        picked = _pick(((frame.pts, frame) for frame in decoding), wanted)
        if picked is not None:
            note = f"only {num_frames} of {num_frames + timeline.num_lost} frames decode" if timeline.num_lost else ""
            return picked, decoding.pixel_aspect, note
    # Without times, or damaged: from the first frame on, counted
    decoding = Decoding(file)
    ticks = [frame.pts for frame in decoding]
    if not ticks:
        raise ValueError("no frame can be decoded")
    if None in ticks or ticks != sorted(set(ticks)):
        seconds = [index / decoding.frame_rate for index in range(len(ticks))]
    else:
        seconds = [tick * decoding.tick for tick in ticks]
    note = f"only {len(ticks)} of {decoding.num_packets} frames decode" if decoding.is_damaged else ""
    return _pick(enumerate(Decoding(file)), choose(seconds)), decoding.pixel_aspect, note


class Decoding:
    """The frames of a file before the first damage, in order of presentation.

    Args:
        file: the video.
        start: time of the keyframe to begin at, in units of the stream's time base; by default the beginning.

    Attributes, once all frames are passed:
        is_damaged: whether there is damage.
        num_packets: number of frames that the file has or claims to have.
        pixel_aspect: width over height of a pixel of the upright frames.
        tick: unit of the frames' times, in seconds.
        frame_rate: average number of frames per second, 1 where that is unknown.
    """

    def __init__(self, file: str | io.BytesIO, start: int | None = None):
        self.file = file
        self.start = start
        self.is_damaged = False
        self.num_packets = 0
        self.pixel_aspect = 1.0

    def __iter__(self) -> Iterator:
        with _as_value_errors(), _open(self.file) as container:
            stream = _video_stream(container)
            self.tick, self.frame_rate = float(stream.time_base), float(stream.average_rate or 1)
            pixel_format = stream.codec_context.pix_fmt or ""
            if self.start is not None and pixel_format != "pal8":  # only the first packet may bring the palette
                if stream.codec_context.name == "h264" and "444" in pixel_format:
                    # Only the first frame names the x264 version, without which FFmpeg garbles files of old versions
                    next(container.demux(stream)).decode()
                container.seek(self.start, stream=stream, backward=True)
            is_first = True
            for frame in self._frames(container, stream):
                if is_first:
                    aspect = sensible_aspect(stream.sample_aspect_ratio)
                    self.pixel_aspect = 1 / aspect if _orientation(frame)[0] else aspect
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


def _timeline(file: str | io.BytesIO) -> Timeline | None:
    """The timeline; None where the file cannot be read to its end, or frames have no times."""
    with _as_value_errors(), _open(file) as container:
        stream = _video_stream(container)
        codec = stream.codec_context.name
        try:
            packets = [packet for packet in container.demux(stream) if packet.size and not _is_hidden(packet, codec)]
        except _error_class():
            return None
        ticks = [packet.pts for packet in packets if not packet.is_discard]
        keyframes = [packet.pts for packet in packets if packet.is_keyframe and packet.pts is not None]
        if not keyframes or None in ticks or len(set(ticks)) < len(ticks):
            return None
        # AVI counts ticks, and a file that was written to a pipe claims anything
        has_claim = container.format.name != "avi" and stream.frames * MIN_BYTES <= container.size
        num_lost = max(0, stream.frames - len(packets)) if has_claim else 0
        return Timeline(sorted(ticks), sorted(keyframes), float(stream.time_base), num_lost)


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


def _pick(frames: Iterator[tuple[int | None, object]], wanted: list[int]) -> torch.Tensor | None:
    """The frames of these ascending keys, (T, 3, H, W); None where one is missing, or keys descend."""
    missing, picked, upright, last = set(wanted), {}, Upright(), -math.inf
    for key, frame in frames:
        if key is None or key < last:
            return None  # AVI has no times of showing; those that FFmpeg guesses are wrong here
        last = key
        if key in missing:
            missing.remove(key)
            picked[key] = upright(frame)
        if not missing or key > wanted[-1]:
            break
    return None if missing else torch.stack([picked[key] for key in wanted])


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
