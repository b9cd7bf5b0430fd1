"""Reading chosen frames of a video file: torchcodec, or PyAV where torchcodec fails.

Both give the same frames, except that they turn 10-bit video into RGB differently. Neither is imported before a file
is read, so that the models load where both are missing. T frames, H and W pixels.
"""

import contextlib
import functools
import io
import logging
import os
import urllib.request
from collections.abc import Callable, Iterator

import torch


logger = logging.getLogger(__name__)

URL_TIMEOUT = 60  # seconds without a byte

# Bytes from which text is told: it has no control characters but these, and every video has others early on
HEAD = 4096
TEXT = b"\t\n\r\f\x1b" + bytes(range(32, 256))
# These may hold any bytes further on
PLAYLISTS = (b"#EXTM3U", b"ffconcat")

# From the number of frames of a video to the ascending indices of those to read.
Choose = Callable[[int], list[int]]


def read_file(source: str | bytes | os.PathLike, choose: Choose) -> torch.Tensor:
    """The chosen frames of a file, a URL or the bytes of a file: uint8, shape (T, 3, H, W)."""
    name = f"{len(source)} bytes" if isinstance(source, bytes) else os.fspath(source)
    if name.startswith(("http://", "https://")):
        source = _download(name)
    elif not isinstance(source, bytes):
        if not os.path.isfile(name):
            raise ValueError(f"{name}: no such file")
        source = os.path.abspath(name)  # FFmpeg takes a name such as "a:b.mp4" for a protocol
    _refuse_playlists(source, name)
    decoder_class = _torchcodec_decoder()
    is_hidden = isinstance(source, bytes) and not hasattr(os, "memfd_create")  # no path without a copy on disk
    if is_hidden or decoder_class is None:
        return _read_pyav(source, name, choose)
    try:
        with _with_path(source) as path:
            return read_decoder(decoder_class(path, num_ffmpeg_threads=1), choose)
    except (RuntimeError, ValueError, IndexError) as error:
        frames = _read_pyav(source, name, choose)
        logger.warning(f"{name}: PyAV reads this video, torchcodec fails: {_one_line(error)}")
        return frames


def _refuse_playlists(source: str | bytes, name: str):
    """Playlists, which have FFmpeg open other files and addresses, are text, and no video is."""
    if isinstance(source, bytes):
        head = source[:HEAD]
    else:
        with open(source, "rb") as file:
            head = file.read(HEAD)
    if head.startswith(PLAYLISTS) or head and not head.translate(None, delete=TEXT):
        raise ValueError(f"{name}: text, no video")


@contextlib.contextmanager
def _with_path(source: str | bytes) -> Iterator[str]:
    """A path of the source. FFmpeg lets a file refer to other local files alone, but bytes to any address."""
    if isinstance(source, str):
        yield source
        return
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
        logger.warning(f"PyAV decodes the videos, slower than torchcodec, which does not load: {_one_line(error)}")
        return None
    return VideoDecoder


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _download(url: str) -> bytes:
    # Some servers refuse the name that urllib gives itself
    request = urllib.request.Request(url, headers={"User-Agent": "layerlock_hf"})
    try:
        with urllib.request.urlopen(request, timeout=URL_TIMEOUT) as response:
            return response.read()
    except OSError as error:
        raise ValueError(f"{url}: {error}") from error


def read_decoder(decoder, choose: Choose) -> torch.Tensor:
    """The chosen frames of a `VideoDecoder`, in the order of dimensions that it was made with."""
    if len(decoder) == 0:
        raise ValueError("no frames")
    if decoder.metadata.codec == "h264" and "444" in (decoder.metadata.pixel_format or ""):
        # Only the first frame names the x264 version, without which FFmpeg garbles 4:4:4 files of old versions
        decoder.get_frame_at(0)
    return decoder.get_frames_at(choose(len(decoder))).data


def _read_pyav(source: str | bytes, name: str, choose: Choose) -> torch.Tensor:
    """`read_file` without torchcodec: decodes from the first frame on, and of a damaged file what precedes damage."""
    try:
        import av
    except ImportError as error:
        raise ImportError(
            "videos decode with torchcodec or PyAV: pip install torchcodec, or pip install av"
        ) from error
    try:
        with _open(av, source) as container:
            stream = _video_stream(container)
            num_packets = sum(1 for packet in container.demux(stream) if packet.size and not packet.is_discard)
        frames = _pick(_decode(av, source), choose(num_packets)) if num_packets else []
        if num_packets and len(frames) == len(choose(num_packets)):
            return torch.stack(frames)
        num_frames = sum(1 for _ in _decode(av, source))
        if num_frames == 0:
            raise ValueError("no frame can be decoded")
        frames = _pick(_decode(av, source), choose(num_frames))
    except (av.FFmpegError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error
    logger.warning(f"{name}: only {num_frames} of {num_packets} frames decode")
    return torch.stack(frames)


def _open(av, source: str | bytes):
    # The whitelist keeps a playlist inside a file from opening network connections
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    return av.open(file, options={"protocol_whitelist": "file"})


def _video_stream(container):
    stream = container.streams.best("video")
    if stream is None:
        raise ValueError("no video stream")
    # Threaded decoding would report an error some frames after the damage, depending on the number of cores
    stream.thread_type = "NONE"
    return stream


def _decode(av, source: str | bytes) -> Iterator:
    """The frames before the first damage, in order of presentation."""
    with _open(av, source) as container:
        stream = _video_stream(container)
        started = False
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                # A recording may start in the middle of a group of pictures: what precedes the first frame is skipped
                if not started:
                    continue
                # Frames after the damage refer to missing ones; those still in the decoder precede it
                yield from stream.decode(None)
                return
            started = started or bool(frames)
            yield from frames


def _pick(frames: Iterator, indices: list[int]) -> list[torch.Tensor]:
    """The frames at ascending indices, upright, as uint8 tensors (3, H, W); fewer where the video ends early."""
    picked = []
    for index, frame in enumerate(frames):
        if len(picked) == len(indices):
            break
        if index == indices[len(picked)]:
            # Bicubic concerns the chroma of odd-sized videos only, and is what torchcodec does
            pixels = torch.from_numpy(frame.to_ndarray(format="rgb24", interpolation="BICUBIC"))
            picked.append(torch.rot90(pixels, round(frame.rotation / 90), dims=(0, 1)).permute(2, 0, 1).contiguous())
    return picked
