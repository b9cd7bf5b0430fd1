import json
from pathlib import Path

import pytest

from layerlock_hf.evaluation.adapters import read_labelled


# Not in the order of names, nor of numbers as texts
CLASSES = {
    "Closing something": "10",
    "Approaching something with your camera": "2",
    "Putting something on a surface": "0",
}


def entry(number, template, **others):
    return {"id": str(number), "label": "closing a box", "template": template, "placeholders": ["a box"], **others}


@pytest.fixture
def root(write):
    train = [entry(78687, "Closing [something]"), entry(42326, "Putting [something] on a surface")]
    write("labels/train.json", json.dumps(train))
    write("labels/validation.json", json.dumps([entry(5, "Approaching [something] with your camera")]))
    write("labels/labels.json", json.dumps(CLASSES))
    write("videos/20bn-something-something-v2/78687.webm")
    return write("videos/20bn-something-something-v2/5.webm")


def test_owners_layout(root):
    train, test = (read_labelled("ssv2", str(root), split) for split in ("train", "test"))
    # 42326 is absent, and stays
    assert [Path(video["path"]).name for video in train.videos["video"]] == ["78687.webm", "42326.webm"]
    assert (train.labels, test.labels, train.groups) == ([2, 0], [1], None)
    assert train.class_names == test.class_names == [list(CLASSES)[index] for index in (2, 1, 0)]


def test_names_of_20bn_and_reencoded_videos(write):
    for name, content in (("train", [entry(3, "Closing [something]")]), ("labels", CLASSES)):
        write(f"something-something-v2-{name}.json", json.dumps(content))
    root = write("3.mp4")
    videos = read_labelled("ssv2", str(root), "train").videos
    assert videos[0]["video"]["path"] == str(root / "3.mp4")


@pytest.mark.parametrize("name", ["labels", "validation"])
def test_a_missing_label_file(root, name):
    (root / f"labels/{name}.json").unlink()
    with pytest.raises(ValueError, match=f"(?s)lacks labels/{name}.json. Something.*qualcomm.com"):
        read_labelled("ssv2", str(root), "test")


def test_all_videos_missing(root):
    (root / "videos/20bn-something-something-v2/5.webm").unlink()
    with pytest.raises(ValueError, match="none of the listed videos exists, such as .*/5.webm"):
        read_labelled("ssv2", str(root), "test")


@pytest.mark.parametrize(
    "entries, message",
    [
        ([entry(1, "Eating [something]")], r"validation.json', entry 1 \(id 1\): the label 'Eating something'"),
        (
            [{"id": "1"}],
            r"entry 1 \(id 1\): the template must be a string, got None",
        ),  # as in the list of the test set
        (
            [entry(1, "Closing [something]"), entry(7, None)],
            r"entry 2 \(id 7\): the template must be a string, got None",
        ),
        ([entry(1, ["Closing"])], r"entry 1 \(id 1\): the template must be a string, got \['Closing'\]"),
        ([entry(1, "Closing [something]", id=None)], "entry 1: the id is missing"),
        ([entry("../../../5", "Closing [something]")], "'.*/../../../5.webm' in the list leads out of"),
        ([], "must be a list of objects"),
    ],
)
def test_damaged_lists(root, write, entries, message):
    write("labels/validation.json", json.dumps(entries))
    with pytest.raises(ValueError, match=message):
        read_labelled("ssv2", str(root), "test")
