"""Miniatures of datasets in the layouts of their owners."""

import struct
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest


def png(image):
    """A PNG of uint8 or uint16 pixels, gray (H, W) or colour (H, W, 3), by the book and not by what is tested."""
    height, width = image.shape[:2]
    rows = image.astype(image.dtype.newbyteorder(">")).reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8 * image.itemsize, 2 if image.ndim == 3 else 0, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    body = [
        struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))
        for kind, part in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def jpeg(image):
    """A JPEG of uint8 pixels (H, W, 3)."""
    codec = av.CodecContext.create("mjpeg", "w")
    codec.height, codec.width = image.shape[:2]
    codec.pix_fmt, codec.time_base = "yuvj444p", Fraction(1)
    codec.options = {"qmin": "1", "qmax": "1"}
    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuvj444p")
    return b"".join(bytes(packet) for packet in codec.encode(frame) + codec.encode(None))


def colour_of(index, height=12, width=16):
    """An image that tells its index by its red: 10 + 20 index."""
    return np.broadcast_to(np.array([10 + 20 * index, 60, 90], np.uint8), (height, width, 3)).copy()


def depth_of(index, height=12, width=16, per_metre=1000):
    """Depth that tells its index: 1 + index / 10 metres, unknown in the first column."""
    depth = np.full((height, width), round((1 + index / 10) * per_metre), np.uint16)
    depth[:, 0] = 0
    return depth


def write_video(path, num_frames):
    """A video of such images; returns its path."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv444p"
        for index in range(num_frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(colour_of(index, 32, 32), format="rgb24")))
        container.mux(stream.encode())
    return str(path)


def indices_of(colour, depth):
    """What the colour and the depth of frames tell of their indices."""
    red = [round((frame[0].float().mean().item() - 10) / 20) for frame in colour]
    return red, [round((frame[frame > 0].median().item() - 1) * 10) for frame in depth]


@pytest.fixture(scope="session")
def images():
    """The functions above."""

    class Images:
        png, jpeg = staticmethod(png), staticmethod(jpeg)
        colour, depth, indices = staticmethod(colour_of), staticmethod(depth_of), staticmethod(indices_of)
        video = staticmethod(write_video)

    return Images


@pytest.fixture
def write(tmp_path):
    """A function that writes a file, empty unless it is told a text or bytes, below a folder, which it returns."""

    def write(name, content=b""):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return tmp_path

    return write
