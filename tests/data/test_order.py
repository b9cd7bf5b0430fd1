from collections import Counter

import numpy as np
import pytest
import torch

from layerlock_hf.data import generator_for
from layerlock_hf.data.order import ClipOrder


# Three sources, their videos mixed up
SOURCES = [0, 1, 0, 2, 0, 1, 0, 0, 2, 0, 0, 1]
WEIGHTS = [0.5, 0.3, 0.2]


def videos_of(order, positions):
    return [order.video_at(position) for position in positions]


def test_one_source_keeps_the_order_of_earlier_versions():
    order = ClipOrder(5, seed=3)
    assert videos_of(order, range(10)) == [1, 3, 0, 2, 4, 4, 0, 2, 1, 3]
    assert [order.replacement(position, 1) for position in range(8)] == [3, 0, 0, 3, 3, 2, 3, 2]
    for epoch in (0, 7):
        expected = torch.randperm(5, generator=generator_for("epoch", 3, epoch)).tolist()
        assert videos_of(order, range(epoch * 5, epoch * 5 + 5)) == expected


def test_without_weights_sources_are_one():
    plain, mixture = ClipOrder(12, seed=1), ClipOrder(12, SOURCES, seed=1)
    assert videos_of(plain, range(40)) == videos_of(mixture, range(40))


def test_no_count_falls_and_none_strays_whatever_the_weights():
    random = np.random.default_rng(0)
    for _ in range(200):
        weights = 10 ** random.uniform(-9, 9, random.integers(2, 8))
        order = ClipOrder(len(weights), range(len(weights)), weights.tolist())
        start = int(random.integers(2 ** random.integers(1, 40)))
        counts = np.array([order._quotas(group) for group in range(start, start + 100)])
        groups = np.arange(start, start + 100)
        assert np.array_equal(counts.sum(axis=1), groups) and np.diff(counts, axis=0).min() >= 0
        assert np.abs(counts - np.outer(groups, weights / weights.sum())).max() <= len(weights) + 1e-3


def test_sources_may_be_many():
    order = ClipOrder(40_000, range(40_000))
    assert order.replacement(0, 1) == order.video_at(0)  # the only one of its source


def test_an_order_does_not_depend_on_what_was_asked_before():
    forward = videos_of(ClipOrder(12, SOURCES, WEIGHTS), range(500))
    order = ClipOrder(12, SOURCES, WEIGHTS)
    assert [order.video_at(position) for position in reversed(range(500))] == forward[::-1]
    assert videos_of(ClipOrder(12, SOURCES, WEIGHTS, seed=1), range(500)) != forward


def test_weights_are_kept_over_long_and_short():
    videos = videos_of(ClipOrder(12, SOURCES, WEIGHTS), range(64 * 60))
    sources = [SOURCES[video] for video in videos]
    for count in (64, 640, 64 * 60):
        counts = Counter(sources[:count])
        assert all(abs(counts[source] - count * weight) <= 3 for source, weight in enumerate(WEIGHTS)), count
    assert sources[:64] != sources[64:128]
    assert all(len(set(sources[start : start + 64])) == 3 for start in range(len(sources) - 64))


def test_rare_sources_come_to_their_share():
    order = ClipOrder(4, [0, 1, 2, 3], [0.7, 0.2, 0.099, 0.001])
    counts = Counter(videos_of(order, range(10_000)))
    assert [round(counts[video] / 100) for video in range(4)] == [70, 20, 10, 0]
    assert 9 <= counts[3] <= 11


def test_every_source_has_epochs_of_its_own():
    videos = videos_of(ClipOrder(12, SOURCES, WEIGHTS), range(600))
    for source in range(3):
        own = [video for video in videos if SOURCES[video] == source]
        rows = [row for row, other in enumerate(SOURCES) if other == source]
        epochs = [own[start : start + len(rows)] for start in range(0, len(own) - len(rows), len(rows))]
        assert len(epochs) > 20 and all(sorted(epoch) == rows for epoch in epochs)
        assert len(set(map(tuple, epochs))) > 1


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_groups_show_one_video(weights):
    singles = videos_of(ClipOrder(12, SOURCES, weights), range(30))
    order = ClipOrder(12, SOURCES, weights, clips_per_video=4)
    assert videos_of(order, range(120)) == [video for video in singles for _ in range(4)]
    assert [order.first_of(position) for position in range(6)] == [0, 0, 0, 0, 4, 4]
    assert len({order.replacement(position, 1) for position in range(4, 8)}) == 1
    assert len({order.replacement(position, 1) for position in range(0, 120, 4)}) > 1


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_replacements_are_of_the_same_source(weights):
    order = ClipOrder(12, SOURCES, weights)
    for position in range(50):
        source = SOURCES[order.video_at(position)]
        assert {SOURCES[order.replacement(position, attempt)] for attempt in range(1, 10)} == {source}


def test_a_million_videos_are_no_burden():
    order = ClipOrder(10**6, seed=1)
    generator = generator_for("epoch", 1, 2)
    assert order.video_at(2 * 10**6 + 5) == torch.randperm(10**6, generator=generator)[5]  # drawn as 64 bits


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_videos": 0}, "num_videos must be at least 1, got 0"),
        ({"clips_per_video": 0}, "clips_per_video must be at least 1, got 0"),
        ({"weights": [1.0]}, "source_weights .* must be one weight for each of the 3 sources, got 1"),
        ({"weights": [0.5, 0.5, 0.0]}, "source_weights .* must be positive numbers, got .*0.0"),
        ({"weights": [0.5, 0.5, float("nan")]}, "source_weights .* must be positive numbers, got .*nan"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClipOrder(**{"num_videos": 12, "sources": SOURCES, **arguments})
