"""Depth videos for predict.py: the input, its depth in colours, and what the colours mean, side by side.

T frames, H and W pixels, S side of the frames that the model takes.
"""

import contextlib
import io
import os
from collections import Counter
from collections.abc import Iterator
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

from layerlock_hf.data import DECODE_TIMEOUT, DecodingError, Isolated, fetch, name_of, read_clip
from layerlock_hf.models.pipeline_video_depth import squeezed_clip


MAX_SIDE = 480  # pixels of the shown frames
LEGEND_WIDTH = 72  # pixels
COLORS = "turbo_r"  # near is red, far is blue


class Windows(torch.utils.data.Dataset):
    """All frames of one video, in pieces that a child process reads.

    An item is (clips float (K, T, C, S, S), frames uint8 (N, 3, h, w) as they are shown, note), where clip k has every
    K-th of the N frames, from frame k on.
    """

    def __init__(self, source: str | bytes, processor, config):
        """
        Raises:
            DecodingError: if the video cannot be read.
        """
        self.source = source
        self.processor = processor
        self.config = config
        self.stride = processor.frame_stride
        self._read = Isolated(self._window, DECODE_TIMEOUT)
        self.num_frames, self.rate = Isolated(self._look, DECODE_TIMEOUT)()

    def __len__(self) -> int:
        return -(-self.num_frames // (self.config.num_frames * self.stride))

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, str | None] | DecodingError:
        try:
            clips, frames, note = self._read(index)
        except DecodingError as error:
            return error
        return torch.from_numpy(clips), torch.from_numpy(frames), note

    def _look(self) -> tuple[int, float]:
        """Number of frames, on a timeline of constant rate, and that rate."""
        clip = read_clip(self.source, lambda length: sorted({0, length - 1}))
        seconds = float(clip.timestamps[-1] - clip.timestamps[0])
        return clip.num_frames, (clip.num_frames - 1) / seconds if seconds > 0 else 1.0

    def _window(self, index: int) -> tuple[np.ndarray, np.ndarray, str | None]:
        length = self.config.num_frames * self.stride
        start = index * length
        clip = read_clip(self.source, lambda available: list(range(start, min(start + length, available))))
        kept = range(min(self.stride, len(clip.frames)))
        clips = [squeezed_clip(clip.frames[first :: self.stride], self.processor, self.config) for first in kept]
        return torch.cat(clips).numpy(), shown(clip.frames, clip.pixel_aspect).numpy(), clip.note


def shown(frames: torch.Tensor, pixel_aspect: float) -> torch.Tensor:
    """Frames as a player shows them, of even height and width, as H.264 wants them."""
    height, width = frames.shape[-2], frames.shape[-1] * pixel_aspect
    scale = min(1.0, MAX_SIDE / max(height, width))
    size = tuple(max(2, 2 * round(side * scale / 2)) for side in (height, width))
    return F.interpolate(frames, size=size, mode="bilinear", antialias=True)


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
            self.part.replace(self.path)
        else:
            self.part.unlink(missing_ok=True)  # there is none before the first frame

    def add(self, frames: torch.Tensor, depth: torch.Tensor):
        """Frames as they are shown, uint8 (N, 3, H, W), beside their depth in metres, (N, S, S)."""
        height, width = frames.shape[-2:]
        if self._stream is None:
            self._legend = torch.from_numpy(legend(height, self.max_depth).copy())
            # With threads of its own, an encoder that is left to the garbage collector hangs a child that collects it
            options = {"crf": "20", "threads": "1"}
            self._stream = self._container.add_stream("libx264", rate=self.rate, options=options)
            self._stream.height, self._stream.width = height, 2 * width + LEGEND_WIDTH
            self._stream.pix_fmt = "yuv420p"
        depth = F.interpolate(depth.unsqueeze(1), size=(height, width), mode="bilinear").squeeze(1)
        levels = (depth / self.max_depth * 255).nan_to_num(255).clamp(0, 255).long()
        for frame, colors in zip(frames.permute(0, 2, 3, 1), self.table[levels], strict=True):
            image = torch.cat([frame, colors, self._legend], dim=1)
            self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(image.numpy(), format="rgb24")))


def predict_depth(model, processor, videos, args) -> Iterator[tuple[int, dict]]:
    """Write the depth of each video; its number and its line of predictions."""
    for index, name in enumerate(file_names(videos)):
        try:
            yield index, estimate(model, processor, fetch(videos[index]), args.out / name, args)
        except DecodingError as error:
            yield index, {"error": str(error), "kind": error.kind}


def estimate(model, processor, source: str | bytes, stem: Path, args) -> dict:
    """Write the depth of one video to files of this name.

    Raises:
        DecodingError: if not all of its windows can be read; no file is left then.
    """
    windows = Windows(source, processor, model.config)
    workers = min(args.num_workers, len(windows) - 1)  # one window is read faster than a process starts
    loader = torch.utils.data.DataLoader(windows, batch_size=None, num_workers=workers)
    metres, notes = [], set()
    video = DepthVideo(stem.with_name(stem.name + ".mp4"), windows.rate, args.max_depth)
    with video:
        for item in loader:
            if isinstance(item, DecodingError):
                raise item
            clips, frames, note = item
            depth = depth_of_window(model, clips, len(frames), args)
            video.add(frames, depth)
            metres.append(depth if args.npz else depth[:, ::8, ::8])  # enough for the median
            notes |= {note} - {None}
    depth = torch.cat(metres)
    if args.npz:
        part = stem.with_name(stem.name + ".npz.part")
        with part.open("wb") as file:
            np.savez_compressed(file, depth=depth.numpy())
        os.replace(part, stem.with_name(stem.name + ".npz"))
    summary = {"min": depth.min().item(), "median": depth.median().item(), "max": depth.max().item()}
    metres = {key: round(value, 3) for key, value in summary.items()}
    line = {"depth": video.path.name, "num_frames": len(depth), "metres": metres}
    return line | ({"note": "; ".join(sorted(notes))} if notes else {})


def depth_of_window(model, clips: torch.Tensor, num_frames: int, args) -> torch.Tensor:
    """Interlocking clips (K, T, C, S, S) to the depth of their frames in order, float32 (num_frames, S, S)."""
    depths = []
    for some in clips.split(args.batch_size):
        with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16, enabled=args.bf16):
            depths.append(model(pixel_values_videos=some.to(model.device)).predicted_depth.float().cpu())
    # Frame k + K i is frame i of clip k
    return torch.cat(depths).transpose(0, 1).flatten(0, 1)[:num_frames]


def file_names(videos) -> list[str]:
    """A file name without suffix for each video: its own, with its number where several have the same."""
    stems = [Path(name_of(row, index)).stem or str(index) for index, row in enumerate(videos)]
    counts = Counter(stems)
    return [stem if counts[stem] == 1 else f"{stem}-{index}" for index, stem in enumerate(stems)]
