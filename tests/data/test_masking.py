import pytest
import torch

from layerlock_hf.data import PretrainingCollator, random_mask


def sample(position):
    pixels = torch.full((2, 3, 4, 4), position, dtype=torch.uint8)
    return {"pixel_values_videos": pixels, "position": position, "is_padded": position % 2 == 1}


@pytest.mark.parametrize(
    "num_tokens, ratio, expected", [(100, 0.9, 10), (100, 0.01, 99), (8, 0.99, 1), (1568, 0.95, 78)]
)
def test_counts(num_tokens, ratio, expected):
    context_ids, target_ids = random_mask(num_tokens, ratio, torch.Generator().manual_seed(0))
    assert context_ids.shape == (expected,)
    assert len(set(context_ids.tolist())) == expected
    assert sorted(target_ids.tolist()) == list(range(num_tokens))


def test_masks_are_uniform_and_targets_independent_of_the_context():
    generator = torch.Generator().manual_seed(0)
    seen, both = torch.zeros(10), 0
    for _ in range(4000):
        context_ids, target_ids = random_mask(10, 0.7, generator)
        seen[context_ids] += 1
        both += int(target_ids[0] in context_ids)
    assert torch.allclose(seen / 4000, torch.tensor(0.3), atol=0.04)
    assert both / 4000 == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize("ratio", [0, 1, -0.5, 1.5])
def test_ratio_outside_the_open_interval(ratio):
    with pytest.raises(ValueError, match="mask_ratio"):
        random_mask(10, ratio)
    with pytest.raises(ValueError, match="mask_ratio"):
        PretrainingCollator(10, ratio, seed=0)


def test_batches():
    batch = PretrainingCollator(20, 0.75, seed=3)([sample(position) for position in range(4)])
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "pixel_values_videos": (4, 2, 3, 4, 4),
        "context_ids": (4, 5),
        "target_ids": (4, 20),
        "num_padded": (),
    }
    assert batch["num_padded"] == 2


def test_masks_depend_on_seed_and_position_alone():
    forward = PretrainingCollator(20, 0.75, seed=3)([sample(0), sample(1)])
    backward = PretrainingCollator(20, 0.75, seed=3)([sample(1), sample(0)])
    other = PretrainingCollator(20, 0.75, seed=4)([sample(0), sample(1)])
    for name in ("context_ids", "target_ids"):
        assert torch.equal(forward[name], backward[name].flip(0))
        assert not torch.equal(forward[name][0], forward[name][1])
        assert not torch.equal(forward[name], other[name])
