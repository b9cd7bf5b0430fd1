"""Reading chosen frames of a video file: torchcodec, or PyAV where torchcodec fails."""

import contextlib
import functools
import io
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import av
import numpy as np
import torch


logger = logging.getLogger(__name__)

# FFmpeg prints hundreds of lines per damaged file; the reason reaches the user through DecodingError and Clip.note.
av.logging.set_level(av.logging.PANIC)


# Bytes from which text is told: it has no control characters but these, and every video has others early on
HEAD = 4096
TEXT = b"\t\n\r\f\x1b" + bytes(range(32, 256))
# These may hold any bytes further on
PLAYLISTS = (b"#EXTM3U", b"ffconcat")


class DecodingError(Exception):
    """No frame of a video can be had; the message is the reason, in one line.

    Args:
        message: the reason.
        kind: a word or two by which reasons are counted.
    """

    def __init__(self, message: str, kind: str = "damaged"):
        super().__init__(message, kind)  # both, so that it can be pickled
        self.kind = kind

    def __str__(self) -> str:
        return self.args[0]


@dataclass
class Clip:
    """Frames of one video.

    Attributes:
        frames: uint8 RGB, shape (T, C, H, W), turned upright as the rotation metadata asks.
        num_frames: number of frames of the video.
        note: None for a healthy video, else what is wrong with it.
    """

    frames: torch.Tensor
    num_frames: int
    note: str | None = None


# From the number of frames of a video to the ascending indices of those to read.
Choose = Callable[[int], list[int]]


def decoder_name() -> str:
    """The decoder `read_clip` tries first: "torchcodec" or "PyAV"."""
    return "PyAV" if _torchcodec_decoder() is None else "torchcodec"


def read_clip(source: str | bytes, choose: Choose, frame_rate: float | None = None, device: str = "cpu") -> Clip:
    """Read the frames `choose(num_frames)` of the best video stream of a local file or of its bytes.

    A file that torchcodec cannot read goes to PyAV, which reads the part before the damage; `choose` is then
    called again with the number of frames there are, and `note` of the clip says what happened.

    Raises:
        DecodingError: when nothing can be decoded.
    """
    source = _checked(source)
    is_hidden = isinstance(source, bytes) and not hasattr(os, "memfd_create")  # no path without a copy on disk
    if is_hidden or _torchcodec_decoder() is None:
        return read_clip_pyav(source, choose)
    try:
        with _with_path(source) as path:
            return _read_clip_torchcodec(path, choose)
    except (RuntimeError, ValueError, IndexError) as error:
        clip = read_clip_pyav(source, choose)
        clip.note = clip.note or f"PyAV reads this clip, torchcodec fails: {_one_line(error)}"
        return clip


def read_clip_pyav(source: str | bytes, choose: Choose) -> Clip:
    """`read_clip` without torchcodec: decodes from the first frame on, up to the last one asked for."""
    source = _checked(source)
    try:
        num_packets, claimed = _count_packets(source)
        indices = choose(num_packets) if num_packets else []
        frames = _pick(_decode(source), indices)
        if indices and len(frames) == len(indices):
            return Clip(torch.stack(frames), num_packets)
        num_frames = sum(1 for _ in _decode(source))
        if num_frames == 0:
            raise DecodingError("no frame can be decoded")
        frames = _pick(_decode(source), choose(num_frames))
    except av.FFmpegError as error:
        raise DecodingError(_one_line(error.strerror or error)) from error
    except (RuntimeError, ValueError, MemoryError) as error:  # such as frames of changing size
        raise DecodingError(f"{type(error).__name__}: {_one_line(error)}") from error
    return Clip(torch.stack(frames), num_frames, f"only {num_frames} of {claimed} frames decode")


@functools.cache
def _torchcodec_decoder() -> type | None:
    """torchcodec's VideoDecoder, or None when it does not load on this machine."""
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError, OSError) as error:
        logger.warning("PyAV decodes the videos, slower than torchcodec, which does not load: %s", _one_line(error))
        return None
    return VideoDecoder


