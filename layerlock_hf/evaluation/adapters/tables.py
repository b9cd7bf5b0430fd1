"""Lists of videos with labels, and folders of classes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import pyarrow.parquet
from transformers.utils import logging

from ...data import check_present, files, load_videos
from ...data.addresses import check_classes, clean_label
from ...data.indexes import video_column as find_video_column
from ...data.lists import READERS, read_rows
from .base import ALL, LabelledVideos, NoSplit, unknown_label


logger = logging.get_logger(__name__)

# Of what a folder holds; .txt may be anything
LIST_SUFFIXES = (*(suffix for suffix in READERS if suffix != ".txt"), ".parquet")
LABEL_COLUMNS = ("label", "class")
SPLIT_COLUMN = "split"
GROUP_COLUMN = "group"
# What splits are called; where several are there, the first of them that is
NAMES = {
    "train": ("train", "training"),
    "test": ("test", "testing", "val", "valid", "validation", "validate", "dev"),
}


@dataclass(frozen=True)
class _Rows:
    """Some rows of a list; `numbers` counts them from 1, as they stand in the file."""

    path: Path
    numbers: list[int]
    videos: datasets.Dataset
    columns: dict[str, list]
    label_column: str | None = None

    def where(self, column: str, value: str) -> "_Rows":
        """
        Raises:
            ValueError: if there is no such column, or no row with this value.
        """
        if column not in self.columns:
            raise ValueError(f"{str(self.path)!r} has no column {column!r}, only {', '.join(self.columns)}")
        kept = [index for index, found in enumerate(self.columns[column]) if str(found) == value]
        if not kept:
            present = sorted({str(found) for found in self.columns[column]})
            raise ValueError(
                f"{str(self.path)!r} has no row where {column} is {value!r}, only {', '.join(present[:20])}"
            )
        columns = {name: [values[index] for index in kept] for name, values in self.columns.items()}
        return replace(self, numbers=[self.numbers[i] for i in kept], videos=self.videos.select(kept), columns=columns)

    @property
    def labels(self) -> list[str]:
        """
        Raises:
            ValueError: if there are none, or a row has none.
        """
        sought = LABEL_COLUMNS if self.label_column is None else (self.label_column,)
        name = next((name for name in sought if name in self.columns), None)
        if name is None:
            raise ValueError(
                f"{str(self.path)!r} has no column {' or '.join(sought)}, only {', '.join(self.columns)}: name the "
                f"column of the classes with '{self.path}?label_column=NAME'"
            )
        return self._texts(name)

    @property
    def groups(self) -> list[str] | None:
        return self._texts(GROUP_COLUMN) if GROUP_COLUMN in self.columns else None

    def _texts(self, name: str) -> list[str]:
        for number, value in zip(self.numbers, self.columns[name], strict=True):
            if value is None or not str(value).strip():
                raise ValueError(f"{str(self.path)!r}, row {number}: no {name}")
        return [clean_label(str(value)) for value in self.columns[name]]


def read_table(
    root: Path,
    split: str,
    *,
    part: str | None = None,
    video_column: str | None = None,
    label_column: str | None = None,
    **filters: str,
) -> LabelledVideos:
    """A CSV, JSON, JSONL or parquet list of videos: columns path, video or file; label or class; split; group.

    Classes are those of the training rows, in alphabetical order or, where all are integers, in that of numbers. A
    warning counts the videos, and one the groups, that are to train and to test.

    Args:
        root: the list; or a folder with one list, or with two, train.csv and test.csv or train/*.csv and test/*.csv.
        split: "train" or "test". Rows that are neither, such as those of "val" beside "test", are left out.
        part: instead of `split`, a value of the column split, or "all": every row.
        video_column: the column of the videos, where it has another name.
        label_column: the column of the classes, likewise.
        filters: values of columns that the rows must have.

    Raises:
        ValueError: if lists, labels, splits or all videos are missing, or a row has a label that no training row has.
    """
    lists = _lists_of(root)
    named = {"video_column": video_column, "label_column": label_column}
    if ALL in lists:
        rows = _read_list(lists[ALL], filters, **named)
        chosen = _of_split(rows, split, part)
        name = None if part == ALL else _split_name(rows, "train")
        train = rows if name is None else rows.where(SPLIT_COLUMN, name)
    else:
        if part is not None:
            raise ValueError(f"{str(root)!r} holds a training list and a test list: give one of them with part={part}")
        train = _read_list(lists["train"], filters, **named)
        chosen = train if split == "train" else _read_list(lists["test"], filters, **named)
    check_classes(repr(str(train.path)), train.labels)
    class_names = _in_order(train.labels)
    order = {name: label for label, name in enumerate(class_names)}
    for number, label in zip(chosen.numbers, chosen.labels, strict=True):
        if label not in order:
            raise unknown_label(chosen.path, f"row {number}", label, f"the training rows of {train.path.name}")
    check_present(chosen.videos, str(chosen.path))
    if split == "test" and part is None:
        _warn_of_shared(train, chosen)
    return LabelledVideos(chosen.videos, [order[label] for label in chosen.labels], class_names, chosen.groups)


def read_folder(root: Path, split: str, *, part: str | None = None) -> LabelledVideos:
    """Folders of classes: train/CLASS/NAME.mp4 and test/CLASS/NAME.mp4, or with part=all CLASS/NAME.mp4.

    Classes are those of train/ where it is there, in alphabetical order.

    Raises:
        ValueError: if a folder is missing, a video lies in no class, or in one that train/ lacks.
    """
    if part not in (None, ALL):
        raise ValueError(f"part must be {ALL!r} for folders, got {part!r}")
    folders = {split: _existing(root)} if part == ALL else _split_folders(root)
    if split not in folders:
        raise ValueError(f"{str(root)!r} has no folder {' or '.join(NAMES[split])}")
    folder = folders[split]
    classes = folders.get("train", folder)
    class_names = sorted(path.name for path in classes.iterdir() if path.is_dir() and not path.name.startswith("."))
    check_classes(repr(str(classes)), class_names)
    order = {name: label for label, name in enumerate(class_names)}
    videos = load_videos(str(folder))
    labels = []
    for video in videos["video"]:
        path = Path(video["path"])
        label, *rest = path.relative_to(folder).parts
        if not rest:
            raise ValueError(f"{str(path)!r} lies in no class folder: it must be {str(folder)}/CLASS/{path.name}")
        if label not in order:
            raise unknown_label(path, "its folder", label, str(classes))
        labels.append(order[label])
    return LabelledVideos(videos, labels, class_names)


def _existing(root: Path) -> Path:
    if not root.exists():
        raise ValueError(f"{str(root)!r} does not exist: give a list of videos, or a folder with one")
    return root


def _split_folders(root: Path) -> dict[str, Path]:
    """The folders of those splits that have one."""
    named = {split: [_existing(root) / name for name in names] for split, names in NAMES.items()}
    found = {split: next((path for path in paths if path.is_dir()), None) for split, paths in named.items()}
    found = {split: path for split, path in found.items() if path is not None}
    if not found:
        raise NoSplit(
            f"{str(root)!r} has no folders train and test: if it holds the classes themselves, '{root}?part={ALL}' "
            "takes all videos"
        )
    return found


def _lists_of(root: Path) -> dict[str, Path]:
    """The list of each split, or {"all": the one of all}."""
    if not _existing(root).is_dir():
        if root.suffix.lower() not in {*LIST_SUFFIXES, *READERS}:
            raise ValueError(
                f"{str(root)!r} is not a list: give a file of type {', '.join(LIST_SUFFIXES)}, or its folder"
            )
        return {ALL: root}
    here = _lists_in(root)
    named = {split: _named(here, split) or _only_list(root, split) for split in NAMES}
    if all(named.values()):
        return named
    if len(here) == 1:
        return {ALL: here[0]}
    found = f"holds {', '.join(path.name for path in here)}" if here else "holds no list"
    raise ValueError(f"{str(root)!r} {found}: it must hold one {', '.join(LIST_SUFFIXES)}, or train.csv and test.csv")


def _lists_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in LIST_SUFFIXES and path.is_file())


def _named(lists: Sequence[Path], split: str) -> Path | None:
    found = [path for name in NAMES[split] for path in lists if path.stem.lower() == name]
    return found[0] if found else None


def _only_list(root: Path, split: str) -> Path | None:
    """The list in the folder of a split, if it has just one."""
    found = [path for name in NAMES[split] if (root / name).is_dir() for path in _lists_in(root / name)]
    return found[0] if len(found) == 1 else None


def _read_list(path: Path, filters: dict[str, str], video_column: str | None, label_column: str | None) -> _Rows:
    if path.suffix.lower() == ".parquet":
        # Not the videos themselves
        try:
            schema = pyarrow.parquet.read_schema(path)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{str(path)!r} is damaged, or not a parquet file: {error}") from error
        names = [field.name for field in schema if not pyarrow.types.is_nested(field.type)]
        names = [name for name in names if not pyarrow.types.is_binary(schema.field(name).type)]
        columns = pyarrow.parquet.read_table(path, columns=names).to_pydict()
    else:
        rows = read_rows(str(path), files.read(str(path)), video_column)
        names = dict.fromkeys(name for row in rows for name in row if name)  # the first row of JSON may lack some
        columns = {name: [row.get(name) for row in rows] for name in names}
        find_video_column(str(path), list(names), video_column, f"'{path}?video_column=NAME'")
    videos = load_videos(str(path), video_column=video_column)
    if SPLIT_COLUMN in columns:
        columns[SPLIT_COLUMN] = [str(value or "").strip().lower() for value in columns[SPLIT_COLUMN]]
    rows = _Rows(path, list(range(1, len(videos) + 1)), videos, columns, label_column)
    for column, value in filters.items():
        rows = rows.where(column, value)
    return rows


def _split_name(rows: _Rows, split: str) -> str | None:
    """What rows of this split have in their column split; None if none is of it."""
    present = set(rows.columns.get(SPLIT_COLUMN, []))
    return next((name for name in NAMES[split] if name in present), None)


def _of_split(rows: _Rows, split: str, part: str | None) -> _Rows:
    if part is not None:
        return rows if part == ALL else rows.where(SPLIT_COLUMN, part)
    if SPLIT_COLUMN not in rows.columns:
        raise NoSplit(
            f"{str(rows.path)!r} has no column {SPLIT_COLUMN!r}, so training and testing would share all videos: add "
            f"one, give a folder with train.csv and test.csv, or take every row by '{rows.path}?part={ALL}'"
        )
    choose = f"choose by '{rows.path}?part=NAME', or take every row by '{rows.path}?part={ALL}'"
    known = {name for names in NAMES.values() for name in names}
    for number, value in zip(rows.numbers, rows.columns[SPLIT_COLUMN], strict=True):
        if value not in known:  # else it would be left out without a word
            raise ValueError(f"{str(rows.path)!r}, row {number}: the split {value!r} is not a known one: {choose}")
    name = _split_name(rows, split)
    if name is None:
        present = sorted(set(rows.columns[SPLIT_COLUMN]))
        raise ValueError(f"{str(rows.path)!r} has no rows to {split} on, only {', '.join(present)}: {choose}")
    return rows.where(SPLIT_COLUMN, name)


def _in_order(labels: list[str]) -> list[str]:
    unique = set(labels)
    is_numbered = all(label.isascii() and label.removeprefix("-").isdecimal() for label in unique)
    return sorted(unique, key=int if is_numbered else None)


def _warn_of_shared(train: _Rows, test: _Rows):
    shared = shared_paths(train.videos, test.videos)
    if shared:
        logger.warning(
            f"{str(test.path)!r}: {len(shared)} of {len(test.videos)} test videos are also training videos, such as "
            f"{shared[0]!r}: results on them mean little"
        )
    groups = sorted(set(train.groups or []) & set(test.groups or []))
    if groups:
        logger.warning(
            f"{str(test.path)!r}: {len(groups)} groups have both training and test videos, such as {groups[0]!r}: "
            "results on these are better than on new groups"
        )


def shared_paths(train, test) -> list[str]:
    """The paths of the videos of `test` that are in `train`, too."""
    trained = set(map(_identity, train))
    return [row["video"]["path"] for row in test if _identity(row) in trained]


def _identity(row: dict) -> tuple:
    """Of a video, however its path is written, and of one of those in a shard."""
    path = row["video"]["path"]
    return (path if files.is_url(path) else os.path.normpath(path), row["offset"], row["row_group"], row["row"])
