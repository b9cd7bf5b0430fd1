import pytest
import torch

from layerlock_hf.data import center_crop, generator_for, random_crop, random_flip, random_resized_crop


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


def box_of(crop):
    """Top, left, bottom and right of what a crop of `coordinates` shows."""
    rows, columns = crop[0].float()
    return rows[0, 0], columns[0, 0], rows[-1, -1], columns[-1, -1]


def coordinates(height, width):
    """A frame that holds the row and the column of each of its pixels."""
    rows, columns = torch.arange(height).view(-1, 1), torch.arange(width).view(1, -1)
    return torch.stack([rows.expand(height, width), columns.expand(height, width)])[None].to(torch.uint8)


@pytest.mark.parametrize("height, width", [(16, 640), (640, 16), (50, 66), (1, 1), (300, 200), (2, 3)])
def test_resized_crops_of_any_size(height, width):
    frames = noise(1, 3, height, width).expand(4, -1, -1, -1)
    crop = random_resized_crop(frames, 32, generator_for("test"))
    assert crop.shape == (4, 3, 32, 32)
    assert crop.dtype == torch.uint8
    assert torch.equal(crop, crop[:1].expand_as(crop))


def test_resized_crops_have_the_areas_and_shapes_asked_for():
    generator = generator_for("test")
    boxes = [box_of(random_resized_crop(coordinates(120, 160), 120, generator)) for _ in range(1000)]
    top, left, bottom, right = torch.tensor(boxes).unbind(dim=1)
    height, width = bottom - top + 1, right - left + 1
    areas, shapes = height * width / (120 * 160), width / height
    assert areas.min() > 0.28 and areas.max() < 1.02
    assert shapes.min() > 0.72 and shapes.max() < 1.4
    # Where 0.75 * shape is the largest area that fits: (E[0.75^2 shape^2] - 0.3^2) / (2 E[0.75 shape] - 2 * 0.3)
    assert areas.mean() == pytest.approx(0.55, abs=0.02)
    assert torch.stack([top, left]).min() == 0
    assert bottom.max() == 119 and right.max() == 159
    centre = (left + right).mean() / 2
    assert centre == pytest.approx(79.5, abs=2)


@pytest.mark.parametrize(
    "height, width, box", [(16, 160, (0, 69, 15, 90)), (160, 15, (70, 0, 89, 14)), (40, 44, (0, 0, 39, 43))]
)
def test_the_largest_central_window_where_no_other_fits(height, width, box):
    crop = random_resized_crop(coordinates(height, width), 320, generator_for("test"), scale=(1.0, 1.0))
    assert box_of(crop) == box


def test_resized_crop_without_resizing_is_a_window_of_the_source():
    frames = noise(1, 1, 20, 20)
    crop = random_resized_crop(frames, 10, generator_for("test"), scale=(0.25, 0.25), aspect_ratio=(1.0, 1.0))
    windows = frames.unfold(2, 10, 1).unfold(3, 10, 1).reshape(-1, 100)
    assert (windows == crop.reshape(1, 100)).all(dim=1).any()


@pytest.mark.parametrize(
    "options",
    [{"scale": (0.0, 1.0)}, {"scale": (0.8, 0.3)}, {"scale": (0.3, 1.1)}, {"scale": (0.3,)}, {"aspect_ratio": (2, 1)}],
    ids=repr,
)
def test_wrong_bounds_of_resized_crops(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        random_resized_crop(noise(1, 3, 8, 8), 4, **options)


@pytest.mark.parametrize("crop", [random_crop, center_crop])
def test_resize_factor_below_one(crop):
    with pytest.raises(ValueError, match="resize_factor"):
        crop(noise(1, 3, 8, 8), 4, 0.9)
