import pickle
import struct
import zlib

import numpy as np
import pytest
import torch

from layerlock_hf.data import DecodingError
from layerlock_hf.evaluation.adapters import read_depth


def sens(images, num_frames=4, version=4, types=(2, 1), per_metre=1000.0, length=None, count=None, scale=1):
    """A .sens file as SensorData.py of the owners reads it; depth is smaller than colour.

    The header may lie: of the length of the sensor's name, of the number of frames, of the unit of depth.
    """
    name = b"StructureSensor"
    parts = [struct.pack("I", version), struct.pack("Q", len(name) if length is None else length), name]
    parts += [struct.pack("16f", *np.eye(4).ravel())] * 4
    parts += [struct.pack("i", kind) for kind in types]
    parts += [struct.pack("I", size) for size in (32, 16, 8, 6)]
    parts += [struct.pack("f", per_metre), struct.pack("Q", num_frames if count is None else count)]
    for index in range(num_frames):
        colour = images.jpeg(images.colour(index, 16, 32))
        depth = zlib.compress((images.depth(index, 6, 8) // scale).tobytes())
        parts += [struct.pack("16f", *np.eye(4).ravel()), struct.pack("QQ", index, index)]
        parts += [struct.pack("QQ", len(colour), len(depth)), colour, depth]
    return b"".join(parts)


@pytest.fixture
def root(write, images):
    write("scannetv2_train.txt", "scene0000_00\nscene0000_01\n")
    write("scannetv2_val.txt", "scene0011_00\n")
    write("scans/scene0000_00/scene0000_00.sens", sens(images))
    write("scans/scene0000_01/scene0000_01.sens", sens(images, num_frames=3))
    return write("scans/scene0011_00/scene0011_00.sens", sens(images, num_frames=2))


def test_owners_layout(root, images):
    train, test = (read_depth("scannet", str(root), split) for split in ("train", "test"))
    assert [(one.name, one.group, len(one)) for one in train] == [
        ("scene0000_00", "scene0000", 4),
        ("scene0000_01", "scene0000", 3),
    ]
    assert [one.name for one in test] == ["scene0011_00"]
    for sequence in (train[0], pickle.loads(pickle.dumps(train[0]))):
        colour, depth = sequence.read([3, 0, 2])
        assert images.indices(colour, depth) == ([3, 0, 2], [3, 0, 2])
    assert (colour.dtype, tuple(colour.shape)) == (torch.uint8, (3, 3, 16, 32))
    assert (depth.dtype, tuple(depth.shape)) == (torch.float32, (3, 6, 8))
    expected = torch.from_numpy(images.depth(2, 6, 8).astype(np.float32)) / 1000
    assert torch.equal(depth[2], expected)


def test_exported_layout(root, write, images):
    write("scannetv2_val.txt", "scene0012_00\n")
    for index in (0, 2, 10):  # in the order of numbers, not of names
        write(f"scans/scene0012_00/color/{index}.jpg", images.jpeg(images.colour(index, 16, 32)))
        write(f"scans/scene0012_00/depth/{index}.png", images.png(images.depth(index)))
    (sequence,) = read_depth("scannet", str(root), "test")
    assert (sequence.name, sequence.group, len(sequence)) == ("scene0012_00", "scene0012", 3)
    assert images.indices(*sequence.read([0, 1, 2])) == ([0, 2, 10], [0, 2, 10])


def test_a_cut_off_file_gives_the_frames_before(root, write, images):
    whole = sens(images)
    write("scans/scene0000_00/scene0000_00.sens", whole[:-10])
    sequence = read_depth("scannet", str(root), "train")[0]
    assert len(sequence) == 4
    sequence.read([0, 2])
    with pytest.raises(DecodingError, match="frame 3: the file is cut off after 3 of 4 frames"):
        sequence.read([3])


def test_frames_are_looked_for_as_far_as_needed(root, images):
    sequence = read_depth("scannet", str(root), "train")[0]
    sequence.read([1])
    assert len(sequence._bounds) == 3  # not of all: a search reads from everywhere in a file of gigabytes
    colour, depth = sequence.read([3, 0])
    assert images.indices(colour, depth) == ([3, 0], [3, 0])


def test_depth_of_another_scene_is_not_read_by_its_path(root, write, images):
    write("elsewhere/elsewhere.sens", sens(images))
    write("scannetv2_val.txt", "../elsewhere\n")
    with pytest.raises(ValueError, match="'../elsewhere' in the list leads out of"):
        read_depth("scannet", str(root), "test")


def test_damaged_depth_of_a_frame(root, write, images):
    whole = bytearray(sens(images))
    whole[-12:-4] = bytes(8)
    write("scans/scene0000_00/scene0000_00.sens", bytes(whole))
    with pytest.raises(DecodingError, match="frame 3: depth is damaged"):
        read_depth("scannet", str(root), "train")[0].read([3])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"version": 3}, "scene0011_00.sens': version of the format must be 4, got 3"),
        ({"types": (1, 1)}, "types of colour and depth must be .* got 1 and 1"),
        ({"types": (2, 2)}, "types of colour and depth must be .* got 2 and 2"),
        ({"per_metre": 1.0}, "depth is not metric: it must have about 1000 units per metre, got 1.0"),
        ({"per_metre": float("nan")}, "depth is not metric"),
        ({"num_frames": 0}, "has 0 frames according to its header"),
        ({"count": 2**63}, "has 9223372036854775808 frames according to its header: download it again"),
        ({"length": 2**64 - 1}, "is cut off: download it again"),
        ({"length": 2**63 - 200}, "is cut off: download it again"),
        ({"scale": 100}, "depth is not metric: the median depth of frame 0 must be between .* got 0.01 m"),
        ({"scale": 5000}, "no depth can be read: no pixel with known depth"),
    ],
)
def test_other_formats_are_refused(root, write, images, changes, message):
    write("scans/scene0011_00/scene0011_00.sens", sens(images, **changes))
    with pytest.raises(ValueError, match=message):
        read_depth("scannet", str(root), "test")


def test_no_sens_at_all(root, write):
    write("scans/scene0011_00/scene0011_00.sens", b"short")
    with pytest.raises(ValueError, match="is cut off: download it again"):
        read_depth("scannet", str(root), "test")


def test_a_missing_list_and_missing_scenes(root, caplog):
    (root / "scans/scene0000_00/scene0000_00.sens").unlink()
    with caplog.at_level("WARNING"):
        assert [one.name for one in read_depth("scannet", str(root), "train")] == ["scene0000_01"]
    assert "1 of the 2 scenes" in caplog.text and "such as scene0000_00" in caplog.text
    (root / "scans/scene0011_00/scene0011_00.sens").unlink()
    with pytest.raises(ValueError, match="(?s)none of the scenes .* such as scene0011_00.*github.com/ScanNet"):
        read_depth("scannet", str(root), "test")
    (root / "scannetv2_val.txt").unlink()
    with pytest.raises(ValueError, match="lacks scannetv2_val.txt"):
        read_depth("scannet", str(root), "test")
