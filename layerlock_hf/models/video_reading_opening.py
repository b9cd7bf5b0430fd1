"""Opening a video with FFmpeg such that nothing else is opened with it, neither other files nor addresses.

PyAV is not imported before a file is read, so that the models load where it is missing.
"""

import contextlib
import io
import os
from collections.abc import Iterator


# Bytes from which text is told: it has no control characters but these, and every video has others early on
HEAD = 4096
TEXT = b"\t\n\r\f\x1b" + bytes(range(32, 256))
# These may hold any bytes further on
PLAYLISTS = (b"#EXTM3U", b"ffconcat")


class DecodingError(Exception):
    """A video, or the frames asked for, cannot be read; the message is the reason, in one line.

    Args:
        message: the reason.
        kind: a word or two by which reasons are counted.
    """

    def __init__(self, message: str, kind: str = "damaged"):
        super().__init__(message, kind)  # both, so that it can be pickled
        self.kind = kind

    def __str__(self) -> str:
        return self.args[0]


def load_av():
    """PyAV, with its filters.

    Raises:
        ImportError: if it is missing, saying how to install it.
    """
    try:
        import av.filter
    except ImportError as error:
        raise ImportError(
            "videos decode with torchcodec or PyAV: pip install torchcodec, or pip install av"
        ) from error
    return av


def ffmpeg_error() -> type[Exception]:
    """What PyAV raises for an error of FFmpeg."""
    return load_av().FFmpegError


@contextlib.contextmanager
def as_decoding_errors() -> Iterator[None]:
    error_class = ffmpeg_error()
    try:
        yield
    except error_class as error:
        raise DecodingError(one_line(error.strerror or error)) from error


@contextlib.contextmanager
def openable(source: str | bytes | os.PathLike) -> Iterator[str | io.BytesIO]:
    """What decoders open for a path or the bytes of a file: an absolute path where there is one.

    FFmpeg takes a name such as "http://x" or "a:b.mp4" for a protocol; lets a file refer to other local files alone,
    but bytes to any address; and reads bytes slowly, through Python.

    Raises:
        DecodingError: for anything but a video file. What is not a regular file, such as a named pipe, might never
            answer, and text may be a playlist, which has FFmpeg open what it names.
    """
    head = _head(source)
    if not head:
        raise DecodingError("empty", "empty")
    if head.startswith(PLAYLISTS) or not head.translate(None, delete=TEXT):
        raise DecodingError("text, no video", "text")
    if not isinstance(source, bytes):
        yield os.path.abspath(source)
    elif not hasattr(os, "memfd_create"):  # no path without a copy on disk
        yield io.BytesIO(source)
    else:
        with open(os.memfd_create("video"), "w+b") as file:
            file.write(source)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"


def _head(source: str | bytes | os.PathLike) -> bytes:
    if isinstance(source, bytes):
        return source[:HEAD]
    if not os.path.exists(source):
        raise DecodingError("no such file", "missing")
    if not os.path.isfile(source):
        raise DecodingError("not a regular file", "unreadable")
    try:
        with open(source, "rb") as file:
            return file.read(HEAD)
    except OSError as error:
        raise DecodingError(one_line(error.strerror), "unreadable") from error


def open_video(file: str | io.BytesIO):
    """PyAV's container of a file, which FFmpeg may read and nothing else: not what a playlist inside it names at a
    URL.

    Raises:
        DecodingError: where FFmpeg finds no format that it knows.
    """
    with as_decoding_errors():
        return load_av().open(file, options={"protocol_whitelist": "file"})


def video_stream(container):
    """The best video stream of a container.

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


def read_packets(container, stream) -> Iterator:
    """The packets of a stream, then None if the rest of the file cannot be read."""
    try:
        yield from container.demux(stream)
    except ffmpeg_error():
        yield None


def one_line(error: object) -> str:
    """A message for a report."""
    return " ".join(str(error).split())[:200]
