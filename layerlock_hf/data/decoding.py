"""Reading chosen frames of a video file: by PyAV, and by torchcodec where PyAV fails or the GPU decodes.

PyAV comes first because it can leave out frames that are neither wanted nor needed to decode others, and brings its
own FFmpeg.
"""

import contextlib
import io
import math
import os
from collections.abc import Iterator

import torch

from ..models.video_reading_pictures import read_pictures
from .clips import Choose, Clip, Crop, DecodingError, one_line
from .decoding_pyav import read_pyav
from .decoding_torchcodec import read_torchcodec
from .transforms import resize


# Bytes from which text is told: it has no control characters but these, and every video has others early on
HEAD = 4096
TEXT = b"\t\n\r\f\x1b" + bytes(range(32, 256))
# These may hold any bytes further on
PLAYLISTS = (b"#EXTM3U", b"ffconcat")
ENCRYPTED_TRACK = b"encv"  # the name of an encrypted video track's sample entry (ISO/IEC 23001-7)
HEADER = 2**20  # bytes at each end of a file that its header is sought in


def read_clip(
    source: str | bytes,
    choose: Choose,
    crop: Crop | None = None,
    frame_rate: float | None = None,
    device: str = "cpu",
) -> Clip:
    """Read the frames `choose(num_frames)` of the best video stream of a local file or of its bytes, or of a folder of
    pictures, a frame each.

    The frames are counted on a timeline of constant frame rate, the average one of the video: where the rate varies,
    a frame that is shown for long is counted several times.

    A file that one decoder cannot read goes to the other. Of a damaged file the part before the damage is read;
    `choose` is then called again with the number of frames there are, and `note` of the clip says what happened.

    Args:
        source: path or bytes.
        choose: gives ascending indices for a number of frames.
        crop: what is kept of the frames; by default all.
        frame_rate: frames per second of the timeline, in place of the average.
        device: "cpu", or "cuda" to decode by NVDEC. The frames come back to the CPU.

    Raises:
        DecodingError: when nothing can be decoded.
    """
    if isinstance(source, str) and os.path.isdir(source):
        return _read_folder(source, choose, crop, frame_rate)
    first, second = (read_pyav, read_torchcodec) if device == "cpu" else (read_torchcodec, read_pyav)
    with _openable(source) as file:
        try:
            return first(file, choose, crop, frame_rate, device)
        except DecodingError as error:
            try:
                clip = second(file, choose, crop, frame_rate, "cpu")
            except DecodingError:
                raise _explained(error, file) from None
            clip.note = clip.note or f"read by {second.__name__.removeprefix('read_')} alone: {error}"
            return clip


def _read_folder(folder: str, choose: Choose, crop: Crop | None, frame_rate: float | None) -> Clip:
    """Frames without times, which are counted as they come."""
    lengths = []

    def choose_and_count(num_frames: int) -> list[int]:
        lengths.append(num_frames)
        return choose(num_frames)

    try:
        frames = read_pictures(folder, choose_and_count, frame_rate)
    except ValueError as error:
        raise DecodingError(one_line(error), "unreadable") from error
    if crop is not None:
        top, left, rows, columns = crop.box(*frames.shape[-2:], 1.0)
        frames = frames[..., top : top + rows, left : left + columns]
        frames = frames if crop.image_size is None else resize(frames, crop.image_size)
    return Clip(frames, torch.full((len(frames),), math.nan, dtype=torch.float64), lengths[-1])


@contextlib.contextmanager
def _openable(source: str | bytes) -> Iterator[str | io.BytesIO]:
    """What the decoders open: an absolute path where there is one.

    FFmpeg takes a name such as "http://x" or "a:b.mp4" for a protocol; lets a file refer to other local files alone,
    but bytes to any address; and reads bytes slowly, through Python.
    """
    _check(source)
    if isinstance(source, str):
        yield os.path.abspath(source)
    elif not hasattr(os, "memfd_create"):
        yield io.BytesIO(source)
    else:
        with open(os.memfd_create("clip"), "w+b") as file:
            file.write(source)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"


def _check(source: str | bytes):
    """Refuse what is no video, or worse.

    What is not a regular file, such as a named pipe, might never answer, and text may be a playlist, which has FFmpeg
    open what it names.
    """
    if isinstance(source, bytes):
        head = source[:HEAD]
    else:
        if not os.path.exists(source):
            raise DecodingError("no such file", "missing")
        if not os.path.isfile(source):
            raise DecodingError("not a regular file", "unreadable")
        try:
            with open(source, "rb") as file:
                head = file.read(HEAD)
        except OSError as error:
            raise DecodingError(one_line(error.strerror), "unreadable") from error
    if not head:
        raise DecodingError("empty", "empty")
    if head.startswith(PLAYLISTS) or not head.translate(None, delete=TEXT):
        raise DecodingError("text, no video", "text")


def _explained(error: DecodingError, file: str | io.BytesIO) -> DecodingError:
    """A better reason than that nothing decodes, where there is one."""
    if error.kind not in ("damaged", "unsupported"):
        return error
    with open(file, "rb") if isinstance(file, str) else io.BytesIO(file.getvalue()) as stream:
        head = stream.read(HEADER)
        stream.seek(-min(HEADER, stream.seek(0, os.SEEK_END)), os.SEEK_END)
        if ENCRYPTED_TRACK in head + stream.read():
            return DecodingError("encrypted", "encrypted")
    return error
