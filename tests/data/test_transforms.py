import colorsys
import pickle

import pytest
import torch

from layerlock_hf.data import Augmentation, ClipTransform, center_crop, generator_for, transforms


ANY_SHAPE = (0.3, 1.0)


def noise(*shape):
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def cut(frames, generator, image_size=32, **options):
    """A window of the frames, resized, neither flipped nor recoloured."""
    augmentation = ClipTransform(image_size, **options).draw(*frames.shape[-2:], generator)
    return Augmentation(augmentation.box, False, None).finish(augmentation.crop(frames), image_size)


def recolored(frames, strength, generator):
    """The frames whole, with other colours."""
    augmentation = ClipTransform(jitter_strength=strength).draw(8, 8, generator)
    size = frames.shape[-1]
    return Augmentation((0, 0, size, size), False, augmentation.color).finish(frames, size)


@pytest.mark.parametrize("height, width", [(16, 640), (640, 16), (50, 66), (1, 1), (300, 200), (2, 3)])
@pytest.mark.parametrize("resize_factor", [1.0, 1.15, 4.0])
def test_any_size(height, width, resize_factor):
    frames = noise(2, 3, height, width)
    random = cut(frames, generator_for("test"), resize_factor=resize_factor)
    for crop in (random, center_crop(frames, 32, resize_factor)):
        assert crop.shape == (2, 3, 32, 32)
        assert crop.dtype == torch.uint8


@pytest.mark.parametrize("options", [{}, {"crop_scale": ANY_SHAPE}, {"jitter_strength": 1.0}], ids=repr)
def test_all_frames_change_alike(options):
    frames = noise(1, 3, 40, 60).expand(5, -1, -1, -1)
    transform = ClipTransform(16, **options)
    generator = generator_for("test")
    for _ in range(10):
        augmentation = transform.draw(40, 60, generator)
        result = augmentation.finish(augmentation.crop(frames), 16)
        assert result.shape == (5, 3, 16, 16) and result.dtype == torch.uint8
        assert torch.equal(result, result[:1].expand_as(result))


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, ((13, 18, 104, 104), True, None)),
        ({"resize_factor": 2.0}, ((49, 33, 60, 60), True, None)),
        ({"crop_scale": ANY_SHAPE}, ((10, 34, 108, 94), True, None)),
        (
            {"crop_scale": (0.05, 0.1), "jitter_strength": 1.0},
            ((8, 95, 44, 40), True, (-16.0748892, 1.2609573, 1.0152185, -0.1322441)),
        ),
    ],
    ids=repr,
)
def test_a_key_always_draws_the_same(options, expected):
    """Golden runs and resumed ones depend on every draw, and on their order."""
    drawn = ClipTransform(32, **options).draw(120, 160, generator_for("golden"))
    assert drawn == pickle.loads(pickle.dumps(drawn))
    assert (drawn.box, drawn.is_flipped) == expected[:2]
    assert drawn.color == (None if expected[2] is None else pytest.approx(expected[2]))


def test_a_known_clip():
    """What the defaults made of a frame before there were options for flips and greys."""
    generator, frames = generator_for("golden"), coordinates(120, 160)
    augmentation = ClipTransform(104, resize_factor=120 / 104).draw(120, 160, generator)
    expected = frames[..., 13:117, 18:122].flip(-1)
    assert torch.equal(augmentation.finish(augmentation.crop(frames), 104), expected)
    assert float(torch.rand((), generator=generator)) == pytest.approx(0.7862, abs=1e-4), "as many draws as then"


def test_crop_without_resizing_is_a_window_of_the_source():
    frames = noise(1, 1, 20, 30)
    assert torch.equal(center_crop(frames, 10, 2.0), frames[..., 5:15, 10:20])
    windows = frames.unfold(2, 10, 1).unfold(3, 10, 1).reshape(-1, 100)
    crop = cut(frames, generator_for("test"), 10, resize_factor=2.0).reshape(1, 100)
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
    corners = {int(cut(frames, generator, 6, resize_factor=2.0)[0, 0, 0, 0]) for _ in range(500)}
    assert {0, 6, 72, 78} <= corners


