"""Clips of procedural videos with all that probes ask about them.

B clips, T frames, N tokens of the grid (t, h, w).
"""

import csv
import itertools
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from ..data import ClipTransform, DecodingError, center_crop, read_clip
from ..data.procedural import MOTIONS, read_depth, read_tracks


FUTURE = 4  # frames from the last one of a clip to the one that is asked for


@dataclass(frozen=True)
class ProbeClips:
    """Clips and the answers to what is asked about them; NaN where there is no answer.

    Where objects are is told of the nearest one, which no other hides: of its centre, as fractions of the clip's
    frame, x to the right and y down.

    Attributes:
        clips: bytes (B, T, C, H, W).
        labels: the motions, (B,), indices of `MOTIONS`.
        metres: mean depth of each token's box of pixels, (B, N); NaN for videos that have none.
        positions: of the object in the middle frame T // 2, (B, 2); NaN where it is not seen there.
        velocities: its displacement from the frame before to the frame after, per frame, in frame widths, (B, 2).
        futures: its position `FUTURE` frames after the last one, (B, 2); NaN where it does not stay in sight from the
            middle frame until then, or the video ends before.
        videos: the number of the video that each clip is of, (B,).
    """

    clips: torch.Tensor
    labels: torch.Tensor
    metres: torch.Tensor
    positions: torch.Tensor
    velocities: torch.Tensor
    futures: torch.Tensor
    videos: torch.Tensor

    def __len__(self) -> int:
        return len(self.clips)

    @classmethod
    def joined(cls, parts: "list[ProbeClips]") -> "ProbeClips":
        """All clips of several sets, with numbers of their own for the videos."""
        counts = [0, *itertools.accumulate(int(part.videos.max()) + 1 for part in parts)]
        parts = [replace(part, videos=part.videos + count) for part, count in zip(parts, counts[:-1], strict=True)]
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def where(self, is_kept: torch.Tensor) -> "ProbeClips":
        """The clips for which `is_kept` (B,) is true."""
        return ProbeClips(*(getattr(self, field.name)[is_kept] for field in fields(self)))

    @property
    def in_sight(self) -> "ProbeClips":
        """The clips that show the object in their middle frame.

        Of others one cannot ask what it does. Which clips these are does not depend on the motion: in every frame,
        positions are distributed alike for all motions.
        """
        return self.where(~self.positions.isnan().any(dim=1))


def load_clips(folder: Path, config, resize_factor: float, num_workers: int = 0) -> ProbeClips:
    """All clips of a procedural dataset, one after the other in each video, as an encoder of `config` sees them.

    Args:
        folder: holds videos.csv. Without depth, clips have labels alone.
        config: has `num_frames`, `image_size`, `tubelet_size` and `patch_size`.
        resize_factor: as of `center_crop`.
        num_workers: processes that read at the same time, 0 for this one alone.

    Raises:
        ValueError: naming what is no procedural dataset of such clips: a file that is missing or cannot be read, a
            label that is no motion, videos that are shorter than a clip, depth without tracks of objects beside it.
    """
    ClipTransform(config.image_size, resize_factor)  # before anything is read
    rows = _read_table(folder / "videos.csv")
    box = (config.tubelet_size, config.patch_size, config.patch_size)
    videos = _Videos(folder, rows, config.num_frames, config.image_size, box, resize_factor)
    # Arrays, because tensors of other processes are open files, of which there may not be many
    try:
        parts = list(DataLoader(videos, batch_size=None, num_workers=num_workers, collate_fn=_unchanged))
    except ValueError as error:  # from another process with its traceback
        raise ValueError(str(error).splitlines()[-1].removeprefix("ValueError: ")) from error
    joined = {name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in parts[0]}
    return ProbeClips(**joined)


def _read_table(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give a folder written by layerlock_hf.data.procedural")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = {"path", "label", "depth"}
    if not rows or not columns <= rows[0].keys():
        raise ValueError(f"{path} must have the columns {', '.join(sorted(columns))} and a row for each video")
    motions = list(map(str, range(len(MOTIONS))))
    for row in rows:
        if row["label"] not in motions:
            raise ValueError(f"{path}: label must be one of {', '.join(motions)}, got {row['label']!r}")
    return rows


def _unchanged(item: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return item


@dataclass(frozen=True)
class _Videos(Dataset):
    """Item i is the fields of `ProbeClips` for the clips of video i."""

    folder: Path
    rows: list[dict[str, str]]
    num_frames: int
    image_size: int
    box: tuple[int, int, int]
    resize_factor: float

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        row, size = self.rows[number], self.image_size
        try:
            frames = read_clip(str(self.folder / row["path"]), lambda available: list(range(available))).frames
        except DecodingError as error:
            raise ValueError(f"{self.folder / row['path']} cannot be read: {error}") from error
        starts = range(0, len(frames) - self.num_frames + 1, self.num_frames)
        if not starts:
            raise ValueError(
                f"{row['path']} must have at least {self.num_frames} frames, those of a clip, got {len(frames)}"
            )
        metres = torch.full((len(frames), size, size), torch.nan)
        positions, is_seen = torch.full((len(frames), 2), torch.nan), torch.zeros(len(frames), dtype=torch.bool)
        if row["depth"]:
            metres = center_crop(read_depth(self.folder / row["depth"])[:, None], size, self.resize_factor)[:, 0]
            positions, is_seen = (tracks[-1] for tracks in read_tracks(self.folder / row["depth"]))
            top, left, height, width = ClipTransform(size, self.resize_factor).center(*frames.shape[-2:]).box
            shape = torch.tensor(frames.shape[:-3:-1])
            positions = (positions * shape - torch.tensor((left, top))) / torch.tensor((width, height))
            is_seen = is_seen & ((positions >= 0) & (positions < 1)).all(dim=1)
        frames = center_crop(frames, size, self.resize_factor)
        windows = [slice(start, start + self.num_frames) for start in starts]
        found = {
            "clips": torch.stack([frames[window] for window in windows]),
            "labels": torch.full((len(starts),), int(row["label"])),
            "metres": F.avg_pool3d(torch.stack([metres[window] for window in windows])[:, None], self.box).flatten(1),
            **_whereabouts(positions, is_seen, starts, self.num_frames),
            "videos": torch.full((len(starts),), number),
        }
        return {name: values.numpy() for name, values in found.items()}


def _whereabouts(
    positions: torch.Tensor, is_seen: torch.Tensor, starts: range, num_frames: int
) -> dict[str, torch.Tensor]:
    """The position, velocity and future of every clip of a video, from where an object is (T, 2) and is seen (T,)."""
    nowhere = torch.full((2,), torch.nan)
    found = {"positions": [], "velocities": [], "futures": []}
    for start in starts:
        middle, later = start + num_frames // 2, start + num_frames - 1 + FUTURE
        # An object may leave on one side and come back on the other, but not within the two frames around one it is in
        velocity = (positions[middle + 1] - positions[middle - 1]) / 2
        stays = later < len(positions) and bool(is_seen[middle : later + 1].all())
        found["positions"].append(positions[middle] if is_seen[middle] else nowhere)
        found["velocities"].append(velocity if is_seen[middle] else nowhere)
        found["futures"].append(positions[later] if stays else nowhere)
    return {name: torch.stack(values) for name, values in found.items()}
