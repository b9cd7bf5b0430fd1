"""Reading chosen frames of a video file: PyAV, or torchcodec where PyAV fails or is missing.

PyAV comes first, as in pretraining: it tells when frames are shown, and mirrors those that are to be mirrored, which
torchcodec does not. Neither is imported before a file is read, so that the models load where both are missing.
T frames, H and W pixels.
"""

import bisect
import contextlib
import functools
import http.client
import io
import logging
import math
import os
import re
import statistics
import time
import urllib.request
from collections.abc import Callable, Iterator

import torch

from .video_reading_pictures import read_pictures
from .video_reading_pyav import Decoding, Upright, read_pyav, sensible_aspect


logger = logging.getLogger(__name__)

URL_TIMEOUT = 60  # seconds without a byte
MAX_SIZE = 4 * 2**30  # bytes of a download, which lies in memory
SLOWEST = 2**16  # bytes a second that it must bring

# Bytes from which text is told: it has no control characters but these, and every video has others early on
HEAD = 4096
TEXT = b"\t\n\r\f\x1b" + bytes(range(32, 256))
# These may hold any bytes further on
PLAYLISTS = (b"#EXTM3U", b"ffconcat")

# Average over usual interval between frames, up to which the rate is constant but for some that were dropped
MAX_GAPS = 1.1

# From the number of frames of a video to the ascending indices of those to read.
Choose = Callable[[int], list[int]]


def read_file(
    source: str | bytes | os.PathLike, choose: Choose | None = None, frame_rate: float | None = None
) -> tuple[torch.Tensor, float]:
    """Some frames of a file, a URL or the bytes of a file, or of a folder with a picture for each frame.

    Args:
        source: the video.
        choose: the frames, on a timeline of constant rate, where one that is shown for long counts several times; by
            default every frame of the file, once.
        frame_rate: frames per second of the timeline; by default the average of the video.

    Returns:
        uint8, shape (T, 3, H, W), upright; and the width of a pixel over its height.

    Raises:
        ValueError: naming the video, if nothing of it decodes.
    """
    if not isinstance(source, bytes) and os.path.isdir(source):
        try:
            return read_pictures(os.fspath(source), choose, frame_rate), 1.0
        except ValueError as error:
            raise ValueError(f"{os.fspath(source)}: {error}") from error
    source, name = _local(source)
    with _openable(source) as file:
        try:
            frames, aspect, note = read_pyav(file, functools.partial(_chosen, choose=choose, frame_rate=frame_rate))
        except (ImportError, ValueError) as error:
            decoder_class = _torchcodec_decoder() if isinstance(file, str) else None
            if decoder_class is None:
                raise type(error)(f"{name}: {error}") from error
            try:
                frames, aspect = read_decoder(decoder_class(file, num_ffmpeg_threads=1), choose, frame_rate)
            except (RuntimeError, ValueError, IndexError):
                raise ValueError(f"{name}: {error}") from error
            note = f"read by torchcodec alone: {error}"
    if note:
        logger.warning(f"{name}: {note}")
    return frames, aspect


def read_windows(
    source: str | bytes | os.PathLike, count: Callable[[float], int]
) -> Iterator[tuple[torch.Tensor, float, float]]:
    """All frames of a file, a URL or the bytes of a file, a window at a time, by PyAV alone.

    Args:
        source: the video.
        count: from the frames per second of the video, on average, to the number of frames of a window.

    Yields:
        uint8, (T, 3, H, W), upright; the width of a pixel over its height; and the frames per second.

    Raises:
        ValueError: naming the video, if nothing of it decodes. One that is damaged further on ends there, with a
            warning.
    """
    source, name = _local(source)
    with _openable(source) as file:
        decoding, upright = Decoding(file), Upright()
        num_read, window = 0, []
        try:
            for frame in decoding:
                window.append(upright(frame))
                num_read += 1
                if len(window) == count(decoding.frame_rate):
                    yield torch.stack(window), decoding.pixel_aspect, decoding.frame_rate
                    window = []
            if num_read == 0:
                raise ValueError("no frame can be decoded")
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        if window:
            yield torch.stack(window), decoding.pixel_aspect, decoding.frame_rate
    if decoding.is_damaged:
        logger.warning(f"{name}: only {num_read} of {decoding.num_packets} frames decode")


def shown_frames(seconds: list[float], frame_rate: float | None = None) -> list[int]:
    """Which frame a player shows at each tick of a timeline of constant frame rate, as in pretraining.

    Args:
        seconds: ascending times at which the frames appear.
        frame_rate: ticks per second; by default the usual rate of the frames, or the average one where it varies.

    Returns:
        indices of frames, one per tick.
    """
    if len(seconds) == 1:
        return [0]
    usual = statistics.median(after - before for before, after in zip(seconds[:-1], seconds[1:], strict=True))
    average = (seconds[-1] - seconds[0]) / (len(seconds) - 1)
    tick = usual if average <= MAX_GAPS * usual else average
    length = seconds[-1] - seconds[0] + tick  # the last frame is shown as long as others
    tick = tick if frame_rate is None else 1 / frame_rate
    # In the middle of a tick, so that rounded times of a constant rate give 0, 1, 2, ...
    times = (seconds[0] + (index + 0.5) * tick for index in range(max(1, round(length / tick))))
    return [bisect.bisect_right(seconds, time) - 1 for time in times]


