import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from layerlock_hf.data import DecodingError
from layerlock_hf.evaluation.adapters import read_depth
from layerlock_hf.evaluation.adapters.rgbd import associate


META = {"depth_unit": "millimetre", "invalid_depth": 0}


@pytest.fixture
def write_scene(write, images):
    """A function that writes a recording of meta.json, color/ and depth/."""

    def write_scene(name, num_frames=5, **facts):
        for index in range(num_frames):
            write(f"{name}/color/{index:06d}.jpg", images.jpeg(images.colour(index, 16, 32)))
            write(f"{name}/depth/{index:06d}.png", images.png(images.depth(index)))
        return write(f"{name}/meta.json", json.dumps(META | facts))

    return write_scene


@pytest.fixture
def warnings(caplog):
    with caplog.at_level("WARNING"):
        yield caplog


def summary(root, split, may_lack_split=False):
    return [(one.name, len(one)) for one in read_depth("rgbd", str(root), split, may_lack_split)]


def test_scenes_and_frames_are_chosen_by_one_root(write_scene):
    write_scene("a")
    root = write_scene("b")
    across = f"{root}?train=a&test=b"
    assert (summary(across, "train"), summary(across, "test")) == ([("a", 5)], [("b", 5)])
    within = f"{root}?train=a:0-2,b:0-1&test=a:4-4,b:2-4"
    assert summary(within, "train") == [("a:0-2", 3), ("b:0-1", 2)]
    assert summary(within, "test") == [("a:4-4", 1), ("b:2-4", 3)]
    assert summary(f"{root}/a?train=0-2&test=3-4", "test") == [("a:3-4", 2)]
    assert summary(f"{root}?part=all", "train") == [("a", 5), ("b", 5)]
    assert summary(root / "b", "test", may_lack_split=True) == [("b", 5)]
    with pytest.raises(ValueError, match="does not say what to train on"):  # what is to test is not to train
        summary(f"{root}?test=b", "train", may_lack_split=True)


def test_the_group_of_the_working_folder_has_a_name(write_scene, monkeypatch):
    monkeypatch.chdir(write_scene("a") / "a")
    (sequence,) = read_depth("rgbd", ".?part=all", "test")
    assert (sequence.name, sequence.group) == ("a", "a")


def test_scenes_may_be_listed_in_files(write_scene, write):
    write_scene("a")
    write_scene("b")
    write("train.txt", "a\nb:0-1\n")
    root = write("test.txt", "b:2-4\n")
    assert (summary(root, "train"), summary(root, "test")) == ([("a", 5), ("b:0-1", 2)], [("b:2-4", 3)])


@pytest.mark.parametrize(
    "query, message",
    [
        ("", r"does not say what to train on: .*\?train=a&test=b.*train.txt.*part=all"),
        ("?test=a", "does not say what to train on"),
        ("?train=c", "holds no recording 'c', only a, b"),
        ("?train=a:0-5", "a: frames must be between 0 and 4, got 5"),
        ("?train=a:x", "'x' is not a range: write FIRST-LAST"),
        ("?train=a:0-2&test=a:2-3", "training and testing share frames of a"),
        ("?train=a&test=a:2-3", "training and testing share frames of a"),
        ("?part=a", "part must be 'all', got 'a'"),
        ("?scenes=a", "options must be train, test, part, got 'scenes'"),
    ],
)
def test_unclear_splits_are_refused(write_scene, query, message):
    write_scene("a")
    root = write_scene("b")
    with pytest.raises(ValueError, match=message):
        read_depth("rgbd", f"{root}{query}", "train")


def test_folder_without_recordings(tmp_path):
    with pytest.raises(ValueError, match="(?s)holds no recording.*TrainSplit.txt"):
        read_depth("rgbd", str(tmp_path), "train")


def test_video_with_depth_images_is_paired_by_number(write, write_scene, images, warnings):
    root = write_scene("a", num_frames=6)
    for path in (root / "a/color").iterdir():
        path.unlink()
    images.video(root / "a/color.mp4", 6)
    assert summary(f"{root}?part=all", "test") == [("a", 6)] and not warnings.text
    (root / "a/depth/000002.png").unlink()
    (sequence,) = read_depth("rgbd", f"{root}?part=all", "test")
    assert "5 frames have both colour and depth, of 6 with colour and 5 with depth" in warnings.text
    sequence = pickle.loads(pickle.dumps(sequence))
    colour, depth = sequence.read([1, 2, 4])
    assert images.indices(colour, depth) == ([1, 3, 5], [1, 3, 5])  # not shifted


