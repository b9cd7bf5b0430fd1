"""What `layerlock_hf.data.procedural.write_procedural_dataset` writes."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...data import DecodingError
from ...data.clips import one_line
from ...data.procedural import MOTIONS
from ...data.procedural import read_depth as read_depth_file
from .base import ALL, DepthSequence, LabelledVideos, NoSplit, Origin, list_videos, path_in, read_csv, unknown_label
from .images import NOT_METRIC
from .roots import parse_range
from .sequences import PairedSequence, VideoFrames, check_metric


ORIGIN = Origin(
    name="The procedural dataset",
    page="`layerlock_hf.data.procedural.write_procedural_dataset`, which makes it",
    licence="that of this package",
    layout="""
train/videos.csv             path,label,motion,depth; or one videos.csv and ?train=0-799&test=800-999
train/videos/000000.mp4
train/depth/000000.npz
test/...""",
)
LIST = "videos.csv"
COLUMNS = ("path", "label", "motion")


@dataclass(frozen=True)
class DepthArrays:
    """Depth of all frames of a video in one .npz."""

    path: str
    num_frames: int

    def __len__(self) -> int:
        return self.num_frames

    def read(self, indices: list[int]) -> Tensor:
        """Float32 (T, h, w) in metres."""
        return _read_arrays(self.path)[indices]


def read_procedural(
    root: Path, split: str, *, train: str | None = None, test: str | None = None, part: str | None = None
) -> LabelledVideos:
    """Videos labelled by the motion of their objects.

    Args:
        root: a folder with the datasets train/ and test/; or with one dataset.
        split: "train" or "test".
        train, test: the rows of one dataset that are of either split, as FIRST-LAST, both included.
        part: "all", to take all rows of one dataset for either split.

    Raises:
        ValueError: if a list, its split or all videos are missing, or a label is no motion.
    """
    path, rows = _rows(root, split, train, test, part)
    labels = []
    for number, row in rows:
        if row["motion"] not in MOTIONS or row["label"] != str(MOTIONS.index(row["motion"])):
            raise unknown_label(path, f"line {number}", f"{row['label']} ({row['motion']})", "the motions")
        labels.append(int(row["label"]))
    paths = ORIGIN.place(path.parent, ["{}"], [row["path"] for _, row in rows])
    return list_videos(paths, labels, list(MOTIONS))


def read_procedural_depth(
    root: Path, split: str, *, train: str | None = None, test: str | None = None, part: str | None = None
) -> list[DepthSequence]:
    """The same videos with their exact depth, each a group of its own; arguments as `read_procedural`.

    Raises:
        ValueError: if a list, its split or depth is missing, depth is not metric, or a path leads out of the folder.
    """
    path, rows = _rows(root, split, train, test, part)
    sequences = []
    for number, row in rows:
        if not row.get("depth"):
            raise ValueError(f"{str(path)!r}, line {number}: no depth: write the dataset again with with_depth=True")
        file = path_in(path.parent, row["depth"])
        try:
            frames = _read_arrays(file)
        except DecodingError as error:
            raise ValueError(f"{str(path)!r}, line {number}: {error}") from error
        check_metric(file, len(frames), frames.__getitem__)
        colour = VideoFrames(path_in(path.parent, row["path"]), range(len(frames)))
        sequences.append(PairedSequence(row["path"], row["path"], colour, DepthArrays(file, len(frames))))
    return sequences


def _rows(
    root: Path, split: str, train: str | None, test: str | None, part: str | None
) -> tuple[Path, list[tuple[int, dict[str, str]]]]:
    """The list, and the rows of a split with their lines."""
    if (root / split / LIST).is_file():
        if (train, test, part) != (None, None, None):
            raise ValueError(
                f"train, test and part must be left out for {str(root)!r}, which has a folder for each split"
            )
        path = root / split / LIST
        return path, read_csv(path, COLUMNS)
    path = ORIGIN.find(root, LIST)
    rows = read_csv(path, COLUMNS)
    if part is not None:
        if part != ALL:
            raise ValueError(f"part must be {ALL!r}, got {part!r}")
        return path, rows
    chosen = {"train": train, "test": test}[split]
    if chosen is None:
        # Where something is told of the other split, all would be too much
        raise (ValueError if train or test else NoSplit)(
            f"{str(path)!r} does not say which videos to {split} on: give '{root}?train=0-799&test=800-999', or take "
            f"all of them by '{root}?part={ALL}'"
        )
    numbers = parse_range(chosen)
    if numbers.stop > len(rows):
        raise ValueError(
            f"{split} must name videos between 0 and {len(rows) - 1}, those of {str(path)!r}, got {chosen}"
        )
    other = parse_range(test if split == "train" else train) if train and test else range(0)
    if set(numbers) & set(other):
        raise ValueError(f"{str(path)!r}: train={train} and test={test} share videos: give disjoint ranges")
    return path, [rows[number] for number in numbers]


def _read_arrays(path: str) -> torch.Tensor:
    try:
        depth = read_depth_file(path)
    except FileNotFoundError as error:
        raise DecodingError(f"{path}: no such file", "missing") from error
    # A .npy file, or an array of objects, is a TypeError
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DecodingError(f"{path}: {one_line(error)}") from error
    if depth.dtype != torch.float32 or depth.ndim != 3:
        kind = f"{depth.dtype} of shape {tuple(depth.shape)}"
        raise DecodingError(f"{path}: depth must be float32 (T, h, w) in metres, but is {kind}", NOT_METRIC)
    return depth
