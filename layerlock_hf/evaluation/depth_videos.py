"""Depth videos: the input, its depth in colours, and what the colours mean, side by side.

N frames, H and W pixels of the shown frames, S side of the square that the model takes.
"""

import contextlib
import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from layerlock_hf.utils.files import put_in_place


MAX_SIDE = 480  # pixels of the shown frames
LEGEND_WIDTH = 72  # pixels
COLORS = "turbo_r"  # near is red, far is blue
UNSEEN = 40  # grey where the model does not look


def shown(frames: torch.Tensor, pixel_aspect: float) -> torch.Tensor:
    """Frames as a player shows them, of even height and width, as H.264 wants them."""
    height, width = frames.shape[-2], frames.shape[-1] * pixel_aspect
    scale = min(1.0, MAX_SIDE / max(height, width))
    size = tuple(max(2, 2 * round(side * scale / 2)) for side in (height, width))
    return F.interpolate(frames, size=size, mode="bilinear", antialias=True)


def scaled_box(
    box: tuple[int, int, int, int], from_size: tuple[int, int], to_size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a box once the frames have another height and width, rounded to pixels."""
    scales = [after / before for before, after in zip(from_size, to_size, strict=True)]
    rows, columns = (max(1, round(side * scale)) for side, scale in zip(box[2:], scales, strict=True))
    top, left = (round(start * scale) for start, scale in zip(box[:2], scales, strict=True))
    return min(top, to_size[0] - rows), min(left, to_size[1] - columns), rows, columns


def legend(height: int, max_depth: float) -> np.ndarray:
    """A bar of the colours with metres beside it, uint8 (height, LEGEND_WIDTH, 3)."""
    dpi = 80
    figure = Figure(figsize=(LEGEND_WIDTH / dpi, height / dpi), dpi=dpi)
    axes = figure.add_axes((0.1, 0.1, 0.2, 0.8))
    bar = figure.colorbar(ScalarMappable(Normalize(0, max_depth), COLORS), cax=axes)
    bar.ax.set_yticks(np.linspace(0, max_depth, max(2, min(6, height // 30))))
    bar.ax.tick_params(labelsize=8)
    bar.ax.set_title("m", fontsize=8, pad=2)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="rgba", dpi=dpi)
    image = np.frombuffer(buffer.getvalue(), np.uint8).reshape(-1, LEGEND_WIDTH, 4)[:height, :, :3]
    return np.pad(image, ((0, height - len(image)), (0, 0), (0, 0)), constant_values=255)


class DepthVideo:
    """An mp4 that is written frame by frame, and is there once it is complete.

    Args:
        path: of the file.
        rate: frames per second.
        max_depth: metres of the last colour.
    """

    def __init__(self, path: Path, rate: float, max_depth: float):
        self.path = path
        self.part = path.with_name(path.name + ".part")
        self.rate = Fraction(rate).limit_denominator(1001)
        self.max_depth = max_depth
        self.table = torch.from_numpy((colormaps[COLORS](np.arange(256))[:, :3] * 255).round().astype(np.uint8))

    def __enter__(self) -> "DepthVideo":
        self._container = av.open(str(self.part), "w", format="mp4")
        self._stream = None
        return self

    def __exit__(self, kind, error, traceback):
        with contextlib.ExitStack() as stack:
            stack.callback(self._container.close)
            if kind is None:
                self._container.mux(self._stream.encode(None))
        if kind is None:
            put_in_place(self.part, self.path)
        else:
            self.part.unlink(missing_ok=True)  # there is none before the first frame

    def add(self, frames: torch.Tensor, depth: torch.Tensor, box: tuple[int, int, int, int]):
        """Frames as they are shown, uint8 (N, 3, H, W), beside the depth of a box of them in metres, (N, S, S)."""
        height, width = frames.shape[-2:]
        if self._stream is None:
            self._legend = torch.from_numpy(legend(height, self.max_depth).copy())
            # With threads of its own, an encoder that is left to the garbage collector hangs a child that collects it
            # x264's macroblock tree reads memory that it never wrote: the same frames would give other pictures
            options = {"crf": "20", "threads": "1", "x264-params": "mbtree=0"}
            self._stream = self._container.add_stream("libx264", rate=self.rate, options=options)
            self._stream.height, self._stream.width = height, 2 * width + LEGEND_WIDTH
            self._stream.pix_fmt = "yuv420p"
        top, left, rows, columns = box
        depth = F.interpolate(depth.unsqueeze(1), size=(rows, columns), mode="bilinear").squeeze(1)
        levels = (depth / self.max_depth * 255).nan_to_num(255).clamp(0, 255).long()
        for frame, seen in zip(frames.permute(0, 2, 3, 1), self.table[levels], strict=True):
            colors = torch.full_like(frame, UNSEEN)
            colors[top : top + rows, left : left + columns] = seen
            image = torch.cat([frame, colors, self._legend], dim=1)
            self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(image.numpy(), format="rgb24")))
