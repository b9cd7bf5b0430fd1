"""Features as colours: the directions, and that pictures differ by what has changed alone."""

import torch

from layerlock_hf.reporting.features import feature_pictures, principal_scores, rotated_like
from layerlock_hf.reporting.recorded import Run


def test_scores_are_those_of_the_three_largest_directions():
    strengths = torch.tensor([1.0, 9.0, 0.1, 5.0, 3.0])
    values = torch.randn(500, 5, dtype=torch.float64)
    values = torch.linalg.qr(values - values.mean(dim=0)).Q * 500**0.5  # uncorrelated, of variance 1
    scores = principal_scores(values * strengths + 100)
    expected = values[:, [1, 3, 4]]
    torch.testing.assert_close(scores.abs(), expected.abs())


def test_features_that_have_collapsed_are_grey():
    assert not principal_scores(torch.full((20, 8), 3.7)).any()
    one_direction = torch.arange(20.0).unsqueeze(1) * torch.ones(8)
    assert principal_scores(one_direction).any(dim=0).tolist() == [True, False, False]


def test_order_and_signs_of_directions_make_no_difference():
    scores = principal_scores(torch.randn(100, 6))
    shuffled = scores[:, [2, 0, 1]] * torch.tensor([1, -1, -1])
    torch.testing.assert_close(rotated_like(shuffled, scores), scores)


def test_the_picture_of_a_frozen_layer_stays(finished, videos):
    found = feature_pictures(Run(finished, videos))
    names = [one["name"] for one in found["snapshots"]]
    assert names == ["start of stage 0", "start of stage 1", "start of stage 2", "end of the run"]
    assert [one["num_frozen"] for one in found["snapshots"]] == [0, 1, 2, 2]
    first, *_, last_stage, end = (one["pictures"] for one in found["snapshots"])
    assert last_stage[:2] == end[:2]
    assert all(before != after for before, after in zip(last_stage[2:], end[2:], strict=True))
    assert all(before != after for before, after in zip(first, end, strict=True))
