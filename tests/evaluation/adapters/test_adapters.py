import pytest

from layerlock_hf.evaluation.adapters import DEPTH, LABELLED, read_depth, read_labelled


@pytest.mark.parametrize("name", LABELLED)
def test_a_missing_root_of_videos_is_named(name, tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        read_labelled(name, str(tmp_path / "nowhere"), "train")


@pytest.mark.parametrize("name", DEPTH)
def test_a_missing_root_of_depth_is_named(name, tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        read_depth(name, str(tmp_path / "nowhere"), "train")


@pytest.mark.parametrize("name", ["ssv2", "kinetics", "ucf101", "hmdb51"])
def test_who_lacks_a_dataset_learns_where_to_get_it(name, tmp_path):
    with pytest.raises(ValueError, match="(?s)lacks.*is expected as.*Get it from https://"):
        read_labelled(name, str(tmp_path), "test")


@pytest.mark.parametrize("name", ["scannet", "rgbd"])
def test_who_lacks_depth_learns_where_to_get_it(name, tmp_path):
    with pytest.raises(ValueError, match="(?s)is expected as.*Get it from https://"):
        read_depth(name, str(tmp_path), "test")


def test_names_are_checked(tmp_path):
    with pytest.raises(ValueError, match="dataset must be one of table, .* got 'imagenet'"):
        read_labelled("imagenet", str(tmp_path), "train")
    with pytest.raises(ValueError, match="split must be one of train, test, got 'val'"):
        read_labelled("ssv2", str(tmp_path), "val")
    with pytest.raises(ValueError, match="options must be left out, got 'fold'"):
        read_labelled("ssv2", f"{tmp_path}?fold=2", "train")


def test_a_root_without_splits_is_a_whole_only_where_that_is_safe(write):
    root = write("list.csv", "path,label\na.mp4,run\n")
    write("a.mp4")
    with pytest.raises(ValueError, match=r"no column 'split'.*list.csv\?part=all"):
        read_labelled("table", str(root / "list.csv"), "test")
    assert len(read_labelled("table", str(root / "list.csv"), "test", may_lack_split=True).labels) == 1
