from pathlib import Path

import pytest

from layerlock_hf.evaluation.adapters import read_labelled


HEADER = "label,youtube_id,time_start,time_end,split\n"
TRAIN = HEADER + "testifying,---QUuC4vJs,84,94,train\nabseiling,-0aBc,5,15,train\n"


@pytest.fixture
def root(write):
    write("annotations/train.csv", TRAIN)
    write("annotations/val.csv", HEADER + '"testifying",xyz_1,110,120,val\n')
    write("train/testifying/---QUuC4vJs_000084_000094.mp4")
    return write("val/xyz_1_000110_000120.mp4")


def test_owners_layout(root):
    train, test = (read_labelled("kinetics", str(root), split) for split in ("train", "test"))
    paths = [Path(video["path"]).relative_to(root).as_posix() for video in train.videos["video"]]
    # The second is absent, and stays
    assert paths == ["train/testifying/---QUuC4vJs_000084_000094.mp4", "train/-0aBc_000005_000015.mp4"]
    assert train.class_names == test.class_names == ["abseiling", "testifying"]
    assert (train.labels, test.labels) == ([1, 0], [1])
    assert train.groups == ["---QUuC4vJs", "-0aBc"]
    assert test.videos[0]["video"]["path"] == str(root / "val/xyz_1_000110_000120.mp4")


def test_names_of_the_owners_archives(write):
    write("kinetics_700_train.csv", TRAIN)
    write("kinetics_700_validate.csv", HEADER + "abseiling,v,0,10,validate\n")
    root = write("validate/abseiling/v_000000_000010.mkv")
    test = read_labelled("kinetics", str(root), "test")
    assert (test.labels, test.videos[0]["video"]["path"]) == (
        [0],
        str(root / "validate/abseiling/v_000000_000010.mkv"),
    )


@pytest.mark.parametrize("name", ["train", "val"])
def test_a_missing_annotation(root, name):
    (root / f"annotations/{name}.csv").unlink()
    with pytest.raises(ValueError, match=f"(?s)lacks annotations/{name}.csv. Kinetics is .*cvdfoundation"):
        read_labelled("kinetics", str(root), "test")


@pytest.mark.parametrize(
    "rows, message",
    [
        ("eating,a,1,11,val\n", "val.csv', line 2: the label 'eating' is none of the classes of train.csv"),
        ("testifying,xyz_1,110,120,val\n,a,1,11,val\n", "line 3: no label"),
        ("testifying,a,one,11,val\n", "line 2: time_start and time_end"),
        ("testifying,a,1,inf,val\n", "line 2: time_start and time_end"),
        ("testifying,../../a,1,11,val\n", "'../../a_000001_000011.mp4' in the list leads out of .*val"),
        ("testifying,a,1,11,val\n", "none of the videos .* such as .*val/a_000001_000011.mp4"),
    ],
)
def test_damaged_annotations(root, write, rows, message):
    write("annotations/val.csv", HEADER + rows)
    with pytest.raises(ValueError, match=message):
        read_labelled("kinetics", str(root), "test")


def test_the_test_set_without_labels_is_no_annotation(root, write):
    write("annotations/val.csv", "youtube_id,time_start,time_end,split\na,1,11,test\n")
    with pytest.raises(ValueError, match="no column 'label'"):
        read_labelled("kinetics", str(root), "test")


def test_lists_of_kinetics_600_are_texts(root):
    for name in ("train", "val"):
        (root / f"annotations/{name}.csv").rename(root / f"annotations/{name}.txt")
    assert read_labelled("kinetics", str(root), "test").labels == [1]
    (root / "annotations/val.txt").write_text("xyz_1 testifying\n")
    with pytest.raises(ValueError, match="val.txt' has no column 'label': it must have label, youtube_id"):
        read_labelled("kinetics", str(root), "test")
