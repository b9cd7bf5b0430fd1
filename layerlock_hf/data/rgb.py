"""From decoded frames to a clip: turned upright, cropped, and RGB as `ffmpeg` makes it."""

from fractions import Fraction

import av
import av.filter
import numpy as np
import torch

from .clips import Clip, Crop, DecodingError, pixel_aspect
from .transforms import resize


# What `orientation_of` gives for turns anticlockwise
QUARTER_TURNS = [(False, 1, 1), (True, -1, 1), (False, -1, -1), (True, 1, -1)]
# Pixels; a multiple of the steps in which all formats store chroma
MARGIN = 8


def to_clip(
    stream: av.VideoStream, frames: list[av.VideoFrame], seconds: np.ndarray, num_frames: int, crop: Crop | None
) -> Clip:
    """The frames of a stream, shown from these seconds on, as a clip of a video of so many frames.

    Raises:
        DecodingError: if their size changes.
    """
    first = frames[0]
    shape = (first.format.name, first.height, first.width)
    if any((frame.format.name, frame.height, frame.width) != shape for frame in frames):
        raise DecodingError("the size of the frames changes within the clip", "unsupported")
    orientation = lies_on_side, _, _ = orientation_of(first)
    height, width = (first.width, first.height) if lies_on_side else (first.height, first.width)
    aspect = pixel_aspect(stream.sample_aspect_ratio)
    aspect = 1 / aspect if lies_on_side else aspect
    top, left, rows, columns = crop.box(height, width, aspect) if crop else (0, 0, height, width)
    part = None
    if orientation == (False, 1, 1) and first.height % 2 == 0 and first.width % 2 == 0:
        part = _around(top, left, rows, columns, height, width)
        top, left = top - part[0], left - part[1]
    graph = _rgb_graph(first, stream.time_base, part)
    if crop is None or crop.image_size is None:  # pixel by pixel, as frames are stored and resized fastest
        pixels = torch.empty(len(frames), rows, columns, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    else:
        pixels = torch.empty(len(frames), 3, crop.image_size, crop.image_size, dtype=torch.uint8)
    for index, frame in enumerate(frames):
        graph.push(frame)
        rgb = graph.pull()
        plane = rgb.planes[0]
        image = np.ndarray((rgb.height, rgb.width, 3), np.uint8, plane, strides=(plane.line_size, 3, 1))
        image = _upright(image, *orientation)[top : top + rows, left : left + columns]
        kept = torch.from_numpy(image if min(image.strides) > 0 else image.copy()).permute(2, 0, 1)
        # One by one, frames stay in the cache
        pixels[index] = kept if crop is None or crop.image_size is None else resize(kept[None], crop.image_size)[0]
    return Clip(pixels, torch.from_numpy(seconds), num_frames, aspect)


def orientation_of(frame: av.VideoFrame) -> tuple[bool, int, int]:
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
    a, b, _, c, d = np.frombuffer(matrix, np.int32, count=5).tolist()
    lies_on_side = abs(b) + abs(c) > abs(a) + abs(d)
    across, down = (c, b) if lies_on_side else (a, d)
    return lies_on_side, -1 if down < 0 else 1, -1 if across < 0 else 1


def _upright(image: np.ndarray, lies_on_side: bool, row_step: int, column_step: int) -> np.ndarray:
    return (image.swapaxes(0, 1) if lies_on_side else image)[::row_step, ::column_step]


def _around(top: int, left: int, rows: int, columns: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of a part with room for the chroma to be interpolated, on the chroma's own grid."""
    first_row, first_column = max(0, top // MARGIN - 1) * MARGIN, max(0, left // MARGIN - 1) * MARGIN
    last_row = min(height, ((top + rows) // MARGIN + 2) * MARGIN)
    last_column = min(width, ((left + columns) // MARGIN + 2) * MARGIN)
    return first_row, first_column, last_row - first_row, last_column - first_column


def _rgb_graph(frame: av.VideoFrame, time_base: Fraction, part: tuple[int, int, int, int] | None) -> av.filter.Graph:
    """What `ffmpeg` does to make part of such frames RGB; PyAV's own way differs for 10-bit and interlaced ones."""
    graph = av.filter.Graph()
    graph.threads = 1  # starting others takes longer than a clip does
    size = f"{frame.width}x{frame.height}"
    nodes = [graph.add("buffer", video_size=size, pix_fmt=frame.format.name, time_base=str(time_base))]
    if part is not None:
        top, left, height, width = map(str, part)
        nodes.append(graph.add("crop", x=left, y=top, w=width, h=height, exact="1"))
    nodes += [graph.add("scale"), graph.add("format", "rgb24"), graph.add("buffersink")]
    graph.link_nodes(*nodes)
    graph.configure()
    return graph
