import itertools

import pytest
import torch

from layerlock_hf.data import (
    FutureMask,
    MaskArguments,
    MultiBlockMasks,
    PretrainingCollator,
    RandomMask,
    TubeMask,
    generator_for,
)


GRID = (8, 14, 14)
SHORT, LONG, LAYERLOCK = (8, 0.15), (2, 0.7), (8, 0.3)
STRATEGIES = [
    RandomMask(0.9),
    TubeMask(0.9),
    FutureMask(3, 0.5),
    MultiBlockMasks(group_size=4),
    MultiBlockMasks(blocks=(LAYERLOCK,), truncate="random", group_size=4),
]


def sample(position):
    pixels = torch.full((2, 3, 4, 4), position, dtype=torch.uint8)
    return {"pixel_values_videos": pixels, "position": position, "is_padded": position % 2 == 1}


def collate(masks, positions, seed=3, grid_size=(5, 2, 2)):
    return PretrainingCollator(grid_size, masks, seed)([sample(position) for position in positions])


def flat(masks):
    return [ids for pair in masks for ids in pair]


def times(ids):
    """Ids to the mean time step, of 0 to 7."""
    return float((ids // (GRID[1] * GRID[2])).float().mean())


# ---- uniform


@pytest.mark.parametrize(
    "grid_size, ratio, expected",
    [((4, 5, 5), 0.9, 10), ((4, 5, 5), 0.01, 99), ((2, 2, 2), 0.99, 1), (GRID, 0.95, 78)],
)
def test_counts_of_random_masks(grid_size, ratio, expected):
    ((context_ids, target_ids),) = RandomMask(ratio)(grid_size, [0, 1], seed=0)
    num_tokens = torch.tensor(grid_size).prod()
    assert context_ids.shape == (2, expected)
    assert all(len(set(row.tolist())) == expected for row in context_ids)
    assert torch.equal(target_ids.sort().values, torch.arange(num_tokens).expand(2, -1))


def test_random_masks_are_uniform_and_targets_independent_of_the_context():
    ((context_ids, target_ids),) = RandomMask(0.7)((1, 2, 5), range(4000), seed=0)
    assert torch.allclose(context_ids.flatten().bincount() / 4000, torch.tensor(0.3), atol=0.04)
    both = (context_ids == target_ids[:, :1]).any(dim=1).float().mean()
    assert both == pytest.approx(0.3, abs=0.04)


def test_numbers_of_random_masks():
    """The masks of a run that began with an earlier version."""
    generator = generator_for("mask", 3, 7)
    context_ids, target_ids = torch.randperm(20, generator=generator)[:5], torch.randperm(20, generator=generator)
    batch = collate(RandomMask(0.75), [7])
    assert torch.equal(batch["context_ids"][0], context_ids)
    assert torch.equal(batch["target_ids"][0], target_ids)
    assert context_ids.tolist() == [16, 2, 15, 10, 6]


# ---- tubes


@pytest.mark.parametrize("ratio, seen", [(0.9, 20), (0.75, 49), (0.999, 1)])
def test_tubes_are_the_same_in_every_frame(ratio, seen):
    ((context_ids, target_ids),) = TubeMask(ratio)(GRID, range(5), seed=0)
    assert context_ids.shape == (5, 8 * seen)
    assert torch.equal(torch.cat([context_ids, target_ids], dim=1).sort().values, torch.arange(1568).expand(5, -1))
    assert (context_ids.diff() > 0).all()
    frames = context_ids.view(5, 8, seen)
    assert torch.equal(frames, frames[:, :1] + 196 * torch.arange(8).view(8, 1))
    assert len({tuple(row.tolist()) for row in context_ids}) == 5


def test_tubes_are_uniform_over_the_frame_and_the_first_targets_over_the_clip():
    ((context_ids, target_ids),) = TubeMask(0.75)((4, 2, 4), range(4000), seed=0)
    assert torch.allclose(context_ids.flatten().bincount() / 4000, torch.tensor(0.25), atol=0.04)
    assert torch.allclose(target_ids[:, :6].flatten().bincount() / 4000, torch.tensor(6 / 32), atol=0.04)


def test_tubes_need_something_to_hide():
    with pytest.raises(ValueError, match="mask_ratio.*must hide at least 1 of the 4 patches of a frame, got 0.2"):
        TubeMask(0.2)((8, 2, 2), [0], seed=0)


# ---- the future


@pytest.mark.parametrize("num_past, ratio, seen", [(1, 0.0, 196), (3, 0.0, 588), (3, 0.5, 294), (7, 0.9999, 1)])
def test_the_past_is_seen_and_all_of_the_future_is_to_be_predicted(num_past, ratio, seen):
    ((context_ids, target_ids),) = FutureMask(num_past, ratio)(GRID, range(5), seed=0)
    assert context_ids.shape == (5, seen)
    assert (context_ids.diff() > 0).all() and (context_ids < num_past * 196).all()
    assert torch.equal(target_ids.sort().values, torch.arange(num_past * 196, 1568).expand(5, -1))
    assert len({tuple(row.tolist()) for row in target_ids}) == 5


def test_the_first_targets_are_uniform_over_the_future_and_what_is_seen_over_the_past():
    ((context_ids, target_ids),) = FutureMask(2, 0.75)((4, 2, 2), range(4000), seed=0)
    assert torch.allclose(context_ids.flatten().bincount() / 4000, torch.tensor(0.25), atol=0.04)
    assert torch.allclose(target_ids[:, :2].flatten().bincount(minlength=16)[8:] / 4000, torch.tensor(0.25), atol=0.04)


def test_a_future_must_be_left():
    with pytest.raises(ValueError, match=r"mask_past.*must be less than the 8 time steps of a clip, got 8"):
        FutureMask(8)(GRID, [0], seed=0)
    with pytest.raises(ValueError, match=r"mask_past.*must be at least 1 time step, got 0"):
        FutureMask(0)
    with pytest.raises(ValueError, match=r"mask_ratio.*must lie in \[0, 1\), got 1.0"):
        FutureMask(1, 1.0)


# ---- blocks


@pytest.mark.parametrize("blocks, fraction", [(SHORT, 0.63), (LONG, 0.81), (LAYERLOCK, 0.79)])
def test_fraction_that_blocks_hide(blocks, fraction):
    strategy = MultiBlockMasks((blocks,), group_size=1)  # a clip alone loses nothing
    hidden = [strategy(GRID, [position], seed=0)[0][1].shape[1] / 1568 for position in range(400)]
    assert sum(hidden) / len(hidden) == pytest.approx(fraction, abs=0.015)


# A simulation of V-JEPA's code, 400 draws: mean number of tokens per clip.
@pytest.mark.parametrize(
    "blocks, group_size, context, target",
    [
        (SHORT, 24, 366, 750),
        (LONG, 24, 100, 1100),
        (LAYERLOCK, 24, 137, 995),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [(SHORT, 64, 325, 708), (LONG, 64, 82, 1097), (LAYERLOCK, 64, 104, 947)]
        ),
    ],
)
def test_blocks_keep_as_many_tokens_as_in_vjepa(blocks, group_size, context, target):
    strategy = MultiBlockMasks((blocks,), group_size=group_size)
    counts = [[ids.shape[1] for ids in flat(strategy(GRID, [group * group_size], seed=0))] for group in range(400)]
    means = torch.tensor(counts, dtype=torch.float).mean(dim=0).tolist()
    assert means[0] == pytest.approx(context, rel=0.06)
    assert means[1] == pytest.approx(target, rel=0.02)


def test_blocks_of_a_clip():
    """Without truncation the target is the union of the blocks, in all frames, and the context the rest."""
    ((context_ids, target_ids),) = MultiBlockMasks(((1, 0.3),), group_size=1)(GRID, [5], seed=0)
    assert sorted(context_ids[0].tolist() + target_ids[0].tolist()) == list(range(1568))
    hidden = torch.zeros(1568, dtype=torch.bool)
    hidden[target_ids] = True
    hidden = hidden.view(GRID)
    assert torch.equal(hidden, hidden[:1].expand(GRID))
    rows, columns = (hidden[0].any(dim=axis).nonzero().flatten() for axis in (1, 0))
    for inside in (rows, columns):
        assert torch.equal(inside, torch.arange(int(inside[0]), int(inside[-1]) + 1))
    assert int(hidden[0].sum()) == len(rows) * len(columns)
    assert len(rows) * len(columns) == pytest.approx(0.3 * 196, rel=0.1)
    assert 0.6 < len(rows) / len(columns) < 1.8


def test_blocks_have_one_size_per_group_and_reach_every_place():
    strategy = MultiBlockMasks(((1, 0.3),), group_size=600)
    ((_, target_ids),) = strategy(GRID, range(600), seed=0)
    assert target_ids.shape[1] % 8 == 0  # nobody's block is cut
    assert target_ids.unique().tolist() == list(range(1568))
    assert len({strategy(GRID, [600 * group], seed=0)[0][1].shape[1] for group in range(4)}) > 1


@pytest.mark.parametrize("truncate", ["prefix", "random"])
def test_ids_are_distinct_disjoint_and_inside_the_grid(truncate):
    for context_ids, target_ids in MultiBlockMasks(truncate=truncate)(GRID, range(24, 48), seed=0):
        assert context_ids.dtype == target_ids.dtype == torch.int64
        for context, target in zip(context_ids, target_ids, strict=True):
            assert (context.diff() > 0).all()
            ids = context.tolist() + target.tolist()
            assert len({*ids}) == len(ids) and min(ids) >= 0 and max(ids) < 1568


def test_the_first_targets_are_any_of_them():
    """An objective that predicts a fraction of the targets takes the first ones."""
    drawn = [MultiBlockMasks((SHORT,), truncate="random")(GRID, range(24 * g, 24 * g + 24), 0)[0] for g in range(10)]
    firsts = [targets[:, : targets.shape[1] // 10] for _, targets in drawn]
    assert torch.cat([(first // 196).float().flatten() for first in firsts]).mean().item() == pytest.approx(
        3.5, abs=0.1
    )
    assert {len(first.unique()) > first.shape[1] for first in firsts} == {True}


def test_prefix_prefers_early_frames_and_random_does_not():
    seen = {}
    for truncate in ("prefix", "random"):
        drawn = [
            MultiBlockMasks((LONG,), truncate=truncate)(GRID, range(24 * g, 24 * g + 24), 0)[0] for g in range(20)
        ]
        seen[truncate] = [sum(times(pair[side]) for pair in drawn) / 20 for side in range(2)]
    assert seen["random"] == pytest.approx([3.5, 3.5], abs=0.05)
    assert seen["prefix"][0] < 2.5 and seen["prefix"][1] < 3.3


def test_truncations_keep_parts_of_the_same_masks():
    (prefix,) = MultiBlockMasks((SHORT,), truncate="prefix")(GRID, range(24), seed=0)
    (random,) = MultiBlockMasks((SHORT,), truncate="random")(GRID, range(24), seed=0)
    for kept, others in zip(prefix, random, strict=True):
        assert kept.shape == others.shape
        whole = [torch.equal(a, b) for a, b in zip(kept, others, strict=True)]
        assert True in whole and False in whole  # the poorest clip keeps all it has


def test_small_grids():
    for grid_size in itertools.product((1, 3), (1, 2, 5), (2, 5)):
        (pair,) = MultiBlockMasks(((1, 0.3),), group_size=3)(grid_size, range(3), seed=0)
        assert all(ids.shape[1] >= 1 for ids in pair)


@pytest.mark.parametrize("grid_size, blocks", [((8, 1, 1), (1, 0.5)), ((8, 2, 2), (100, 0.3))])
def test_blocks_that_leave_no_context(grid_size, blocks):
    with pytest.raises(ValueError, match="mask_blocks.*cover the whole frame"):
        MultiBlockMasks((blocks,))(grid_size, [0], seed=0)


# ---- what all strategies promise


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_masks_depend_on_seed_and_position_alone(strategy):
    whole = flat(strategy(GRID, range(8, 12), seed=3))
    backward = flat(strategy(GRID, range(11, 7, -1), seed=3))
    assert all(torch.equal(ids, other.flip(0)) for ids, other in zip(whole, backward, strict=True))
    others = flat(strategy(GRID, range(8, 12), seed=4)), flat(strategy(GRID, range(12, 16), seed=3))
    for ids, *changed in zip(whole, *others, strict=True):
        assert not torch.equal(ids[0], ids[1])
        assert not any(torch.equal(ids, other) for other in changed)


@pytest.mark.parametrize("truncate", ["prefix", "random"])
def test_batches_do_not_change_masks(truncate):
    strategy = MultiBlockMasks(truncate=truncate)
    whole = flat(strategy(GRID, range(24, 48), seed=0))
    for size in (1, 6, 12):
        parts = [flat(strategy(GRID, range(start, start + size), seed=0)) for start in range(24, 48, size)]
        for ids, *pieces in zip(whole, *parts, strict=True):
            assert torch.equal(ids, torch.cat(pieces))
    # Processes take turns, and what they hold of another group is forgotten
    for position in (25, 100, 47, 3, 25):
        pieces = flat(strategy(GRID, [position], seed=0))
        if 24 <= position < 48:
            assert all(torch.equal(ids[position - 24], piece[0]) for ids, piece in zip(whole, pieces, strict=True))


def test_changing_a_mask_in_place_does_not_change_the_next():
    strategy = MultiBlockMasks((SHORT,))
    first = flat(strategy(GRID, range(24), seed=0))
    copies = [ids.clone() for ids in first]
    for ids in first:
        ids.zero_()
    assert all(torch.equal(ids, copy) for ids, copy in zip(flat(strategy(GRID, range(24), 0)), copies, strict=True))


def test_batches_across_groups():
    strategy = MultiBlockMasks(group_size=24)
    with pytest.raises(ValueError, match="group_size.*must be a multiple of the batch size, got 24 .*batch of 16"):
        strategy(GRID, range(16, 32), seed=0)
    assert strategy(GRID, range(12, 24), seed=0)[0][0].shape[0] == 12


def test_batches():
    batch = collate(RandomMask(0.75), range(4))
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "pixel_values_videos": (4, 2, 3, 4, 4),
        "context_ids": (4, 5),
        "target_ids": (4, 20),
        "num_padded": (),
    }
    assert batch["num_padded"] == 2


def test_batches_with_several_types_of_mask():
    strategy = MultiBlockMasks(group_size=4)
    batch = collate(strategy, range(4), seed=0, grid_size=GRID)
    for kind, (context_ids, target_ids) in enumerate(strategy(GRID, range(4), seed=0)):
        assert torch.equal(batch["context_ids"][kind], context_ids)
        assert torch.equal(batch["target_ids"][kind], target_ids)
    assert len(batch["context_ids"]) == len(batch["target_ids"]) == 2
    alone = collate(MultiBlockMasks((LAYERLOCK,)), range(4), grid_size=GRID)
    assert alone["context_ids"].shape[0] == alone["target_ids"].shape[0] == 4


# ---- what is refused


@pytest.mark.parametrize("strategy", [RandomMask, TubeMask])
@pytest.mark.parametrize("ratio", [0, 1, -0.5, 1.5, float("nan")])
def test_ratio_outside_the_open_interval(strategy, ratio):
    with pytest.raises(ValueError, match="mask_ratio"):
        strategy(ratio)


@pytest.mark.parametrize(
    "settings",
    [
        {"blocks": ()},
        {"blocks": ((0, 0.15),)},
        {"blocks": ((8, 0.0),)},
        {"blocks": ((8, 0.15), (2, 1.0))},
        {"aspect_ratio": (1.5, 0.75)},
        {"aspect_ratio": (0.0, 1.5)},
        {"truncate": "suffix"},
        {"group_size": 0},
    ],
    ids=repr,
)
def test_wrong_blocks(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        MultiBlockMasks(**settings)


@pytest.mark.parametrize(
    "settings, strategy",
    [
        ({}, RandomMask(0.95)),
        ({"mask_ratio": 0.5}, RandomMask(0.5)),
        ({"mask": "tube"}, TubeMask(0.9)),
        ({"mask": "tube", "mask_ratio": 0.75}, TubeMask(0.75)),
        ({"mask": "multiblock"}, MultiBlockMasks((SHORT, LONG), (0.75, 1.5), "prefix", 24)),
        (
            {
                "mask": "multiblock",
                "mask_blocks": ["8x0.3"],
                "mask_truncation": "random",
                "mask_group_size": 8,
            },
            MultiBlockMasks((LAYERLOCK,), truncate="random", group_size=8),
        ),
    ],
    ids=repr,
)
def test_settings(settings, strategy):
    assert MaskArguments(**settings).build() == strategy


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"mask": "blocks"}, "mask must be one of random, tube, multiblock, future, got 'blocks'"),
        ({"mask_ratio": 0.0}, "mask_ratio"),
        ({"mask_blocks": ["8x0.15"]}, "mask_blocks is set but mask=random takes mask_ratio"),
        ({"mask": "tube", "mask_truncation": "random"}, "mask_truncation is set but mask=tube takes mask_ratio"),
        (
            {"mask": "multiblock", "mask_ratio": 0.9},
            "mask_ratio is set but mask=multiblock takes mask_blocks",
        ),
        ({"mask": "multiblock", "mask_blocks": ["8:0.15"]}, "mask_blocks must be NUMxSCALE, got '8:0.15'"),
        ({"mask": "multiblock", "mask_blocks": ["8.5x0.15"]}, "mask_blocks must be NUMxSCALE, got '8.5x0.15'"),
        ({"mask": "multiblock", "mask_blocks": ["2x0.7", "8x"]}, "mask_blocks must be NUMxSCALE, got '8x'"),
        ({"mask": "multiblock", "mask_blocks": ["8x1.5"]}, "mask_blocks"),
        ({"mask": "multiblock", "mask_blocks": []}, "mask_blocks"),
        ({"mask": "multiblock", "mask_truncation": "last"}, "mask_truncation"),
        ({"mask": "multiblock", "mask_group_size": 0}, "mask_group_size"),
    ],
)
def test_contradictory_settings_name_the_field(settings, message):
    with pytest.raises(ValueError, match=message):
        MaskArguments(**settings).build()