def test_the_unit_must_be_known(write, write_scene):
    root = write_scene("a", depth_unit="unknown")
    with pytest.raises(
        ValueError, match="meta.json': depth is not metric: depth_unit must be one of .* got 'unknown'"
    ):
        read_depth("rgbd", f"{root}?part=all", "test")
    write("a/meta.json", "{}")
    with pytest.raises(ValueError, match="depth_unit must be one of .* got None"):
        read_depth("rgbd", f"{root}?part=all", "test")
    write("a/meta.json", '{"depth_unit": "metre"}')  # 1000 m
    with pytest.raises(ValueError, match="the median depth of frame 0 must be between .* got 1000 m"):
        read_depth("rgbd", f"{root}?part=all", "test")
    write("a/meta.json", json.dumps(META))
    for index in range(5):
        write(f"a/depth/{index:06d}.png", b"\x89PNG nonsense")
    with pytest.raises(ValueError, match="no depth can be read"):
        read_depth("rgbd", f"{root}?part=all", "test")


@pytest.mark.parametrize("invalid", ["0", 1.5, -1, 65536, True, None, [0]])
def test_the_number_of_unknown_depth_has_16_bits(write_scene, invalid):
    root = write_scene("a", invalid_depth=invalid)
    with pytest.raises(ValueError, match="meta.json': invalid_depth must be a whole number between 0 and 65535, got"):
        read_depth("rgbd", f"{root}?part=all", "test")


def test_unknown_depth_by_its_number(write_scene):
    root = write_scene("a", invalid_depth=1100)
    (sequence,) = read_depth("rgbd", f"{root}?part=all", "test")
    assert [(frame > 0).any().item() for frame in sequence.read([0, 1])[1]] == [True, False]


def test_a_damaged_video_is_named(write, write_scene):
    write_scene("a")
    root = write("a/color.mp4", "no video")
    with pytest.raises(ValueError, match="a/color.mp4.* cannot be read: text, no video"):
        read_depth("rgbd", f"{root}?part=all", "test")


def test_a_video_without_its_facts(write):
    root = write("a/color.mp4")
    with pytest.raises(ValueError, match="a/meta.json' is missing"):
        read_depth("rgbd", f"{root}?part=all", "test")


def test_depth_of_8_bits_is_refused(write, write_scene, images):
    root = write_scene("a")
    for index in range(5):
        write(f"a/depth/{index:06d}.png", images.png(np.full((4, 4), 128, np.uint8)))
    with pytest.raises(ValueError, match="depth is not metric: .*one channel of 16 bits.* gray"):
        read_depth("rgbd", f"{root}?part=all", "test")


@pytest.fixture
def tum(write, images):
    """Colour at 0, 33, 67 and 100 ms; depth at 10, 52 (nearer to 67) and 130 ms, stored in units of 0.2 mm."""
    times = {
        "rgb": ("10.000000", "10.033000", "10.067000", "10.100000"),
        "depth": ("10.010000", "10.052000", "10.130000"),
    }
    for kind, stamps in times.items():
        lines = [f"{stamp} {kind}/{stamp}.png" for stamp in stamps]
        write(f"fr1/{kind}.txt", "\n".join(["# color images", "# file: 'a.bag'", "# timestamp filename", *lines]))
    for index, stamp in enumerate(times["rgb"]):
        write(f"fr1/rgb/{stamp}.png", images.png(images.colour(index)))
    for index, stamp in zip((0, 2, 5), times["depth"], strict=True):
        root = write(f"fr1/depth/{stamp}.png", images.png(images.depth(index, per_metre=5000)))
    return root


def test_tum_is_paired_by_time(tum, images, warnings):
    (sequence,) = read_depth("rgbd", f"{tum}?test=fr1", "test")
    assert (sequence.name, sequence.group, len(sequence)) == ("fr1", "fr1", 2)
    # 33 ms comes first, 19 ms from 52 ms, but 67 ms is 15 ms from it; 130 ms has no partner within 20 ms
    assert images.indices(*sequence.read([0, 1])) == ([0, 2], [0, 2])
    assert "2 frames have both colour and depth, of 4 with colour and 3 with depth" in warnings.text