def _chosen(seconds: list[float], choose: Choose | None, frame_rate: float | None) -> list[int]:
    if choose is None:
        return list(range(len(seconds)))
    shown = shown_frames(seconds, frame_rate)
    return [shown[index] for index in choose(len(shown))]


def _local(source: str | bytes | os.PathLike) -> tuple[str | bytes, str]:
    """An absolute path, or bytes; and the name for messages."""
    name = f"{len(source)} bytes" if isinstance(source, bytes) else os.fspath(source)
    if re.match("https?://", name, re.IGNORECASE):
        source = _download(name)
    elif not isinstance(source, bytes):
        if not os.path.isfile(name):
            raise ValueError(f"{name}: no such file")
        source = os.path.abspath(name)  # FFmpeg takes a name such as "a:b.mp4" for a protocol
    _refuse_playlists(source, name)
    return source, name


def _refuse_playlists(source: str | bytes, name: str):
    """Playlists, which have FFmpeg open other files and addresses, are text, and no video is."""
    if isinstance(source, bytes):
        head = source[:HEAD]
    else:
        try:
            with open(source, "rb") as file:
                head = file.read(HEAD)
        except OSError as error:
            raise ValueError(f"{name}: {error.strerror}") from error
    if head.startswith(PLAYLISTS) or head and not head.translate(None, delete=TEXT):
        raise ValueError(f"{name}: text, no video")


@contextlib.contextmanager
def _openable(source: str | bytes) -> Iterator[str | io.BytesIO]:
    """A path where there is one. FFmpeg lets a file refer to other local files alone, but bytes to any address."""
    if isinstance(source, str):
        yield source
    elif not hasattr(os, "memfd_create"):  # no path without a copy on disk
        yield io.BytesIO(source)
    else:
        with open(os.memfd_create("video"), "w+b") as file:
            file.write(source)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"


@functools.cache
def _torchcodec_decoder() -> type | None:
    """torchcodec's VideoDecoder, or None when it does not load on this machine."""
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError, OSError) as error:
        logger.warning(f"torchcodec does not load; PyAV alone decodes the videos: {_one_line(error)}")
        return None
    return VideoDecoder


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _download(url: str) -> bytes:
    # Some servers refuse the name that urllib gives itself
    headers = {"User-Agent": "layerlock_hf"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=URL_TIMEOUT) as response:
            return _read_all(response)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ValueError(f"{url}: {_one_line(error) or type(error).__name__}") from error


def _read_all(response: http.client.HTTPResponse) -> bytes:
    """What a server sends, as long as it is not too much and comes fast enough.

    Raises:
        ValueError: if it is too large or too slow, or ends early.
    """
    claimed = int(response.headers.get("Content-Length", 0))
    if claimed > MAX_SIZE:
        raise ValueError(f"{claimed} bytes, more than {MAX_SIZE}")
    begun, data = time.monotonic(), bytearray()
    while piece := response.read1(2**20):  # what is there, where `read` waits for all
        data += piece
        if len(data) > MAX_SIZE:
            raise ValueError(f"more than {MAX_SIZE} bytes")
        if time.monotonic() - begun > URL_TIMEOUT + len(data) / SLOWEST:
            raise ValueError(f"too slow: {len(data)} bytes in {time.monotonic() - begun:.0f} s")
    if len(data) < claimed:
        raise ValueError(f"ends after {len(data)} of {claimed} bytes")
    return bytes(data)


def read_decoder(decoder, choose: Choose | None = None, frame_rate: float | None = None) -> tuple[torch.Tensor, float]:
    """`read_file` of a `VideoDecoder`, with the frames in the order of dimensions that it was made with."""
    _check_decoder(decoder)
    if choose is None:
        frames = decoder.get_frames_at(list(range(len(decoder)))).data
    else:
        # It does not tell when its frames are shown, but finds those that are shown at some times
        begin, end = decoder.metadata.begin_stream_seconds, decoder.metadata.end_stream_seconds
        tick = (end - begin) / len(decoder) if frame_rate is None else 1 / frame_rate
        last = math.nextafter(end, begin)
        indices = choose(max(1, round((end - begin) / tick)))
        frames = decoder.get_frames_played_at([min(begin + (index + 0.5) * tick, last) for index in indices]).data
    return frames, _pixel_aspect(decoder, frames)


def read_decoder_windows(
    decoder, count: Callable[[float | None], int]
) -> Iterator[tuple[torch.Tensor, float, float | None]]:
    """`read_windows` of a `VideoDecoder`, with the frames in the order of dimensions that it was made with."""
    _check_decoder(decoder)
    rate = decoder.metadata.average_fps
    for window in torch.arange(len(decoder)).split(count(rate)):
        frames = decoder.get_frames_at(window.tolist()).data
        yield frames, _pixel_aspect(decoder, frames), rate


def _check_decoder(decoder):
    if len(decoder) == 0:
        raise ValueError("no frames")
    if decoder.metadata.codec == "h264" and "444" in (decoder.metadata.pixel_format or ""):
        # Only the first frame names the x264 version, without which FFmpeg garbles 4:4:4 files of old versions
        decoder.get_frame_at(0)


def _pixel_aspect(decoder, frames: torch.Tensor) -> float:
    """Of the frames as they come, turned upright."""
    shown_height = frames.shape[-2 if frames.shape[1] == 3 else -3]
    aspect = sensible_aspect(decoder.metadata.pixel_aspect_ratio)
    return aspect if decoder.metadata.height == shown_height else 1 / aspect
