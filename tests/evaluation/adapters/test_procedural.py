import csv
import pickle

import pytest
import torch

from layerlock_hf.data.procedural import MOTIONS, write_procedural_dataset
from layerlock_hf.data.procedural import read_depth as read_depth_file
from layerlock_hf.evaluation.adapters import read_depth, read_labelled


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A dataset to train and one to test."""
    folder = tmp_path_factory.mktemp("procedural")
    for seed, (name, size) in enumerate((("train", 5), ("test", 3))):
        write_procedural_dataset(
            folder / name, size, seed, num_frames=6, image_size=16, with_depth=True, progress=False
        )
    return folder


def test_a_dataset_for_each_split(both):
    train, test = (read_labelled("procedural", str(both), split) for split in ("train", "test"))
    assert (len(train.videos), len(test.videos), train.class_names) == (5, 3, list(MOTIONS))
    rows = list(csv.DictReader((both / "test/videos.csv").read_text().splitlines()))
    assert [test.class_names[label] for label in test.labels] == [row["motion"] for row in rows]
    assert test.videos[0]["video"]["path"] == str(both / "test/videos/000000.mp4")


def test_rows_of_one_dataset(both):
    root = f"{both}/train?train=0-2&test=3-4"
    train, test = (read_labelled("procedural", root, split) for split in ("train", "test"))
    assert [len(one.videos) for one in (train, test)] == [3, 2]
    assert test.videos[0]["video"]["path"].endswith("000003.mp4")
    assert len(read_labelled("procedural", f"{both}/train?part=all", "test").videos) == 5
    for query, message in (
        ("", "does not tell which videos are to test"),
        ("?test=3-5", "has 5 videos, 0-4; there is no 5"),
        ("?train=0-3&test=3-4", "share videos"),
    ):
        with pytest.raises(ValueError, match=message):
            read_labelled("procedural", f"{both}/train{query}", "test")
    with pytest.raises(ValueError, match="which train, test and part do not choose from"):
        read_labelled("procedural", f"{both}?test=0-1", "test")


def test_depth(both):
    sequences = read_depth("procedural", str(both), "test")
    assert [(one.name, len(one)) for one in sequences] == [(f"videos/{index:06d}.mp4", 6) for index in range(3)]
    colour, depth = pickle.loads(pickle.dumps(sequences[1])).read([0, 4])
    assert (colour.dtype, tuple(colour.shape)) == (torch.uint8, (2, 3, 16, 16))
    assert torch.equal(depth, read_depth_file(both / "test/depth/000001.npz")[[0, 4]])


@pytest.mark.parametrize(
    "row, message",
    [
        ("videos/0.mp4,0,up,", "line 2: the label '0 .up.' is none"),
        ("videos/0.mp4,0,fly,", "line 2: the label '0 .fly.' is none"),
        ("videos/0.mp4,0,left,", "none of the listed videos is there"),
    ],
)
def test_damaged_lists(write, row, message):
    root = write("videos.csv", f"path,label,motion,depth\n{row}\n")
    with pytest.raises(ValueError, match=message):
        read_labelled("procedural", f"{root}?part=all", "test")


def test_missing_depth(write):
    root = write("videos.csv", "path,label,motion,depth\nvideos/0.mp4,0,left,\n")
    with pytest.raises(ValueError, match="line 2: no depth; write .* with_depth=True"):
        read_depth("procedural", f"{root}?part=all", "test")
    write("videos.csv", "path,label,motion,depth\nvideos/0.mp4,0,left,depth/0.npz\n")
    with pytest.raises(ValueError, match="line 2: .*0.npz: no such file"):
        read_depth("procedural", f"{root}?part=all", "test")
    write("depth/0.npz", b"PK nonsense")
    with pytest.raises(ValueError, match="line 2: .*0.npz: "):
        read_depth("procedural", f"{root}?part=all", "test")
