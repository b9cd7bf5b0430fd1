import pytest
import torch

from layerlock_hf.data import center_crop, generator_for, random_crop, random_flip


def noise(*shape):
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("height, width", [(16, 640), (640, 16), (50, 66), (1, 1), (300, 200), (2, 3)])
@pytest.mark.parametrize("resize_factor", [1.0, 1.15, 4.0])
def test_any_size(height, width, resize_factor):
    frames = noise(2, 3, height, width)
    for crop in (random_crop(frames, 32, resize_factor), center_crop(frames, 32, resize_factor)):
        assert crop.shape == (2, 3, 32, 32)
        assert crop.dtype == torch.uint8


def test_all_frames_get_the_same_crop_and_flip():
    frames = noise(1, 3, 40, 60).expand(5, -1, -1, -1)
    generator = generator_for("test")
    for _ in range(10):
        result = random_flip(random_crop(frames, 16, 1.5, generator), generator)
        assert torch.equal(result, result[:1].expand_as(result))


def test_crop_without_resizing_is_a_window_of_the_source():
    frames = noise(1, 1, 20, 30)
    assert torch.equal(center_crop(frames, 10, 2.0), frames[..., 5:15, 10:20])
    windows = frames.unfold(2, 10, 1).unfold(3, 10, 1).reshape(-1, 100)
    crop = random_crop(frames, 10, 2.0, generator_for("test")).reshape(1, 100)
    assert (windows == crop).all(dim=1).any()


def test_crop_matches_resizing_first():
    ramp = torch.linspace(0, 255, 200).expand(1, 3, 160, 200).to(torch.uint8)
    resized = torch.nn.functional.interpolate(ramp, size=(64, 80), mode="bilinear", antialias=True)
    expected = resized[..., 4:60, 12:68].int()
    assert (center_crop(ramp, 56, 64 / 56).int() - expected).abs().max() <= 2


def test_crops_reach_all_corners():
    rows, columns = torch.arange(12).view(12, 1), torch.arange(12).view(1, 12)
    frames = (rows * 12 + columns).to(torch.uint8).view(1, 1, 12, 12)
    generator = generator_for("test")
    corners = {int(random_crop(frames, 6, 2.0, generator)[0, 0, 0, 0]) for _ in range(500)}
    assert {0, 6, 72, 78} <= corners


def test_flip_happens_half_of_the_time():
    frames = noise(2, 3, 4, 6)
    generator = generator_for("test")
    flipped = 0
    for _ in range(400):
        result = random_flip(frames, generator)
        assert torch.equal(result, frames) or torch.equal(result, frames.flip(-1))
        flipped += not torch.equal(result, frames)
    assert 150 < flipped < 250


@pytest.mark.parametrize("crop", [random_crop, center_crop])
def test_resize_factor_below_one(crop):
    with pytest.raises(ValueError, match="resize_factor"):
        crop(noise(1, 3, 8, 8), 4, 0.9)