def test_closest_times_are_paired_first():
    assert associate([0.0, 0.03, 0.06], [0.012, 0.028, 0.085]) == [(0.0, 0.012), (0.03, 0.028)]
    # Each time once, though 0.01 is within reach of both
    assert associate([0.0, 0.015], [0.01]) == [(0.015, 0.01)]


def test_damaged_tum(tum, write):
    write("fr1/depth.txt", "10.0 depth/10.png extra\n")
    with pytest.raises(ValueError, match="depth.txt', line 1 must be a time and a file"):
        read_depth("rgbd", f"{tum}?part=all", "test")
    (tum / "fr1/depth.txt").unlink()
    with pytest.raises(ValueError, match="(?s)depth.txt' is missing.*cvg.cit.tum.de"):
        read_depth("rgbd", f"{tum}?part=all", "test")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/secret.png"])
def test_lists_of_tum_do_not_lead_out(tum, write, name):
    write("secret.png")
    write("fr1/rgb.txt", f"10.0 {name}\n")
    with pytest.raises(ValueError, match=f"'{name}' in the list leads out of '.*fr1'"):
        read_depth("rgbd", f"{tum}?part=all", "test")


def test_absent_image_of_tum_is_reported_when_read(tum):
    (tum / "fr1/rgb/10.000000.png").unlink()
    (sequence,) = read_depth("rgbd", f"{tum}?part=all", "test")
    with pytest.raises(DecodingError, match="10.000000.png: no such file"):
        sequence.read([0])
    sequence.read([1])


@pytest.fixture
def seven_scenes(write, images):
    for sequence in (1, 2, 3):
        for index in range(sequence):
            start = f"chess/seq-{sequence:02d}/frame-{index:06d}"
            depth = images.depth(index)
            depth[:, 1] = 65535
            write(f"{start}.color.png", images.png(images.colour(index)))
            write(f"{start}.depth.png", images.png(depth))
            write(f"{start}.pose.txt", "1 0 0 0")
    write("chess/TrainSplit.txt", "sequence1\nsequence3\n")
    return write("chess/TestSplit.txt", "sequence2\n")


@pytest.mark.parametrize("folder, start", [("", "chess/"), ("chess", "")])
def test_seven_scenes_by_the_owners_split(seven_scenes, folder, start, images):
    root = seven_scenes / folder
    train, test = (read_depth("rgbd", str(root), split) for split in ("train", "test"))
    assert [(one.name, one.group, len(one)) for one in train] == [
        (f"{start}seq-01", "chess", 1),
        (f"{start}seq-03", "chess", 3),
    ]
    assert [one.name for one in test] == [f"{start}seq-02"]
    colour, depth = train[1].read([2, 0])
    assert images.indices(colour, depth) == ([2, 0], [2, 0])
    assert not depth[:, :, :2].any()  # 65535 is unknown as 0 is


def test_scenes_of_seven_scenes_may_be_chosen(seven_scenes):
    assert summary(f"{seven_scenes}?train=chess", "train") == [(f"chess/seq-0{n}", n) for n in (1, 2, 3)]
    with pytest.raises(ValueError, match="does not say what to test on"):
        read_depth("rgbd", f"{seven_scenes}?train=chess", "test")
    with pytest.raises(ValueError, match="names frames of 3 recordings"):
        read_depth("rgbd", f"{seven_scenes}?train=chess:0-1", "train")


def test_damaged_seven_scenes(seven_scenes, write):
    write("chess/TestSplit.txt", "sequence4\n")
    with pytest.raises(ValueError, match="TestSplit.txt' names seq-04, .*: unpack seq-04.zip there"):
        read_depth("rgbd", str(seven_scenes), "test")
    (seven_scenes / "chess/TestSplit.txt").unlink()
    with pytest.raises(ValueError, match="does not say what to test on"):
        read_depth("rgbd", str(seven_scenes), "test")


@pytest.fixture
def nyu(write, images):
    for scene in ("office_0001", "basement_0001a", "basement_0001b", "nyu_office_0"):
        for index in (0, 7):
            write(f"sync/{scene}/rgb_{index:05d}.jpg", images.jpeg(images.colour(index, 16, 32)))
            root = write(f"sync/{scene}/sync_depth_{index:05d}.png", images.png(images.depth(index)))
    return root / "sync"