def test_flip_happens_half_of_the_time():
    generator = generator_for("test")
    drawn = [ClipTransform(8).draw(4, 6, generator).is_flipped for _ in range(400)]
    assert 150 < sum(drawn) < 250


def test_flips_can_be_had_always_or_never():
    """Never, for classes such as "pushing something from left to right"."""
    for probability in (0.0, 1.0):
        transform = ClipTransform(8, flip_probability=probability)
        drawn = [transform.draw(4, 6, generator_for(seed)) for seed in range(100)]
        assert {augmentation.is_flipped for augmentation in drawn} == {bool(probability)}
        assert [augmentation.box for augmentation in drawn] == [
            ClipTransform(8).draw(4, 6, generator_for(seed)).box for seed in range(100)
        ]


def test_flip_mirrors_left_to_right():
    frames = noise(2, 3, 6, 6)
    assert torch.equal(Augmentation((0, 0, 6, 6), True, None).finish(frames, 6), frames.flip(-1))


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
    crop = cut(frames, generator_for("test"), crop_scale=ANY_SHAPE)
    assert crop.shape == (4, 3, 32, 32)
    assert crop.dtype == torch.uint8
    assert torch.equal(crop, crop[:1].expand_as(crop))


def test_resized_crops_have_the_areas_and_shapes_asked_for():
    generator = generator_for("test")
    boxes = [box_of(cut(coordinates(120, 160), generator, 120, crop_scale=ANY_SHAPE)) for _ in range(1000)]
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
    crop = cut(coordinates(height, width), generator_for("test"), 320, crop_scale=(1.0, 1.0))
    assert box_of(crop) == box


def only(monkeypatch, **limits):
    """Leave of the jitter the changes of these largest sizes."""
    for name in ("MAX_BRIGHTNESS", "MAX_CONTRAST", "MAX_SATURATION", "MAX_HUE"):
        monkeypatch.setattr(transforms, name, limits.get(name, 0.0))


def test_jitter_is_one_map_for_the_whole_clip():
    frames = noise(1, 3, 16, 16).expand(5, -1, -1, -1)
    changed = recolored(frames, 1.0, generator_for("test"))
    assert changed.dtype == torch.uint8
    assert changed.shape == frames.shape
    assert torch.equal(changed, changed[:1].expand_as(changed))
    assert torch.equal(changed, recolored(frames, 1.0, generator_for("test")))
    assert not torch.equal(changed, recolored(frames, 1.0, generator_for("other")))
    assert torch.equal(recolored(frames, 0.0, generator_for("test")), frames)


def test_greys_stay_grey():
    frames = noise(3, 1, 8, 8).expand(-1, 3, -1, -1)
    for index in range(20):
        red, green, blue = recolored(frames, 1.0, generator_for(index)).int().unbind(dim=1)
        assert max((red - green).abs().max(), (red - blue).abs().max()) <= 1


def test_brightness_shifts(monkeypatch):
    only(monkeypatch, MAX_BRIGHTNESS=0.125)
    frames = 64 + noise(2, 3, 8, 8) // 2
    shifts = []
    for index in range(300):
        difference = recolored(frames, 1.0, generator_for(index)).int() - frames.int()
        assert difference.min() == difference.max()
        shifts.append(int(difference.min()))
    assert -32 <= min(shifts) < -28 and 28 < max(shifts) <= 32
    assert abs(sum(shifts) / 300) < 4