@contextlib.contextmanager
def _with_path(source: str | bytes) -> Iterator[str]:
    """A path of the source. FFmpeg lets a file refer to other local files alone, but bytes to any address."""
    if isinstance(source, str):
        yield source
        return
    with open(os.memfd_create("clip"), "w+b") as file:
        file.write(source)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}"


def _read_clip_torchcodec(path: str, choose: Choose) -> Clip:
    decoder = _torchcodec_decoder()(path, dimension_order="NCHW", num_ffmpeg_threads=1, seek_mode="exact")
    num_frames = len(decoder)
    if num_frames == 0:
        raise ValueError("no frames")
    if decoder.metadata.codec == "h264" and "444" in (decoder.metadata.pixel_format or ""):
        # Only the first frame names the x264 version, without which FFmpeg garbles 4:4:4 files of old versions.
        decoder.get_frame_at(0)
    return Clip(decoder.get_frames_at(choose(num_frames)).data, num_frames)


def _checked(source: str | bytes) -> str | bytes:
    """The source, with a path made absolute: FFmpeg takes a name such as "http://x" or "a:b.mp4" for a protocol.

    What is not a regular file, such as a named pipe, might never answer, and text may be a playlist, which has FFmpeg
    open what it names.
    """
    if isinstance(source, bytes):
        head = source[:HEAD]
    else:
        if not os.path.isfile(source):
            if not os.path.exists(source):
                raise DecodingError("no such file", "missing")
            raise DecodingError("not a regular file", "no file")
        source = os.path.abspath(source)
        try:
            with open(source, "rb") as file:
                head = file.read(HEAD)
        except OSError as error:
            raise DecodingError(_one_line(error.strerror)) from error
    if not head:
        raise DecodingError("empty", "empty")
    if head.startswith(PLAYLISTS) or not head.translate(None, delete=TEXT):
        raise DecodingError("text, no video", "text")
    return source


def _open(source: str | bytes) -> av.container.InputContainer:
    # The whitelist keeps a playlist inside a file from opening network connections.
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    return av.open(file, options={"protocol_whitelist": "file"})


def _video_stream(container: av.container.InputContainer) -> av.VideoStream:
    stream = container.streams.best("video")
    if stream is None:
        raise DecodingError("no video stream", "no video")
    # Threaded decoding would report an error some frames after the damage, depending on the number of cores.
    stream.thread_type = "NONE"
    return stream


def _count_packets(source: str | bytes) -> tuple[int, int]:
    """The number of frames in the file as torchcodec's exact mode counts them, without decoding, and that claimed."""
    with _open(source) as container:
        stream = _video_stream(container)
        num_packets = sum(1 for packet in container.demux(stream) if packet.size and not packet.is_discard)
        # The header of a truncated file still knows how many frames there were.
        return num_packets, max(num_packets, stream.frames)


def _decode(source: str | bytes) -> Iterator[av.VideoFrame]:
    """The frames before the first damage, in order of presentation."""
    with _open(source) as container:
        stream = _video_stream(container)
        started = False
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                # A recording may start in the middle of a group of pictures: what precedes the first frame is skipped.
                if not started:
                    continue
                # Frames after the damage refer to missing ones; those still in the decoder precede it.
                frames = stream.decode(None)
                yield from frames
                return
            started = started or bool(frames)
            yield from frames


def _pick(frames: Iterator[av.VideoFrame], indices: list[int]) -> list[torch.Tensor]:
    """The frames at ascending indices as uint8 tensors (C, H, W), fewer where the video ends before the last one."""
    picked = []
    for index, frame in enumerate(frames):
        if len(picked) == len(indices):
            break
        if index == indices[len(picked)]:
            picked.append(_to_tensor(frame))
    return picked


def _to_tensor(frame: av.VideoFrame) -> torch.Tensor:
    # Bicubic concerns the chroma of odd-sized videos only, and is what torchcodec does.
    pixels = frame.to_ndarray(format="rgb24", interpolation="BICUBIC")
    pixels = np.rot90(pixels, round(frame.rotation / 90), axes=(0, 1))
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def _one_line(error: object) -> str:
    # torchcodec begins its messages with a function and a line of its C++ sources.
    message = re.sub(r"^\w+, \S+\.cpp:\d+, ", "", str(error))
    return " ".join(message.split())[:200]
