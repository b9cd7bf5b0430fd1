"""Lists of videos from a folder, a table of paths, a parquet file or the Hub."""

import csv
import json
import mimetypes
import os
import re
from pathlib import Path

import datasets
import pyarrow.compute
from huggingface_hub.constants import HF_HUB_CACHE


PATH_COLUMNS = ("path", "video", "file")
LABEL_COLUMN = "label"
SIDE_FILES = {
    *(".csv", ".json", ".jsonl", ".yaml", ".yml", ".txt", ".md"),
    *(".parquet", ".npz", ".npy", ".log", ".html", ".xml"),
}
# Moving images, and MPEG transport streams, which the type tables take for translations of Qt.
MISTAKEN_FOR_SIDE_FILES = {".gif", ".ts"}


def load_videos(
    source: str | list[str],
    split: str = "train",
    video_column: str | None = None,
    video_root: str | None = None,
    streaming: bool = False,
) -> datasets.Dataset:
    """List the videos of a source, without opening any.

    Args:
        source: a folder (all its files, also in subfolders, but hidden and side files such as texts and images); a
            .csv, .json or .jsonl file with a column path, video or file, relative to the folder of the list; a
            .parquet file; a folder written by `Dataset.save_to_disk`; or the id of a dataset on the Hub.
        split: the split of a dataset with several.
        video_column: name of the column that holds the videos, where it is not the usual one.
        video_root: the folder that all videos must lie in, symbolic links resolved. By default a source on disk, which
            counts as the user's own, may name any file; one from the Hub may name only what was downloaded.

    Returns:
        A dataset with a column "video" of rows {"path", "bytes"}, and "label" if the source has it.
    """
    if isinstance(source, list):
        parts = [load_videos(name, split, video_column, video_root, streaming) for name in source]
        if len(parts) == 1:
            return parts[0]
        parts = [part.add_column("source", [number] * len(part)) for number, part in enumerate(parts)]
        return datasets.concatenate_datasets(parts)
    path = Path(source).expanduser()
    if path.is_dir() and not _is_saved_dataset(path):
        dataset = _from_paths(_walk(path))
    elif path.is_file() and path.suffix.lower() in READERS:
        dataset = _from_list(path, video_column)
    else:
        dataset = _from_datasets(source, path, split, video_column)
    if len(dataset) == 0:
        raise ValueError(f"{source!r} holds no videos; give a folder, list or dataset that does")
    if video_root is not None:
        _check_names(source, dataset, [video_root])
    elif not path.exists():
        _check_names(source, dataset, [HF_HUB_CACHE, str(datasets.config.HF_DATASETS_CACHE)])
    return dataset


def _check_names(source: str, dataset: datasets.Dataset, roots: list[str]):
    """Raise a `ValueError` if a video is a file outside of these folders. Nothing is opened."""
    resolved = [os.path.join(os.path.realpath(os.path.expanduser(root)), "") for root in roots]
    videos = dataset.data.column("video")
    names = pyarrow.compute.struct_field(videos, "path").to_pylist()
    embedded = pyarrow.compute.struct_field(videos, "bytes").is_valid().to_pylist()
    for number, (name, is_embedded) in enumerate(zip(names, embedded, strict=True), start=1):
        if not is_embedded and not os.path.realpath(name or "").startswith(tuple(resolved)):
            raise ValueError(
                f"{source!r}: row {number} names {name!r}, which does not lie in {' or '.join(roots)}. If the source "
                "is to be trusted, set video_root to a folder that holds all its videos"
            )


def _walk(folder: Path) -> list[str]:
    def wanted(file: Path) -> bool:
        return file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)

    return [str(file) for file in sorted(folder.rglob("*")) if wanted(file) and not _is_side_file(file)]


def _is_side_file(file: Path) -> bool:
    """Whether a file is known to be no video; an unknown one is kept, for a broken video must be reported."""
    suffix = file.suffix.lower()
    kind = mimetypes.guess_type(f"name{suffix}")[0] or ""
    is_side_type = kind.startswith(("text/", "image/")) and suffix not in MISTAKEN_FOR_SIDE_FILES
    return suffix in SIDE_FILES or is_side_type


def _from_list(path: Path, video_column: str | None) -> datasets.Dataset:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # "-sig": Excel writes a byte order mark
            rows = READERS[path.suffix.lower()](file)
    except ValueError as error:  # of JSON or of the encoding
        raise ValueError(f"{str(path)!r} cannot be read: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{str(path)!r} must hold an object for every video")
    if not rows:
        raise ValueError(f"{str(path)!r} lists no videos; give one row per video")
    column = _video_column(str(path), list(rows[0]), video_column)
    names = [column, LABEL_COLUMN] if LABEL_COLUMN in rows[0] else [column]
    for number, row in enumerate(rows, start=1):
        for name in names:
            if row.get(name) in (None, "") or name == column and not isinstance(row[name], str):
                raise ValueError(f"{str(path)!r}: row {number} has no {name}")
    labels = [row[LABEL_COLUMN] for row in rows] if LABEL_COLUMN in names else None
    return _from_paths([str(path.parent / row[column].strip()) for row in rows], labels)


READERS = {
    ".csv": lambda file: list(csv.DictReader(file, skipinitialspace=True)),
    ".jsonl": lambda file: [json.loads(line) for line in file if line.strip()],
    ".json": json.load,
}


def _from_paths(paths: list[str], labels: list | None = None) -> datasets.Dataset:
    columns = {"video": paths}
    if labels is not None:
        columns[LABEL_COLUMN] = labels
    # A cast, as encoding paths with Video features needs a working torchcodec.
    return datasets.Dataset.from_dict(columns).cast_column("video", datasets.Video(decode=False))


def _is_saved_dataset(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _from_datasets(source: str, path: Path, split: str, video_column: str | None) -> datasets.Dataset:
    if path.is_dir():
        dataset = datasets.load_from_disk(str(path))
        if isinstance(dataset, datasets.DatasetDict):
            if split not in dataset:
                raise ValueError(f"{source!r} has no split {split!r}; choose one of {sorted(dataset)}")
            dataset = dataset[split]
    elif path.is_file() and path.suffix == ".parquet":
        dataset = datasets.load_dataset("parquet", data_files=str(path), split="train")
    elif path.exists():
        raise ValueError(f"{source!r} is no list of videos; give a .csv, .json, .jsonl or .parquet file or a folder")
    elif not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", source) or path.suffix in SIDE_FILES:
        raise ValueError(f"{source!r} does not exist; give an existing path or the id of a dataset on the Hub")
    else:
        try:
            dataset = datasets.load_dataset(source, split=split)
        except (datasets.exceptions.DatasetNotFoundError, ConnectionError) as error:
            raise ValueError(
                f"{source!r} is neither an existing path nor a dataset on the Hub within reach"
            ) from error
    typed = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Video)]
    column = _video_column(source, dataset.column_names, video_column or next(iter(typed), None))
    kept = [column] + [name for name in dataset.column_names if name == LABEL_COLUMN]
    dataset = dataset.select_columns(kept).cast_column(column, datasets.Video(decode=False))
    return dataset if column == "video" else dataset.rename_column(column, "video")


def _video_column(source: str, present: list[str], wanted: str | None) -> str:
    for name in PATH_COLUMNS if wanted is None else (wanted,):
        if name in present:
            return name
    sought = repr(wanted) if wanted else " or ".join(PATH_COLUMNS)
    raise ValueError(
        f"{source!r} has no column {sought}; its columns are {', '.join(present)}. Name that of the videos with "
        "video_column"
    )
