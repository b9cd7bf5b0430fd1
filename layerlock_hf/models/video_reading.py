"""Reading a video in any form that is a file: a path, a URL, bytes, or a folder of pictures.

By PyAV, or by torchcodec if PyAV fails or is missing. PyAV comes first, as in pretraining: it knows when frames are
shown, and mirrors those that are to be mirrored, which torchcodec does not. Neither is imported before a file is read,
so that the models load where both are missing. T frames, H and W pixels.
"""

import contextlib
import http.client
import io
import logging
import os
import re
import time
import urllib.request
from collections.abc import Callable, Iterator

import torch

from .video_reading_opening import DecodingError, as_decoding_errors, one_line, openable
from .video_reading_pictures import read_pictures
from .video_reading_pyav import Decoding, read_frames
from .video_reading_rgb import Upright
from .video_reading_timeline import Choose
from .video_reading_torchcodec import read_decoder, torchcodec_decoder


logger = logging.getLogger(__name__)

URL_TIMEOUT = 60  # seconds without a byte
MAX_SIZE = 4 * 2**30  # bytes of a download, which lies in memory
SLOWEST = 2**16  # bytes a second that it must bring


def read_file(
    source: str | bytes | os.PathLike, choose: Choose | None = None, frame_rate: float | None = None
) -> tuple[torch.Tensor, float]:
    """Some frames of a file, a URL or the bytes of a file, or of a folder with a picture for each frame.

    Logs a warning for what is lost from a damaged or truncated file.

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
    with _opened(source) as (file, name):
        try:
            with as_decoding_errors():
                found = read_frames(file, choose, frame_rate)
                upright = Upright(found.frames[0])
                frames = torch.stack([upright(frame) for frame in found.frames])
            aspect, note = found.pixel_aspect, found.note
        except (ImportError, ValueError, DecodingError) as error:
            decoder_class = torchcodec_decoder() if isinstance(file, str) else None
            if decoder_class is None:
                raise
            try:
                frames, aspect = read_decoder(decoder_class(file, num_ffmpeg_threads=1), choose, frame_rate)
            except (RuntimeError, ValueError, IndexError):
                raise error from None
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
    with _opened(source) as (file, name):
        decoding, upright, window = Decoding(file), None, []
        with as_decoding_errors():
            for frame in decoding:
                upright = upright or Upright(frame)
                window.append(upright(frame))
                rate = decoding.average_rate or 1.0
                if len(window) == count(rate):
                    yield torch.stack(window), decoding.pixel_aspect, rate
                    window = []
        if upright is None:
            raise DecodingError("no frame can be decoded")
        if window:
            yield torch.stack(window), decoding.pixel_aspect, rate
    if decoding.note:
        logger.warning(f"{name}: {decoding.note}")


@contextlib.contextmanager
def _opened(source: str | bytes | os.PathLike) -> Iterator[tuple[str | io.BytesIO, str]]:
    """What decoders open for a source, and its name for messages; errors name it, too."""
    name = f"{len(source)} bytes" if isinstance(source, bytes) else os.fspath(source)
    if re.match("https?://", name, re.IGNORECASE):
        source = _download(name)
    try:
        with openable(source) as file:
            yield file, name
    except (ImportError, ValueError, DecodingError) as error:
        error_class = ImportError if isinstance(error, ImportError) else ValueError
        raise error_class(f"{name}: {error}") from error


def _download(url: str) -> bytes:
    # Some servers refuse the name that urllib gives itself
    headers = {"User-Agent": "layerlock_hf"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=URL_TIMEOUT) as response:
            return _read_all(response)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ValueError(f"{url}: {one_line(error) or type(error).__name__}") from error


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