def test_nyu(nyu, images, warnings):
    sequences = read_depth("rgbd", f"{nyu}?train=office_0001&test=basement_0001a,basement_0001b,nyu_office_0", "test")
    assert [sequence.group for sequence in sequences] == ["basement_0001", "basement_0001", "nyu_office_0"]
    assert images.indices(*sequences[0].read([1])) == ([7], [7])
    assert not warnings.text
    (sequence,) = read_depth("rgbd", f"{nyu}/basement_0001b?part=all", "train")
    assert (sequence.name, sequence.group, len(sequence)) == ("basement_0001b", "basement_0001", 2)


def test_nyu_of_one_place_on_both_sides(nyu, warnings):
    summary(f"{nyu}?train=basement_0001a,office_0001&test=basement_0001b,nyu_office_0", "test")
    assert "1 scenes are used to train and to test, such as basement_0001a and basement_0001b" in warnings.text


def test_damaged_nyu(nyu, write):
    for file in (nyu / "office_0001").glob("sync_depth_*"):
        file.unlink()
    with pytest.raises(ValueError, match="office_0001: 2 frames of colour and 0 of depth, but no frame has both"):
        read_depth("rgbd", f"{nyu}?test=office_0001", "test")
    (nyu / "nyu_office_0/sync_depth_00000.png").write_bytes(b"")
    (sequence,) = read_depth("rgbd", f"{nyu}?test=nyu_office_0", "test")
    with pytest.raises(DecodingError, match="sync_depth_00000.png: empty"):
        sequence.read([0])
    sequence.read([1])
    (nyu / "nyu_office_0/rgb_00007.jpg").unlink()
    with pytest.raises(ValueError, match="nyu_office_0: no depth can be read: .*empty"):
        read_depth("rgbd", f"{nyu}?test=nyu_office_0", "test")


FOLDERS = {"seven_scenes": ("chess/seq-03", "*.depth.png"), "nyu": ("office_0001", "sync_depth_*.png")}


@pytest.mark.parametrize("layout", FOLDERS)
def test_depth_of_another_size_is_given_as_it_is(layout, request, images):
    root = request.getfixturevalue(layout)
    name, pattern = FOLDERS[layout]
    files = sorted((root / name).glob(pattern))
    for index, file in enumerate(files):
        file.write_bytes(images.png(images.depth(index, 5, 9)))
    (sequence,) = read_depth("rgbd", f"{root}?test={name}", "test")
    colour, depth = sequence.read([0, 1])
    assert tuple(depth.shape) == (2, 5, 9) != tuple(colour.shape[::2])
    files[1].write_bytes(images.png(images.depth(1, 6, 9)))
    with pytest.raises(DecodingError, match=r"images of \(5, 9\) and \(6, 9\) pixels in one recording"):
        sequence.read([0, 1])


@pytest.mark.parametrize("layout", FOLDERS)
@pytest.mark.parametrize(
    "image, message",
    [
        (np.full((12, 16), 128, np.uint8), ".*one channel of 16 bits.* gray"),
        (np.full((12, 16, 3), 128, np.uint8), ".*one channel of 16 bits.* rgb24"),
        (np.full((12, 16), 30, np.uint16), "the median depth of frame 0 must be between .* got 0.03 m"),
    ],
)
def test_depth_that_is_not_metric_is_refused(layout, request, images, image, message):
    root = request.getfixturevalue(layout)
    name, pattern = FOLDERS[layout]
    for file in (root / name).glob(pattern):
        file.write_bytes(images.png(image))
    with pytest.raises(ValueError, match=f"{name}: depth is not metric: {message}"):
        read_depth("rgbd", f"{root}?test={name}", "test")


@pytest.mark.parametrize(
    "scene, num_frames, medians", [("redkitchen", 350, (1.878, 1.888)), ("fr1_xyz", 500, (1.175, 1.14))]
)
def test_real_scenes(scene, num_frames, medians):
    root = Path(__file__).parents[3].parent / "shared/data/rgbd"
    if not root.is_dir():
        pytest.skip(f"{root} is absent")
    (sequence,) = read_depth("rgbd", f"{root}?test={scene}", "test")
    colour, depth = sequence.read([0, 1])
    assert (len(sequence), tuple(colour.shape)) == (num_frames, (2, 3, 240, 320))
    assert [frame[frame > 0].median().item() for frame in depth] == pytest.approx(medians)
