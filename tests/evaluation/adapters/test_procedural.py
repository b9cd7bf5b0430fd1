import csv
import io
import pickle

import numpy as np
import pytest
import torch

from layerlock_hf.data import DecodingError
from layerlock_hf.data.procedural import MOTIONS, write_procedural_dataset
from layerlock_hf.data.procedural import read_depth as read_depth_file
from layerlock_hf.evaluation.adapters import procedural, read_depth, read_labelled


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
        ("", "does not say which videos to test on"),
        ("?test=3-5", "test must name videos between 0 and 4, .* got 3-5"),
        ("?train=0-3&test=3-4", "share videos"),
    ):
        with pytest.raises(ValueError, match=message):
            read_labelled("procedural", f"{both}/train{query}", "test")
    with pytest.raises(ValueError, match="train, test and part must be left out"):
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
        ("videos/0.mp4,0,left,", "none of the listed videos exists"),
    ],
)
def test_damaged_lists(write, row, message):
    root = write("videos.csv", f"path,label,motion,depth\n{row}\n")
    with pytest.raises(ValueError, match=message):
        read_labelled("procedural", f"{root}?part=all", "test")


def test_missing_depth(write):
    root = write("videos.csv", "path,label,motion,depth\nvideos/0.mp4,0,left,\n")
    with pytest.raises(ValueError, match="line 2: no depth: write .* with_depth=True"):
        read_depth("procedural", f"{root}?part=all", "test")
    write("videos.csv", "path,label,motion,depth\nvideos/0.mp4,0,left,depth/0.npz\n")
    with pytest.raises(ValueError, match="line 2: .*0.npz: no such file"):
        read_depth("procedural", f"{root}?part=all", "test")
    write("depth/0.npz", b"PK nonsense")
    with pytest.raises(ValueError, match="line 2: .*0.npz: "):
        read_depth("procedural", f"{root}?part=all", "test")
    whole = io.BytesIO()
    np.savez_compressed(whole, depth=np.ones((4, 8, 8), np.float32))
    array = io.BytesIO()
    np.save(array, np.ones((4, 8, 8), np.float32))
    for damaged in (whole.getvalue()[:-40], array.getvalue()):
        write("depth/0.npz", damaged)
        with pytest.raises(ValueError, match="line 2: .*0.npz: "):
            read_depth("procedural", f"{root}?part=all", "test")


@pytest.fixture
def write_depth(write, images):
    """A function that writes a video of 4 frames, 32 pixels wide, with this depth."""

    def write_depth(**arrays):
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)
        write("videos.csv", "path,label,motion,depth\nvideos/0.mp4,0,left,depth/0.npz\n")
        root = write("depth/0.npz", file.getvalue())
        (root / "videos").mkdir(exist_ok=True)
        images.video(root / "videos/0.mp4", 4)
        return f"{root}?part=all"

    return write_depth


@pytest.mark.parametrize(
    "arrays, message",
    [
        (
            {"depth": np.full((4, 8, 8), 2000, np.float32)},
            "not metric: the median depth of frame 0 must be between .* got 2000 m",
        ),
        ({"depth": np.full((4, 8, 8), 2000, np.uint16)}, "line 2: .*must be float32 .* but is torch.uint16"),
        ({"depth": np.ones((4, 8), np.float32)}, r"line 2: .*of shape \(4, 8\)"),
        ({"depth": np.zeros((4, 8, 8), np.float32)}, "no pixel with known depth"),
        ({"depths": np.ones((4, 8, 8), np.float32)}, "line 2: .*depth is not a file"),
    ],
)
def test_depth_that_is_not_metric(write_depth, arrays, message):
    with pytest.raises(ValueError, match=message):
        read_depth("procedural", write_depth(**arrays), "test")


def test_depth_of_another_size(write_depth):
    (sequence,) = read_depth("procedural", write_depth(depth=np.ones((6, 8, 12), np.float32)), "test")
    colour, depth = sequence.read([0, 3])
    assert (tuple(colour.shape), tuple(depth.shape)) == ((2, 3, 32, 32), (2, 8, 12))
    # There are 6 frames of depth
    with pytest.raises(DecodingError, match="frame 5 is missing, only 4 decode"):
        sequence.read([5])


@pytest.mark.parametrize("row", ["../0.mp4,0,left,depth/0.npz", "videos/0.mp4,0,left,/etc/0.npz"])
def test_paths_that_lead_out(write_depth, write, row):
    root = write_depth(depth=np.ones((4, 8, 8), np.float32))
    write("videos.csv", f"path,label,motion,depth\n{row}\n")
    with pytest.raises(ValueError, match="in the list leads out of"):
        read_depth("procedural", root, "test")


def test_depth_is_unpacked_once_to_open_it(both, monkeypatch):
    num_read = []
    monkeypatch.setattr(procedural, "read_depth_file", lambda path: num_read.append(path) or read_depth_file(path))
    assert len(read_depth("procedural", str(both), "test")) == len(num_read) == 3
