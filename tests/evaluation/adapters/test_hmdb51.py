import pytest

from layerlock_hf.data import DecodingError, fetch, read_clip
from layerlock_hf.evaluation.adapters import read_labelled


SPLITS = "testTrainMulti_7030_splits"


@pytest.fixture
def root(write):
    lines = [
        "April_09_brush_hair_u_nm_np1_ba_goo_0.avi 1 ",
        "April_09_brush_hair_u_nm_np1_ba_goo_1.avi 0 ",
        "odd.avi 2 ",
    ]
    write(f"{SPLITS}/brush_hair_test_split1.txt", "\n".join(lines) + "\n")
    write(f"{SPLITS}/brush_hair_test_split2.txt", lines[0].replace("1 ", "2 "))
    write(f"{SPLITS}/wave_test_split1.txt", "a_wave_f_nm_np1_fr_med_0.avi 1 \n")
    write("brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi")
    write("brush_hair/odd.avi")
    return write("wave/a_wave_f_nm_np1_fr_med_0.avi")


def test_owners_layout(root):
    train, test = (read_labelled("hmdb51", str(root), split) for split in ("train", "test"))
    assert train.class_names == test.class_names == ["brush_hair", "wave"]
    assert (train.labels, train.groups) == ([0, 1], ["April_09", "a"])
    assert (test.labels, test.groups) == ([0], ["odd.avi"])
    assert test.videos[0]["video"]["path"] == str(root / "brush_hair/odd.avi")


def test_a_class_without_split_file_is_not_left_out(root):
    (root / SPLITS / "wave_test_split1.txt").unlink()
    with pytest.raises(ValueError, match="(?s)wave' holds videos, but .* holds no wave_test_split1.txt.*serre"):
        read_labelled("hmdb51", str(root), "train")
    # As in fold 2 here
    with pytest.raises(ValueError, match="fold 2 has no train videos"):
        read_labelled("hmdb51", f"{root}?fold=2", "train")
    with pytest.raises(ValueError, match="holds no CLASS_test_split3.txt"):
        read_labelled("hmdb51", f"{root}?fold=3", "train")


def test_all_videos_missing(root):
    (root / "brush_hair/odd.avi").unlink()
    with pytest.raises(ValueError, match="none of the listed videos exists, such as .*brush_hair/odd.avi"):
        read_labelled("hmdb51", str(root), "test")


def test_unknown_numbers(root, write):
    write(f"{SPLITS}/wave_test_split1.txt", "a_wave_f_nm_np1_fr_med_0.avi 1\nb.avi 3\n")
    with pytest.raises(ValueError, match="wave_test_split1.txt', line 2 must be a video and one of 0, 1, 2"):
        read_labelled("hmdb51", str(root), "train")


def test_an_absent_video_stays(root, write):
    write(f"{SPLITS}/wave_test_split1.txt", "a_wave_f_nm_np1_fr_med_0.avi 1\ngone_wave_f_nm_np1_fr_med_0.avi 1\n")
    videos = read_labelled("hmdb51", str(root), "train").videos
    with pytest.raises(DecodingError) as caught:
        read_clip(fetch(videos[2]), lambda num_frames: [0])
    assert caught.value.kind == "missing" and "gone_wave" in videos[2]["video"]["path"]


def test_a_missing_folder_of_splits(root):
    (root / SPLITS).rename(root / "elsewhere")
    with pytest.raises(ValueError, match=f"(?s)lacks {SPLITS}. HMDB51 is expected as.*serre"):
        read_labelled("hmdb51", str(root), "train")
    (root / "elsewhere").rename(root / "splits")
    assert read_labelled("hmdb51", str(root), "train").labels == [0, 1]