def test_contrast_scales_about_the_brightness_of_the_clip(monkeypatch):
    only(monkeypatch, MAX_CONTRAST=0.4)
    frames = 96 + noise(2, 1, 64, 64).expand(-1, 3, -1, -1) // 4
    factors = []
    for index in range(300):
        changed = recolored(frames, 1.0, generator_for(index)).float()
        assert changed.mean() == pytest.approx(float(frames.float().mean()), abs=0.5)
        factors.append(float(changed.std() / frames.float().std()))
    assert 0.59 < min(factors) < 0.65 and 1.35 < max(factors) < 1.41


def test_saturation_keeps_brightness(monkeypatch):
    only(monkeypatch, MAX_SATURATION=0.4)
    frames = 96 + noise(2, 3, 64, 64) // 4
    brightness = frames.float().movedim(1, -1) @ transforms.LUMA
    factors = []
    for index in range(100):
        changed = recolored(frames, 1.0, generator_for(index)).float()
        assert (changed.movedim(1, -1) @ transforms.LUMA - brightness).abs().max() <= 0.6
        factors.append(float((changed[:, 0] - changed[:, 1]).std() / (frames[:, 0].float() - frames[:, 1]).std()))
    assert 0.59 < min(factors) < 0.65 and 1.35 < max(factors) < 1.41


def test_hue_turns(monkeypatch):
    only(monkeypatch, MAX_HUE=0.2)
    frames = torch.tensor([160, 100, 100], dtype=torch.uint8).view(1, 3, 1, 1)
    hues = []
    for index in range(300):
        color = recolored(frames, 1.0, generator_for(index)).flatten()
        assert abs(int(color.sum()) - 360) <= 2
        hues.append((colorsys.rgb_to_hsv(*(color / 255).tolist())[0] + 0.5) % 1 - 0.5)
    assert -0.21 < min(hues) < -0.18 and 0.18 < max(hues) < 0.21


def test_colours_change_and_vanish_as_often_as_asked_for():
    transform = ClipTransform(8, jitter_strength=1.0, jitter_probability=0.8, gray_probability=0.1)
    colors = [transform.draw(8, 8, generator_for(seed)).color for seed in range(2000)]
    are_gray = [color is not None and color.saturation == 0 for color in colors]
    are_changed = [color is not None and color.contrast != 1 for color in colors]
    assert sum(are_changed) == pytest.approx(1600, abs=60)
    assert sum(are_gray) == pytest.approx(200, abs=45)
    both = sum(gray and changed for gray, changed in zip(are_gray, are_changed, strict=True))
    assert both == pytest.approx(160, abs=45)  # independent of each other


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_gray_clips_keep_their_brightness(strength):
    frames = noise(2, 3, 8, 8)
    color = ClipTransform(jitter_strength=strength, gray_probability=1.0).draw(8, 8, generator_for("test")).color
    gray = Augmentation((0, 0, 8, 8), False, color).finish(frames, 8)
    assert torch.equal(gray[:, 0], gray[:, 1]) and torch.equal(gray[:, 0], gray[:, 2])
    if strength == 0:
        brightness = frames.float().movedim(1, -1) @ transforms.LUMA
        assert (gray[:, 0] - brightness).abs().max() <= 0.51


def test_a_third_of_a_turn_makes_red_green():
    third = transforms._hue_rotation(2 * torch.pi / 3)
    assert torch.allclose(third @ torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]), atol=1e-6)


@pytest.mark.parametrize(
    "options, culprit",
    [
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
        ({"resize_factor": 0.9}, "resize_factor must be between 1 and 10, got 0.9"),
        ({"resize_factor": float("nan")}, "resize_factor must be between 1 and 10, got nan"),
        ({"resize_factor": 1.15, "crop_scale": (0.3, 1.0)}, "resize_factor=1.15 and crop_scale=.* are both set"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"crop_scale": (0.8, 0.3)}, "crop_scale"),
        ({"crop_scale": (0.3, 1.1)}, "crop_scale"),
        ({"crop_scale": (0.3,)}, "crop_scale"),
        ({"jitter_strength": -0.1}, "jitter_strength must be between 0 and 2.5, .* got -0.1"),
        ({"jitter_strength": 2.6}, "jitter_strength must be between 0 and 2.5, .* got 2.6"),
        ({"jitter_strength": float("nan")}, "jitter_strength must be between 0 and 2.5, .* got nan"),
        ({"jitter_probability": 1.1}, "jitter_probability must be between 0 and 1, .* got 1.1"),
        ({"gray_probability": -0.1}, "gray_probability must be between 0 and 1, .* got -0.1"),
        ({"flip_probability": float("nan")}, "flip_probability must be between 0 and 1, .* got nan"),
    ],
    ids=repr,
)
def test_wrong_settings(options, culprit):
    with pytest.raises(ValueError, match=culprit):
        ClipTransform(**options)


