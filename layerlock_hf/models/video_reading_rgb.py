"""From frames of PyAV, as stored, to upright ones in RGB. H and W pixels."""

import struct

import torch

from .video_reading_opening import DecodingError, load_av


MAX_PIXEL_ASPECT = 50  # more is a mistake in the file
# Pixels; a multiple of the steps in which all formats store chroma
MARGIN = 8
# What `orientation_of` gives for turns anticlockwise
QUARTER_TURNS = [(False, 1, 1), (True, -1, 1), (False, -1, -1), (True, 1, -1)]


class Upright:
    """Makes frames of one file RGB as `ffmpeg` does, and turns and mirrors them as the file asks.

    PyAV's own way differs for 10-bit and interlaced video.

    Args:
        first: one of the frames.
        box: top, left, height and width of what is kept of the upright frames, in pixels; by default all.
    """

    def __init__(self, first, box: tuple[int, int, int, int] | None = None):
        height, width = upright_size(first)
        top, left, rows, columns = (0, 0, height, width) if box is None else box
        self._shape, self._orientation = _shape_of(first), orientation_of(first)
        lies_on_side, row_step, column_step = self._orientation
        part = None
        if self._orientation == (False, 1, 1) and height % 2 == 0 and width % 2 == 0:
            part = _around(top, left, rows, columns, height, width)
            top, left = top - part[0], left - part[1]
        top = top if row_step > 0 else height - top - rows
        left = left if column_step > 0 else width - left - columns
        self._kept = slice(top, top + rows), slice(left, left + columns)
        self._graph = _rgb_graph(first, part)

    def __call__(self, frame) -> torch.Tensor:
        """uint8, shape (3, H, W), stored pixel by pixel.

        Raises:
            DecodingError: if the size differs from that of the first frame.
        """
        if _shape_of(frame) != self._shape:
            raise DecodingError("the size of the frames changes within the video", "unsupported")
        self._graph.push(frame)
        rgb = self._graph.pull()
        plane = rgb.planes[0]
        stored = torch.frombuffer(plane, dtype=torch.uint8)
        pixels = stored.as_strided((rgb.height, rgb.width, 3), (plane.line_size, 3, 1))
        lies_on_side, row_step, column_step = self._orientation
        pixels = (pixels.transpose(0, 1) if lies_on_side else pixels)[self._kept]
        mirrored = [dim for dim, step in ((0, row_step), (1, column_step)) if step < 0]
        return (pixels.flip(mirrored).contiguous() if mirrored else pixels).permute(2, 0, 1)


def orientation_of(frame) -> tuple[bool, int, int]:
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


def upright_size(frame) -> tuple[int, int]:
    """Height and width of the frame once it is upright."""
    return (frame.width, frame.height) if orientation_of(frame)[0] else (frame.height, frame.width)


def upright_aspect(ratio, frame) -> float:
    """Width of a pixel over its height, from that of the stored frame, once the frame is upright."""
    aspect = sensible_aspect(ratio)
    return 1 / aspect if orientation_of(frame)[0] else aspect


def sensible_aspect(ratio) -> float:
    """The aspect of a pixel from a file's metadata, where it makes sense; square otherwise."""
    aspect = float(ratio) if ratio else 1.0
    return aspect if 1 / MAX_PIXEL_ASPECT <= aspect <= MAX_PIXEL_ASPECT else 1.0


def _shape_of(frame) -> tuple[str, int, int]:
    return frame.format.name, frame.height, frame.width


def _around(top: int, left: int, rows: int, columns: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of a part with room for the chroma to be interpolated, on the chroma's own grid."""
    first_row, first_column = max(0, top // MARGIN - 1) * MARGIN, max(0, left // MARGIN - 1) * MARGIN
    last_row = min(height, ((top + rows) // MARGIN + 2) * MARGIN)
    last_column = min(width, ((left + columns) // MARGIN + 2) * MARGIN)
    return first_row, first_column, last_row - first_row, last_column - first_column


def _rgb_graph(frame, part: tuple[int, int, int, int] | None):
    graph = load_av().filter.Graph()
    graph.threads = 1  # starting others takes longer than a clip does
    size = f"{frame.width}x{frame.height}"
    # Frames pass one by one: their times do not matter, and some that follow damage have no time base
    nodes = [graph.add("buffer", video_size=size, pix_fmt=frame.format.name, time_base="1/1")]
    if part is not None:
        top, left, height, width = map(str, part)
        nodes.append(graph.add("crop", x=left, y=top, w=width, h=height, exact="1"))
    nodes += [graph.add("scale"), graph.add("format", "rgb24"), graph.add("buffersink")]
    graph.link_nodes(*nodes).configure()
    return graph
