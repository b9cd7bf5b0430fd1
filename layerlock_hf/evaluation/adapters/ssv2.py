"""Something-Something V2 (Goyal et al., ICCV 2017), as 20BN and later Qualcomm distribute it."""

from pathlib import Path

from .base import LabelledVideos, Origin, list_videos, read_json, unknown_label


ORIGIN = Origin(
    name="Something-Something V2",
    page="https://www.qualcomm.com/developer/software/something-something-v-2-dataset",
    licence="free for research after registration, not to be passed on",
    layout="""
labels/train.json            id and template of every video; also something-something-v2-train.json
labels/validation.json
labels/labels.json           number of every class; the lists also beside videos
videos/20bn-something-something-v2/ID.webm""",
)
# test.json holds no labels. Qualcomm's archive has them in test-answers.csv, which is not read
LISTS = {"train": "train", "test": "validation"}
# The second is what the files were called when 20BN gave them
LABEL_FILES = ("labels/{}.json", "labels/something-something-v2-{}.json", "{}.json", "something-something-v2-{}.json")
VIDEO_FILES = [
    f"{folder}{{}}{suffix}"
    for suffix in (".webm", ".mp4")  # as given, and re-encoded
    for folder in ("videos/20bn-something-something-v2/", "20bn-something-something-v2/", "videos/", "")
]


def read_ssv2(root: Path, split: str) -> LabelledVideos:
    """The owners' training or, to test, validation set, 168,913 and 24,777 videos of 174 classes.

    Raises:
        ValueError: if a list of labels or all videos are missing, or an entry has no id or no template that is known.
    """
    names_path = ORIGIN.find(root, *(pattern.format("labels") for pattern in LABEL_FILES))
    path = ORIGIN.find(root, *(pattern.format(LISTS[split]) for pattern in LABEL_FILES))
    numbers = read_json(names_path)
    try:
        class_names = sorted(numbers, key=lambda name: int(numbers[name]))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{str(names_path)!r} must be an object from classes to numbers: {error}") from error
    order = {name: label for label, name in enumerate(class_names)}
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{str(path)!r} must be a list of objects with id and template")
    ids, labels = [], []
    for number, entry in enumerate(entries, start=1):
        place = f"entry {number}"
        if not isinstance(entry, dict) or entry.get("id") in (None, ""):
            raise ValueError(f"{str(path)!r}, {place}: the id is missing")
        place += f" (id {entry['id']})"
        template = entry.get("template")
        if not isinstance(template, str) or not template:
            raise ValueError(
                f"{str(path)!r}, {place}: the template must be a string, got {template!r}: videos without a label "
                "cannot be used"
            )
        name = template.replace("[", "").replace("]", "")
        if name not in order:
            raise unknown_label(path, place, name, names_path.name)
        ids.append(str(entry["id"]))
        labels.append(order[name])
    return list_videos(ORIGIN.place(root, VIDEO_FILES, ids), labels, class_names)
