"""Kinetics-400, -600 and -700 (Kay et al., 2017; Carreira et al., 2018, 2019), as CVDF distributes the clips."""

from pathlib import Path

from ...data import files, is_any_there
from ...data.indexes import VIDEO_SUFFIXES
from .base import LabelledVideos, Origin, list_videos, path_in, read_csv, unknown_label


ORIGIN = Origin(
    name="Kinetics",
    page="https://github.com/cvdfoundation/kinetics-dataset",
    licence="annotations CC BY 4.0; the clips belong to those who put them on YouTube",
    layout="""
annotations/train.csv        label,youtube_id,time_start,time_end,split; also train.csv, kinetics_700_train.csv ...
annotations/val.csv          also validate.csv; of either also .txt with these columns
train/**/YOUTUBEID_000010_000020.mp4
val/**/YOUTUBEID_000010_000020.mp4""",
)
COLUMNS = ("label", "youtube_id", "time_start", "time_end")
# CVDF gives the test sets of 600 and 700-2020 without labels. Several names are in use for the validation set
NAMES = {"train": ("train",), "test": ("val", "validate", "validation")}


def read_kinetics(root: Path, split: str) -> LabelledVideos:
    """The owners' training or, to test, validation set. Classes are those of the training set, in alphabetical order.

    Videos may lie in any folders below train/ and val/, also by class, or where these are missing below `root`.

    Raises:
        ValueError: if an annotation or all videos are missing, a row has an unknown label or a name that leads out of
            the folder.
    """
    train_path, train_rows = _annotations(root, "train")
    path, rows = (train_path, train_rows) if split == "train" else _annotations(root, split)
    class_names = sorted({row["label"] for _, row in train_rows})
    order = {name: label for label, name in enumerate(class_names)}
    folder = next((root / name for name in NAMES[split] if (root / name).is_dir()), root)
    found = {Path(name).stem: name for name in files.walk(str(folder)) if files.suffix_of(name) in VIDEO_SUFFIXES}
    paths, labels = [], []
    for number, row in rows:
        if row["label"] not in order:
            raise unknown_label(path, f"line {number}", row["label"], train_path.name)
        stem = _stem(path, number, row)
        paths.append(found.get(stem) or path_in(folder, f"{stem}.mp4"))
        labels.append(order[row["label"]])
    if not is_any_there(paths):
        raise ORIGIN.refusal(f"none of the videos that {str(path)!r} names exists, such as {paths[0]!r}")
    return list_videos(paths, labels, class_names, [row["youtube_id"] for _, row in rows])


def _annotations(root: Path, split: str) -> tuple[Path, list[tuple[int, dict[str, str]]]]:
    patterns = [
        f"{folder}{start}{name}{suffix}"
        for suffix in (".csv", ".txt")  # the second for Kinetics-600
        for folder in ("annotations/", "")
        for start in ("", "kinetics*[_-]")
        for name in NAMES[split]
    ]
    path = ORIGIN.find(root, *patterns)
    return path, read_csv(path, COLUMNS)


def _stem(path: Path, number: int, row: dict[str, str]) -> str:
    """The name of a clip: the times, in seconds, have six digits."""
    try:
        start, end = (int(float(row[name])) for name in ("time_start", "time_end"))
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{str(path)!r}, line {number}: time_start and time_end must be seconds: {error}") from error
    return f"{row['youtube_id']}_{start:06d}_{end:06d}"
