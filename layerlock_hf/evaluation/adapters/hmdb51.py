"""HMDB51 (Kuehne et al., ICCV 2011)."""

from pathlib import Path

from .base import LabelledVideos, Origin, list_videos, read_lines


ORIGIN = Origin(
    name="HMDB51",
    page="https://serre.lab.brown.edu/hmdb51.html",
    licence="CC BY 4.0",
    layout="""
CLASS/NAME.avi               also hmdb51_org/CLASS/NAME.avi; both archives hold a .rar per class
testTrainMulti_7030_splits/CLASS_test_split1.txt     also 2 and 3: ?fold=2; the folder also as splits""",
)
FOLDS = ("1", "2", "3")
# What the numbers of a split file mean; some clips of every class belong to neither
SPLITS = {"0": None, "1": "train", "2": "test"}
VIDEO_FILES = ("{}", "hmdb51_org/{}", "videos/{}", "hmdb51/{}")


def read_hmdb51(root: Path, split: str, *, fold: str = "1") -> LabelledVideos:
    """One of the owners' three folds: 70 clips a class to train, 30 to test. A group is the film a clip is cut from.

    Raises:
        ValueError: if the split file of a class or all videos are missing, or a number in one is unknown.
    """
    if fold not in FOLDS:
        raise ValueError(f"fold must be one of {', '.join(FOLDS)}, got {fold!r}")
    folder = ORIGIN.find(root, "testTrainMulti_7030_splits", "splits")
    ending = f"_test_split{fold}.txt"
    lists = {path.name.removesuffix(ending): path for path in sorted(folder.glob(f"*{ending}"))}
    if not lists:
        raise ORIGIN.refusal(f"{str(folder)!r} holds no CLASS{ending}")
    class_names = list(lists)
    names, labels, groups = [], [], []
    for label, (class_name, path) in enumerate(lists.items()):
        for number, words in read_lines(path):
            if len(words) != 2 or words[1] not in SPLITS:
                raise ValueError(f"{str(path)!r}, line {number} must be a video and one of {', '.join(SPLITS)}")
            if SPLITS[words[1]] == split:
                names.append(f"{class_name}/{words[0]}")
                labels.append(label)
                groups.append(_film(words[0], class_name))
    if not names:
        raise ValueError(f"{str(folder)!r}: fold {fold} has no {split} videos")
    paths = ORIGIN.place(root, VIDEO_FILES, names)
    _check_classes(Path(paths[0]).parents[1], folder, ending, class_names)
    return list_videos(paths, labels, class_names, groups)


def _film(name: str, class_name: str) -> str:
    """FILM of FILM_CLASS_f_cm_np1_fr_med_0.avi: body parts, camera motion, people, view, quality, number."""
    return name.rpartition(f"_{class_name}_")[0] or name


def _check_classes(videos: Path, splits: Path, ending: str, class_names: list[str]):
    """Raise a `ValueError` if a class has videos and no split file: it would be left out without a word."""
    unlisted = [
        path.name
        for path in sorted(videos.iterdir())
        if path.name not in class_names and next(path.glob("*.avi"), None) is not None
    ]
    if unlisted:
        raise ORIGIN.refusal(
            f"{str(videos / unlisted[0])!r} holds videos, but {str(splits)!r} holds no {unlisted[0]}{ending}"
        )
