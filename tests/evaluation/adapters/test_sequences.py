import pickle

import numpy as np
import pytest
import torch

from layerlock_hf.data import DecodingError
from layerlock_hf.evaluation.adapters.sequences import (
    DepthImages,
    Excerpt,
    ImageFrames,
    PairedSequence,
    VideoFrames,
    check_metric,
    numbered,
    pair,
)


@pytest.fixture
def sequence(write, images):
    for index in range(6):
        write(f"c{index}.png", images.png(images.colour(index)))
        root = write(f"d{index}.png", images.png(images.depth(index, 6, 8)))
    colour, depth = ([str(root / f"{kind}{index}.png") for index in range(6)] for kind in "cd")
    return PairedSequence("a", "g", ImageFrames(colour), DepthImages(depth, 1000.0))


def test_frames_come_as_asked(sequence, images):
    colour, depth = sequence.read([1, 4, 4, 2])
    assert images.indices(colour, depth) == ([1, 4, 4, 2], [1, 4, 4, 2])
    # Depth of another size stays as it is
    assert (colour.dtype, tuple(colour.shape)) == (torch.uint8, (4, 3, 12, 16))
    assert (depth.dtype, tuple(depth.shape)) == (torch.float32, (4, 6, 8))
    assert not depth[:, :, 0].any()


def test_excerpts(sequence, images):
    part = pickle.loads(pickle.dumps(Excerpt(sequence, range(2, 5))))
    assert (part.name, part.group, len(part)) == ("a:2-4", "g", 3)
    assert images.indices(*part.read([0, 2])) == ([2, 4], [2, 4])
    with pytest.raises(ValueError, match="a: frames must be between 0 and 5, got 6"):
        Excerpt(sequence, range(2, 7))


def test_counts_must_agree(sequence):
    with pytest.raises(ValueError, match="a: colour and depth must have the same number of frames, got 5 and 6"):
        PairedSequence("a", "g", ImageFrames(sequence.colour.paths[1:]), sequence.depth)


def test_a_missing_image_is_reported(sequence, write):
    (write("x") / "d3.png").unlink()
    with pytest.raises(DecodingError, match="d3.png: no such file"):
        sequence.read([2, 3])


@pytest.fixture
def video(tmp_path, images):
    return images.video(tmp_path / "v.mp4", 8)


def test_frames_of_a_video_by_number(video, images):
    frames = VideoFrames(video, [0, 2, 3, 5, 7])
    depth = torch.ones(1, 1, 1)
    assert images.indices(frames.read([4, 1, 1, 0]), depth)[0] == [7, 2, 2, 0]
    with pytest.raises(DecodingError, match="frame 8 is missing, only 8 decode"):
        VideoFrames(video, [0, 8]).read([0, 1])


def check_depth(depth):
    check_metric("x", len(depth), depth.read)


def test_depth_is_checked_on_the_first_frame_that_knows_any(write, images):
    write("0.png", images.png(np.zeros((4, 4), np.uint16)))
    write("1.png", b"damaged")
    root = write("2.png", images.png(images.depth(0)))
    paths = [str(root / f"{index}.png") for index in range(3)]
    check_depth(DepthImages(paths, 1000.0))
    for per_metre, median in ((1.0, "1000 m"), (1e6, "0.001 m")):
        with pytest.raises(
            ValueError, match=f"x: depth is not metric: the median depth of frame 2 must be between .* got {median}"
        ):
            check_depth(DepthImages(paths, per_metre))
    with pytest.raises(ValueError, match="x: no depth can be read: .*1.png: neither JPEG nor PNG"):
        check_depth(DepthImages(paths[:2], 1000.0))
    write("0.png", images.png(np.ones((4, 4), np.uint8)))
    with pytest.raises(ValueError, match="x: depth is not metric: .*gray"):
        check_depth(DepthImages(paths, 1000.0))


def test_images_are_numbered_by_their_names(write):
    write("10.png")
    write("9.png")
    root = write("rgb_00045.jpg")
    assert list(numbered(root, "*.png")) == [10, 9]
    assert numbered(root, "rgb_*.jpg") == {45: str(root / "rgb_00045.jpg")}
    write("010.png")
    with pytest.raises(ValueError, match="must have a number each"):
        numbered(root, "*.png")


def test_what_has_no_partner_is_left_out_with_a_warning(caplog):
    with caplog.at_level("WARNING"):
        assert pair("x", range(5), [9, 4, 1]) == [1, 4]
    assert "x: 2 frames have both colour and depth, of 5 with colour and 3 with depth" in caplog.text
    with pytest.raises(ValueError, match="no frame has both"):
        pair("x", [1], [2])
