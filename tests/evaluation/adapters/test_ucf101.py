import pytest

from layerlock_hf.data import DecodingError, fetch, read_clip
from layerlock_hf.evaluation.adapters import read_labelled


@pytest.fixture
def root(write):
    write("ucfTrainTestlist/classInd.txt", "1 ApplyEyeMakeup\r\n2 Archery\r\n")
    lines = ["Archery/v_Archery_g08_c01.avi 2", "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c02.avi 1"]
    write("ucfTrainTestlist/trainlist01.txt", "\r\n".join(lines) + "\r\n")
    write("ucfTrainTestlist/trainlist02.txt", lines[1])
    write("ucfTrainTestlist/testlist01.txt", "Archery/v_Archery_g01_c01.avi\r\n")
    write("UCF-101/Archery/v_Archery_g08_c01.avi")
    write("UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c02.avi")
    return write("UCF-101/Archery/v_Archery_g01_c01.avi")


def test_owners_layout(root):
    train, test = (read_labelled("ucf101", str(root), split) for split in ("train", "test"))
    assert train.class_names == test.class_names == ["ApplyEyeMakeup", "Archery"]
    assert (train.labels, test.labels) == ([1, 0], [1])
    # The recording g08 of one class is another than that of the other
    assert train.groups == ["v_Archery_g08", "v_ApplyEyeMakeup_g08"]
    assert test.videos[0]["video"]["path"] == str(root / "UCF-101/Archery/v_Archery_g01_c01.avi")


def test_folds(root):
    assert read_labelled("ucf101", f"{root}?fold=2", "train").labels == [0]
    with pytest.raises(ValueError, match="fold must be one of 1, 2, 3, got '4'"):
        read_labelled("ucf101", f"{root}?fold=4", "train")


def test_an_absent_video_stays(root):
    (root / "UCF-101/Archery/v_Archery_g08_c01.avi").unlink()
    videos = read_labelled("ucf101", str(root), "train").videos
    assert len(videos) == 2
    with pytest.raises(DecodingError, match="no such file") as caught:
        read_clip(fetch(videos[0]), lambda num_frames: [0])
    assert caught.value.kind == "missing"
    (root / "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c02.avi").unlink()
    with pytest.raises(ValueError, match="none of the listed videos exists"):
        read_labelled("ucf101", str(root), "train")


@pytest.mark.parametrize("name", ["classInd", "testlist01"])
def test_a_missing_list(root, name):
    (root / f"ucfTrainTestlist/{name}.txt").unlink()
    with pytest.raises(ValueError, match=f"(?s)lacks ucfTrainTestlist/{name}.txt.*crcv.ucf.edu"):
        read_labelled("ucf101", str(root), "test")


@pytest.mark.parametrize(
    "line, message",
    [
        ("Bowling/v_Bowling_g01_c01.avi", "testlist01.txt', line 1: the label 'Bowling'"),
        ("Archery/v_Archery_g01_c01.avi 1", "line 1: the number of Archery must be 2, got 1"),
        ("", "is empty"),
    ],
)
def test_damaged_lists(root, write, line, message):
    write("ucfTrainTestlist/testlist01.txt", line)
    with pytest.raises(ValueError, match=message):
        read_labelled("ucf101", str(root), "test")


@pytest.mark.parametrize("line", ["2 Bowling", "3 Archery"])
def test_a_class_number_stands_for_one_class(root, write, line):
    write("ucfTrainTestlist/classInd.txt", f"1 ApplyEyeMakeup\n2 Archery\n{line}\n")
    with pytest.raises(ValueError, match=f"classInd.txt', line 3: {line} repeats a class or its number"):
        read_labelled("ucf101", str(root), "test")
