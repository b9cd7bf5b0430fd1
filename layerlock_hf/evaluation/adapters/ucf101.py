"""UCF101 (Soomro et al., 2012)."""

import re
from pathlib import Path

from .base import LabelledVideos, Origin, list_videos, read_lines, unknown_label


ORIGIN = Origin(
    name="UCF101",
    page="https://www.crcv.ucf.edu/data/UCF101.php",
    licence="no licence stated; clips from YouTube, for research",
    layout="""
UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi
ucfTrainTestlist/classInd.txt
ucfTrainTestlist/trainlist01.txt     also 02 and 03: ?fold=2
ucfTrainTestlist/testlist01.txt      the lists also beside UCF-101""",
)
FOLDS = ("1", "2", "3")
VIDEO_FILES = ("UCF-101/{}", "UCF101/{}", "videos/{}", "{}")
GROUP = re.compile(r"(v_.+_g\d+)_c\d+\.\w+$")


def read_ucf101(root: Path, split: str, *, fold: str = "1") -> LabelledVideos:
    """One of the owners' three folds, 101 classes. A group is one of the 25 recordings that a class was cut from.

    Raises:
        ValueError: if a list or all videos are missing, two classes have one number, or a line has an unknown class.
    """
    if fold not in FOLDS:
        raise ValueError(f"fold must be one of {', '.join(FOLDS)}, got {fold!r}")
    names_path = ORIGIN.find(root, "ucfTrainTestlist/classInd.txt", "classInd.txt")
    path = ORIGIN.find(root, f"ucfTrainTestlist/{split}list0{fold}.txt", f"{split}list0{fold}.txt")
    classes = {}
    for number, words in read_lines(names_path):
        if len(words) != 2 or not words[0].isdecimal():
            raise ValueError(f"{str(names_path)!r}, line {number} must be a number and a class")
        if words[1] in classes or int(words[0]) in classes.values():
            raise ValueError(f"{str(names_path)!r}, line {number}: {' '.join(words)} repeats a class or its number")
        classes[words[1]] = int(words[0])
    class_names = sorted(classes, key=classes.get)
    names, labels = [], []
    for number, words in read_lines(path):
        name, label = words[0], words[0].partition("/")[0]
        if label not in classes:
            raise unknown_label(path, f"line {number}", label, names_path.name)
        if len(words) > 1 and words[1] != str(classes[label]):
            raise ValueError(
                f"{str(path)!r}, line {number}: the number of {label} must be {classes[label]}, got {words[1]}"
            )
        names.append(name)
        labels.append(class_names.index(label))
    groups = [match[1] if (match := GROUP.search(name)) else name for name in names]
    return list_videos(ORIGIN.place(root, VIDEO_FILES, names), labels, class_names, groups)
