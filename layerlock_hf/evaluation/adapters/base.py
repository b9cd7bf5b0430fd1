"""What adapters return, and what they share."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import datasets
import pyarrow
from torch import Tensor

from ...data import is_any_there
from ...data.addresses import address_table
from ...data.sources import SOURCE_COLUMN


# The value of the option `part` that takes everything, for either split
ALL = "all"


class NoSplit(ValueError):
    """There is no split into training and test data; the option part=all takes everything for either."""


@dataclass(frozen=True)
class LabelledVideos:
    """Videos of one split, and their classes.

    Attributes:
        videos: as returned by `layerlock_hf.data.load_videos`. It keeps listed videos that do not exist:
            decoding reports them, as "missing".
        labels: the class of every row, counted from 0.
        class_names: of all classes, including those without videos in this split.
        groups: what each row belongs to (a person, a recording): rows of one group are not independent. None if
            unknown.
    """

    videos: datasets.Dataset
    labels: list[int]
    class_names: list[str]
    groups: list[str] | None = None

    def relabelled(self, class_names: Sequence[str]) -> "LabelledVideos":
        """The same videos with classes numbered in another order, such as that of the training data.

        Raises:
            ValueError: naming a class that is not among these, if a video has it.
        """
        order = {name: index for index, name in enumerate(class_names)}
        unknown = sorted({self.class_names[label] for label in self.labels} - set(order))
        if unknown:
            raise ValueError(
                f"{len(unknown)} classes of the test data, such as {unknown[0]!r}, are not among the "
                f"{len(class_names)} of the training data, such as {class_names[0]!r}: test on videos of the same "
                "classes"
            )
        labels = [order[self.class_names[label]] for label in self.labels]
        return replace(self, labels=labels, class_names=list(class_names))


class DepthSequence(Protocol):
    """Frames of one recording with their depth, which can be pickled.

    Attributes:
        name: of the recording, for reports.
        group: the scene that it shows: recordings of one scene are not independent.
    """

    name: str
    group: str

    def __len__(self) -> int:
        """The number of frames."""

    def read(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Colour, uint8 (T, 3, H, W), and depth, float32 (T, h, w) in metres, 0 where it is unknown. The sizes may
        differ.

        Raises:
            DecodingError: if one of these frames cannot be read.
        """


@dataclass(frozen=True)
class Origin:
    """Where a dataset comes from, for people who do not have it yet.

    Attributes:
        name: what its owners call it.
        page: where they distribute it.
        licence: their terms in a few words.
        layout: the expected folders and files, one per line, with other names under which they are found.
    """

    name: str
    page: str
    licence: str
    layout: str

    def refusal(self, problem: str) -> ValueError:
        """The error that says what is wrong, what was expected, and where to get it."""
        layout = "\n".join(f"    {line}" for line in self.layout.strip().splitlines())
        return ValueError(f"{problem}. {self.name} is expected as\n{layout}\nGet it from {self.page} ({self.licence})")

    def find(self, root: Path, *patterns: str) -> Path:
        """The file or folder in `root` that the first of these patterns with any match stands for.

        Raises:
            ValueError: naming the first pattern, if there is none; or if several match one pattern.
        """
        if not root.is_dir():
            raise self.refusal(f"{str(root)!r} is not a folder")
        for pattern in patterns:
            found = sorted(root.glob(pattern))
            if len(found) > 1:
                raise ValueError(
                    f"{str(root)!r} holds both {found[0].name} and {found[1].name}: keep only one of them there"
                )
            if found:
                return found[0]
        raise self.refusal(f"{str(root)!r} lacks {patterns[0]}")

    def place(self, root: Path, patterns: Sequence[str], names: Sequence[str]) -> list[str]:
        """The paths of videos, by the first of some patterns, such as "videos/{}.webm", by which any is there.

        Raises:
            ValueError: if none is there, or a name leads out of `root`.
        """
        for pattern in patterns:
            paths = [path_in(root, pattern.format(name)) for name in names]
            if is_any_there(paths):
                return paths
        raise self.refusal(f"none of the listed videos exists, such as {str(root / patterns[0].format(names[0]))!r}")


def path_in(folder: Path, name: str) -> str:
    """The path of a file that a list names in the folder of its dataset. A stranger's list must not name other files.

    Raises:
        ValueError: if it leads out of the folder, by an absolute path or "..".
    """
    path = Path(name)
    if path.anchor or ".." in path.parts or "\0" in name:
        raise ValueError(f"{name!r} in the list leads out of {str(folder)!r}: only files in that folder are read")
    return str(folder / path)


def list_videos(
    paths: list[str], labels: list[int], class_names: list[str], groups: list[str] | None = None
) -> LabelledVideos:
    """Videos that are files of their own, one label each."""
    table = address_table(paths)
    table = table.append_column(SOURCE_COLUMN, pyarrow.repeat(pyarrow.scalar(0, pyarrow.int32()), len(paths)))
    videos = datasets.Dataset(datasets.table.InMemoryTable(table)).cast_column("video", datasets.Video(decode=False))
    return LabelledVideos(videos, labels, class_names, groups)


def read_text(path: Path) -> str:
    """
    Raises:
        ValueError: naming the file, if it is not text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not text: {error}") from error


def read_lines(path: Path) -> list[tuple[int, list[str]]]:
    """The words of every line that has any, and its number counted from 1.

    Raises:
        ValueError: naming the file, if it does not exist or is not text.
    """
    numbered = [(number, line.split()) for number, line in enumerate(read_text(path).splitlines(), start=1)]
    numbered = [(number, words) for number, words in numbered if words]
    if not numbered:
        raise ValueError(f"{str(path)!r} is empty")
    return numbered


def read_json(path: Path):
    """
    Raises:
        ValueError: naming the file, if it is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{str(path)!r} is not JSON: {error}") from error


def read_csv(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Every row of a CSV file, and the number of its line.

    Raises:
        ValueError: naming the file, if it is empty, or lacks one of these columns or, in some line, its value.
    """
    reader = csv.DictReader(read_text(path).splitlines(), skipinitialspace=True)
    rows = [(reader.line_num, row) for row in reader]
    lacking = [name for name in columns if name not in (reader.fieldnames or [])]
    if lacking:
        raise ValueError(f"{str(path)!r} has no column {lacking[0]!r}: it must have {', '.join(columns)}")
    for number, row in rows:
        empty = [name for name in columns if not row[name]]
        if empty:
            raise ValueError(f"{str(path)!r}, line {number}: no {empty[0]}")
    if not rows:
        raise ValueError(f"{str(path)!r} lists nothing")
    return rows


def unknown_label(path: Path, place: str, label: str, known: str) -> ValueError:
    """The error for a label that is not one of the classes; `place` is, for example, "line 3"."""
    return ValueError(f"{str(path)!r}, {place}: the label {label!r} is none of the classes of {known}")