def test_center_crop_cannot_exceed_the_frame():
    with pytest.raises(ValueError, match="resize_factor"):
        center_crop(noise(1, 3, 8, 8), 4, 0.9)


def test_pixels_that_are_not_square_are_stretched():
    """A frame of 40 x 40 stored pixels, twice as wide as high, is shown as 40 x 80: its crops are 2 : 1 in pixels."""
    transform = ClipTransform(8, resize_factor=2.0)
    boxes = [transform.draw(40, 40, generator_for(seed), pixel_aspect=2.0).box for seed in range(50)]
    assert {box[2:] for box in boxes} == {(20, 10)}
    assert min(box[1] for box in boxes) < 3 and max(box[1] for box in boxes) > 27
    tall = [transform.draw(40, 40, generator_for(seed), pixel_aspect=0.5).box for seed in range(50)]
    assert {box[2:] for box in tall} == {(10, 20)}
    ramp = torch.arange(40, dtype=torch.uint8).expand(1, 3, 40, 40)
    seen = center_crop(ramp, 20, pixel_aspect=2.0)
    assert seen.min() >= 10 and seen.max() <= 29


def test_without_its_aspect_the_whole_frame_is_squeezed():
    wide, tall = coordinates(40, 80), coordinates(80, 40)
    assert box_of(center_crop(wide, 80, ignores_aspect=True)) == (0, 0, 39, 79)
    assert box_of(center_crop(tall, 80, ignores_aspect=True)) == (0, 0, 79, 39)
    # However the pixels are shaped: what is seen does not depend on it
    assert torch.equal(
        center_crop(wide, 20, 2.0, pixel_aspect=3.0, ignores_aspect=True),
        center_crop(wide, 20, 2.0, ignores_aspect=True),
    )
    transform = ClipTransform(8, resize_factor=2.0, ignores_aspect=True)
    boxes = [transform.draw(40, 80, generator_for(seed)).box for seed in range(100)]
    assert {box[2:] for box in boxes} == {(20, 40)}
    assert min(box[1] for box in boxes) < 3 and max(box[1] for box in boxes) > 37
    assert transform.center(40, 80).box == (10, 20, 20, 40)


def test_videos_of_all_shapes_look_alike_without_their_aspect():
    """A picture that fills the frame, whatever the shape of that: no crop tells which shape it was."""
    picture = noise(1, 3, 8, 8).float()
    crops = []
    for height, width in [(64, 64), (64, 128), (96, 64)]:
        frames = torch.nn.functional.interpolate(picture, size=(height, width), mode="bilinear").byte()
        crops.append(cut(frames, generator_for("test"), 32, resize_factor=1.3, ignores_aspect=True).float())
    assert max((crop - crops[0]).abs().mean() for crop in crops) < 3


def test_the_center_is_at_the_scale_of_the_random_crops():
    for options in ({}, {"resize_factor": 2.0}):
        transform = ClipTransform(16, **options)
        augmentation, frames = transform.center(40, 60), noise(2, 3, 40, 60)
        assert (augmentation.is_flipped, augmentation.color) == (False, None)
        expected = center_crop(frames, 16, transform.central_factor)
        assert torch.equal(augmentation.finish(augmentation.crop(frames), 16), expected)
