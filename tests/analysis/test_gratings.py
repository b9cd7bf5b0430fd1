import math

import pytest
import torch

from layerlock_hf.analysis.gratings import DOUBLE_DRIFTING, DRIFTING, FRAME_RATE, ORIENTATIONS, grating


def test_counts_are_those_of_the_paper():
    assert (len(DRIFTING), len(DOUBLE_DRIFTING)) == (10_800, 15_552)
    assert [len(values) for values in DRIFTING.properties.values()] == [6, 12, 6, 5, 5]
    assert (len(DRIFTING.target_names), len(DOUBLE_DRIFTING.target_names)) == (5, 9)
    assert max(DRIFTING.properties["temporal_frequency"]) < FRAME_RATE / 2


@pytest.mark.parametrize("kind", [DRIFTING, DOUBLE_DRIFTING], ids=lambda kind: kind.name)
def test_targets_of_all_clips(kind):
    targets = kind.targets(torch.arange(len(kind)))
    assert targets.shape == (len(kind), len(kind.target_names)) and targets.min() == 0
    assert len(targets.unique(dim=0)) == len(kind)
    for name, values in kind.properties.items():
        counts = targets[:, kind.target_names.index(name)].bincount()
        assert len(counts) == len(values) and len(counts.unique()) == 1


def test_spectrum_of_a_clip():
    """Its energy lies at the frequencies that its properties say."""
    clip = grating(8, 0, FRAME_RATE / 4).float()
    assert clip.shape == (16, 3, 128, 128) and torch.equal(clip[:, :, 0], clip[:, :, 77])
    energy = torch.fft.fftn(clip[:, 0] - clip[:, 0].mean()).abs()
    t, y, x = torch.unravel_index(energy.argmax(), energy.shape)
    assert (int(y), min(int(x), 128 - int(x)), min(int(t), 16 - int(t))) == (0, 8, 4)
    lying = grating(8, 90, FRAME_RATE / 4).float()
    torch.testing.assert_close(lying, clip.transpose(-1, -2), atol=1, rtol=0)


def test_it_drifts_in_the_direction_of_its_orientation():
    clip = grating(8, 0, FRAME_RATE / 16, num_frames=2).float()  # 16 pixels a cycle, a pixel per frame
    torch.testing.assert_close(clip[1, ..., 1:], clip[0, ..., :-1], atol=1, rtol=0)


def test_contrast_colour_and_size():
    clip = grating(8, 0, 0, contrast=0.4, colour=(1.0, 0.0, 0.5), num_frames=1)[0].float() - 127.5
    highest = clip.abs().amax(dim=(1, 2))
    assert highest.tolist() == pytest.approx([51, 0.5, 25.5], abs=1)
    small = grating(8, 30, 1, num_frames=4, height=48, width=32)
    assert small.shape == (4, 3, 48, 32)
    assert torch.equal(small, grating(8, 30, 1, num_frames=4)[..., :48, :32])  # the same pattern, not a smaller one


def test_halves_and_relations():
    numbers = torch.tensor(
        [int(torch.arange(15552).view(6, 6, 12, 12, 3)[place]) for place in ((0, 2, 0, 11, 1), (3, 3, 4, 4, 0))]
    )
    one, other = DOUBLE_DRIFTING.targets(numbers).tolist()
    # Properties, then |difference| of frequencies and orientations (0 and 165 degrees are neighbours), match, side
    assert one == [0, 2, 0, 11, 1, 2, 1, 0, 0]
    assert other == [3, 3, 4, 4, 0, 0, 0, 1, 1]
    clip = DOUBLE_DRIFTING.clips(numbers, num_frames=3, size=64)
    assert clip.shape == (2, 3, 3, 64, 64) and clip.dtype == torch.uint8
    assert torch.equal(clip[0, ..., :32], grating(4, 0, 2, num_frames=3, height=64, width=32))
    assert torch.equal(clip[0, ..., 32:], grating(12, ORIENTATIONS[-1], 2, num_frames=3, height=64, width=32))


def test_a_choice_is_always_the_same_and_its_clips_are_those_chosen():
    chosen = DRIFTING.chosen(20)
    assert torch.equal(chosen, DRIFTING.chosen(20)) and len(chosen.unique()) == 20
    assert torch.equal(DRIFTING.chosen().sort().values, torch.arange(10_800))
    clips, targets = DRIFTING.clips(chosen, 2, 32), DRIFTING.targets(chosen)
    values = [one[place] for one, place in zip(DRIFTING.properties.values(), targets[3].tolist(), strict=True)]
    assert torch.equal(clips[3], grating(*values, num_frames=2, height=32, width=32))
    assert not math.isclose(clips[3].float().std().item(), 0)
