"""What `layerlock predict` writes for a depth model: a depth video of each video, and its depth in metres."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..data import DECODE_TIMEOUT, DecodingError, Isolated, fetch, name_of, read_clip
from ..models.depth_windows import Window, estimate_windows, window_of
from ..utils.files import write_aside
from .depth_videos import DepthVideo, scaled_box, shown


MAX_NAME = 60  # characters, of up to 4 bytes each; file systems allow 255 bytes


@dataclass(frozen=True)
class ShownWindow(Window):
    """A window with what is shown of it.

    Attributes:
        frames: as they are shown, uint8 (N, 3, h, w).
        note: what is wrong with the video, or None.
    """

    frames: torch.Tensor
    note: str | None


class Windows(torch.utils.data.Dataset):
    """All frames of one video, on a timeline of constant rate, in windows that a child process reads.

    An item is a `ShownWindow`, or the `DecodingError` for which there is none.
    """

    def __init__(self, source: str | bytes, processor, num_frames: int):
        """
        Raises:
            DecodingError: if the video cannot be read.
        """
        self.source = source
        self.processor = processor
        self.clip_length = num_frames
        self.num_frames, self.rate = Isolated(self._look, DECODE_TIMEOUT)()
        self.stride = processor.stride_at(self.rate)
        self._read = Isolated(self._window, DECODE_TIMEOUT)

    def __len__(self) -> int:
        return -(-self.num_frames // (self.clip_length * self.stride))

    def __getitem__(self, index: int) -> ShownWindow | DecodingError:
        try:
            clips, frames, *rest = self._read(index)
        except DecodingError as error:
            return error
        num_frames, frame_size, box, note = rest
        return ShownWindow(torch.from_numpy(clips), num_frames, frame_size, box, torch.from_numpy(frames), note)

    def _look(self) -> tuple[int, float]:
        """Number of frames, and their rate."""
        clip = read_clip(self.source, lambda length: sorted({0, length - 1}))
        seconds = float(clip.timestamps[-1] - clip.timestamps[0])
        return clip.num_frames, (clip.num_frames - 1) / seconds if seconds > 0 else 1.0

    def _window(self, index: int) -> tuple:
        """What a `ShownWindow` is made of, with arrays in the place of tensors, as `Isolated` passes them on."""
        length = self.clip_length * self.stride
        start = index * length
        clip = read_clip(self.source, lambda available: list(range(start, min(start + length, available))))
        window = window_of(clip.frames, clip.pixel_aspect, self.processor, self.clip_length, self.stride)
        frames = shown(clip.frames, clip.pixel_aspect).numpy()
        return window.clips.numpy(), frames, window.num_frames, window.frame_size, window.box, clip.note


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
    windows = Windows(source, processor, model.config.num_frames)
    workers = min(args.num_workers, len(windows) - 1)  # one window is read faster than a process starts
    loader = torch.utils.data.DataLoader(windows, batch_size=None, num_workers=workers)

    def depth_of_clips(clips: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16, enabled=args.bf16):
            return model(pixel_values_videos=clips.to(model.device)).predicted_depth.float().cpu()

    kept, millimetres, notes, num_frames = [], Counter(), set(), 0
    with DepthVideo(stem.with_name(stem.name + ".mp4"), windows.rate, args.max_depth) as video:
        for window, depth in estimate_windows(depth_of_clips, readable(loader), args.batch_size):
            box = scaled_box(window.box, window.frame_size, window.frames.shape[-2:])
            video.add(window.frames, depth, box)
            millimetres += counted_millimetres(depth)
            kept += [depth] if args.npz else []
            notes |= {window.note} - {None}
            num_frames += window.num_frames
    if args.npz:
        arrays = {"depth": torch.cat(kept).numpy(), "box": window.box, "frame_size": window.frame_size}
        with write_aside(stem.with_name(stem.name + ".npz")) as aside, aside.open("wb") as file:
            np.savez_compressed(file, **arrays)
    line = {"depth": video.path.name, "num_frames": num_frames, "metres": summary(millimetres)}
    return line | ({"note": "; ".join(sorted(notes))} if notes else {})


def readable(windows: Iterator[ShownWindow | DecodingError]) -> Iterator[ShownWindow]:
    for window in windows:
        if isinstance(window, DecodingError):
            raise window
        yield window


def counted_millimetres(depth: torch.Tensor) -> Counter:
    """How often each depth occurs: the whole video's would not always fit into memory."""
    values, counts = (depth * 1000).round().long().unique(return_counts=True)
    return Counter(dict(zip(values.tolist(), counts.tolist(), strict=True)))


def summary(millimetres: Counter) -> dict[str, float]:
    """The least, the median and the largest depth in metres."""
    values = sorted(millimetres)
    ends = np.cumsum([millimetres[value] for value in values])
    median = values[np.searchsorted(ends, (ends[-1] + 1) // 2)]  # the lower of two
    return {"min": values[0] / 1000, "median": median / 1000, "max": values[-1] / 1000}


def file_names(videos) -> list[str]:
    """A file name without suffix for each video, of harmless characters: its own, with its number where several have
    the same."""
    stems = [Path(name_of(row, index)).stem for index, row in enumerate(videos)]
    stems = [re.sub(r"[^\w.-]", "_", stem)[:MAX_NAME].strip(".") or str(index) for index, stem in enumerate(stems)]
    counts = Counter(stem.casefold() for stem in stems)  # for file systems that do not tell capitals apart
    taken = {stem for stem, count in counts.items() if count == 1}
    names = []
    for index, stem in enumerate(stems):
        name = stem
        while counts[stem.casefold()] > 1 and (name == stem or name.casefold() in taken):
            name = f"{name}-{index}"
        taken.add(name.casefold())
        names.append(name)
    return names
