import pickle

import numpy as np
import pytest
import torch

from layerlock_hf.data import DecodingError
from layerlock_hf.evaluation.adapters.images import (
    NOT_METRIC,
    decode_colour,
    decode_depth,
    is_plausible,
    read_bytes,
    stack,
    to_metres,
)


def test_depth_is_exact(images):
    every = np.arange(65536, dtype=np.uint16).reshape(128, 512)
    depth = decode_depth(images.png(every), "x")
    assert depth.dtype == np.uint16
    assert np.array_equal(depth, every)


def test_colour_of_png_is_exact(images):
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    assert torch.equal(decode_colour(images.png(image), "x"), torch.from_numpy(image).permute(2, 0, 1))


def test_colour_of_jpeg_is_close(images):
    image = images.colour(3, 16, 32)
    colour = decode_colour(images.jpeg(image), "x")
    assert (colour.dtype, tuple(colour.shape)) == (torch.uint8, (3, 16, 32))
    assert (colour.int() - torch.from_numpy(image).permute(2, 0, 1).int()).abs().max() <= 3


def test_gray_colour_has_three_channels(images):
    assert tuple(decode_colour(images.png(np.zeros((4, 6), np.uint8)), "x").shape) == (3, 4, 6)


@pytest.mark.parametrize("image", [np.zeros((4, 6), np.uint8), np.zeros((4, 6, 3), np.uint8)])
def test_pictures_of_depth_are_not_metric(images, image):
    with pytest.raises(DecodingError, match="x: depth must be a PNG of one channel of 16 bits") as caught:
        decode_depth(images.png(image), "x")
    assert caught.value.kind == NOT_METRIC


def test_damage_is_named(images, tmp_path):
    whole = images.png(images.depth(0, 64, 64) + np.arange(64, dtype=np.uint16))
    for data, kind in ((b"", "empty"), (b"GIF89a", "unsupported"), (whole[: len(whole) // 2], "damaged")):
        with pytest.raises(DecodingError, match="^x: ") as caught:
            decode_depth(data, "x")
        assert pickle.loads(pickle.dumps(caught.value)).kind == kind
    with pytest.raises(DecodingError, match="nothing.png: no such file") as caught:
        read_bytes(str(tmp_path / "nothing.png"))
    assert caught.value.kind == "missing"


def test_metres():
    depth = np.array([[0, 5000, 65535]], np.uint16)
    assert to_metres(depth, 5000.0, 65535).tolist() == [[0, 1, 0]]
    assert torch.equal(to_metres(depth, 5000.0), torch.tensor([[0, 1, 13.107]]))


def test_sizes_must_agree():
    with pytest.raises(DecodingError, match=r"\(4, 4\) and \(4, 5\)"):
        stack([torch.zeros(4, 5), torch.zeros(4, 4)], "x")


@pytest.mark.parametrize("metres, expected", [(0.04, False), (0.06, True), (99, True), (101, False)])
def test_only_known_depth_counts(metres, expected):
    assert is_plausible(torch.tensor([[0, 0, 0, metres]])) == expected
