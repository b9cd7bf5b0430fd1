import pytest
import torch

from layerlock_hf.evaluation.baselines import TrainingDepth, class_frequencies, frame_shape_probabilities
from layerlock_hf.evaluation.metrics import MEASURES, measure, score_classes, score_depth


def test_the_majority_of_training_is_predicted_for_all():
    probabilities = class_frequencies([2, 0, 2, 1, 2, 0], num_classes=4, num_test=3)
    assert probabilities.tolist() == [[2 / 6, 1 / 6, 3 / 6, 0]] * 3
    rows = score_classes(probabilities, torch.tensor([2, 0, 3]), torch.arange(3))
    assert measure(MEASURES["classification"], rows)["top1"] == pytest.approx(1 / 3)


@pytest.fixture
def shapes():
    """Training sizes (height, width) and classes: wide videos are of class 0, mostly, tall ones of class 1."""
    return [(240, 320)] * 3 + [(480, 640)] * 3 + [(320, 240)] * 2, [0, 0, 2, 0, 0, 2, 1, 1]


def test_the_aspect_ratio_leaks_the_class(shapes):
    tests = [(720, 960), (960, 720), (1000, 745)]
    found = frame_shape_probabilities(*shapes, tests, num_classes=3)
    assert found.argmax(dim=1).tolist() == [0, 1, 1]
    assert found[0].tolist() == pytest.approx([2 / 3, 0, 1 / 3], abs=1e-6)
    assert found.sum(dim=1).tolist() == pytest.approx([1, 1, 1])
    # Shapes that are alike vote together, in proportion to how many videos have them
    near = frame_shape_probabilities([(100, 100), (100, 101)] + [(100, 102)], [0, 1, 1], [(100, 100)], 2)
    assert 0.5 < near[0, 1] < 2 / 3


def test_the_size_tells_more_than_the_ratio():
    sizes, labels = [(240, 320), (480, 640), (480, 640)], [0, 1, 1]
    assert frame_shape_probabilities(sizes, labels, [(240, 320)], 2)[0].tolist() == pytest.approx([1 / 3, 2 / 3])
    assert frame_shape_probabilities(sizes, labels, [(240, 320)], 2, uses_size=True)[0, 0] > 0.999


def test_order_does_not_matter_and_far_shapes_go_to_the_nearest(shapes):
    sizes, labels = shapes
    tests = [(1, 1000), (1000, 1), (333, 312)]
    found = frame_shape_probabilities(sizes, labels, tests, num_classes=3)
    assert torch.equal(found, frame_shape_probabilities(sizes[::-1], labels[::-1], tests, num_classes=3))
    assert found.isfinite().all()
    assert found.argmax(dim=1).tolist()[:2] == [0, 1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([], [], [(4, 4)], 2), "labels must be one per training video, and at least one, got 0 for 0"),
        (([(4, 4)], [0, 1], [(4, 4)], 2), "labels must be one per training video, .* got 2 for 1"),
        (([(4, 4)], [0], [(4, 0)], 2), "sizes must be above 0"),
    ],
)
def test_shapes_that_tell_nothing(arguments, message):
    with pytest.raises(ValueError, match=message):
        frame_shape_probabilities(*arguments)


def test_training_depth():
    # Depth 1 m left, 4 m right, unknown at the bottom right; once 9 m
    metres = torch.tensor([[1.0, 4.0], [1.0, 0.0]]).repeat(3, 2, 1, 1)
    metres[0, 0, 0, 1] = 9.0
    metres[0, 1, 0, 1] = 11.0  # too far to be known
    depth = TrainingDepth()
    depth.add(metres[:2])
    depth.add(metres[2:])
    found = depth.baselines()
    mean = (12 * 1 + 4 * 4 + 9) / 17
    assert found["mean_depth"].tolist() == [[pytest.approx(mean)] * 2] * 2
    assert found["median_depth"][0, 0] == pytest.approx(1.0, abs=0.001)
    expected = torch.tensor([[1.0, (4 * 4 + 9) / 5], [1.0, mean]], dtype=torch.float64)
    assert torch.allclose(found["mean_depth_map"], expected)


def test_the_median_is_the_better_constant_for_relative_errors():
    metres = torch.rand(4, 2, 8, 8).square() * 9 + 0.3
    depth = TrainingDepth()
    depth.add(metres)
    error = {
        name: measure(MEASURES["depth"], score_depth(guess.expand(metres.shape), metres, torch.arange(4)))
        for name, guess in depth.baselines().items()
    }
    assert error["median_depth"]["abs_rel"] < error["mean_depth"]["abs_rel"]
    assert error["mean_depth"]["rmse"] < error["median_depth"]["rmse"]
    assert error["mean_depth_map"]["rmse"] < error["mean_depth"]["rmse"]
    assert depth.baselines()["median_depth"][0, 0] == pytest.approx(metres.median().item(), abs=0.02)


def test_depth_that_says_nothing():
    depth = TrainingDepth()
    with pytest.raises(ValueError, match="no training clip has a depth"):
        depth.baselines()
    depth.add(torch.zeros(1, 2, 4, 4))
    with pytest.raises(ValueError, match="no training clip has a depth"):
        depth.baselines()
    with pytest.raises(ValueError, match=r"must have maps of \(4, 4\) like those before, got \(4, 5\)"):
        depth.add(torch.ones(1, 2, 4, 5))
