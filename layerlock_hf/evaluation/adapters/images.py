"""Single images, decoded by PyAV: colour as bytes, depth as 16-bit numbers."""

from pathlib import Path

import av
import numpy as np
import torch

from ...data import DecodingError
from ...data.clips import one_line


# What an image file begins with -> FFmpeg's decoder
DECODERS = {b"\xff\xd8": "mjpeg", b"\x89P": "png"}
# FFmpeg's names of one channel of 16 bits. Depth in 8 bits or in colours is a picture of depth, without a unit
DEPTH_FORMATS = ("gray16be", "gray16le")
NOT_METRIC = "not metric"  # a kind of `DecodingError`
# What the median depth of a frame may be, in metres: less or more is another unit, or a disparity
MIN_MEDIAN, MAX_MEDIAN = 0.05, 100.0


def read_bytes(path: str) -> bytes:
    """
    Raises:
        DecodingError: if there is no such file, or it may not be read.
    """
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise DecodingError(f"{path}: no such file", "missing") from error
    except OSError as error:
        raise DecodingError(f"{path}: {one_line(error.strerror)}", "unreadable") from error


def decode_colour(data: bytes, name: str) -> torch.Tensor:
    """The pixels of a JPEG or PNG, uint8 (3, H, W); `name` is for messages.

    Raises:
        DecodingError: if it is none, or damaged.
    """
    return torch.from_numpy(_decode(data, name).to_ndarray(format="rgb24")).permute(2, 0, 1)


def decode_depth(data: bytes, name: str) -> np.ndarray:
    """The numbers of a PNG of one channel of 16 bits, uint16 (H, W), as they are.

    Raises:
        DecodingError: if it is none, or damaged; of the kind "not metric", if its pixels are of another type.
    """
    frame = _decode(data, name)
    if frame.format.name not in DEPTH_FORMATS:
        raise DecodingError(
            f"{name}: depth must be a PNG of one channel of 16 bits, in known units, but its pixels are "
            f"{frame.format.name}",
            NOT_METRIC,
        )
    return frame.to_ndarray()


def to_metres(depth: np.ndarray, per_metre: float, invalid: int = 0) -> torch.Tensor:
    """Float32 depth in metres from whole numbers, of which `per_metre` are a metre and `invalid` means unknown."""
    metres = torch.from_numpy(depth.astype(np.float32)) / per_metre
    return metres.masked_fill_(torch.from_numpy(depth == invalid), 0) if invalid else metres


def stack(images: list[torch.Tensor], name: str) -> torch.Tensor:
    """
    Raises:
        DecodingError: if the images are of several sizes.
    """
    sizes = sorted({tuple(image.shape[-2:]) for image in images})
    if len(sizes) > 1:
        raise DecodingError(f"{name}: images of {sizes[0]} and {sizes[1]} pixels in one recording", "unsupported")
    return torch.stack(images)


def is_plausible(depth: torch.Tensor) -> bool:
    """Whether a depth map with any known values can be in metres, by the median of these."""
    return MIN_MEDIAN <= depth[depth > 0].median().item() <= MAX_MEDIAN


def _decode(data: bytes, name: str) -> av.VideoFrame:
    if not data:
        raise DecodingError(f"{name}: empty", "empty")
    if data[:2] not in DECODERS:
        raise DecodingError(f"{name}: neither JPEG nor PNG", "unsupported")
    try:
        # A decoder of its own for each, as one that met damage may give it away with the next image
        codec = av.CodecContext.create(DECODERS[data[:2]], "r")
        frames = codec.decode(av.Packet(data)) + codec.decode(None)
    except av.FFmpegError as error:
        raise DecodingError(f"{name}: {one_line(error.strerror or error)}") from error
    if not frames:
        raise DecodingError(f"{name}: no image")
    return frames[0]
