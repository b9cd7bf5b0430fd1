import math

import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics.functional as torchmetrics
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix

from layerlock_hf.evaluation.metrics import (
    EPSILON,
    MEASURES,
    confusion_matrix,
    in_order,
    intervals,
    mean_probabilities,
    measure,
    resampling_units,
    score_classes,
    score_depth,
    student_quantile,
)


CLASSIFICATION, DEPTH = MEASURES["classification"], MEASURES["depth"]
NUM_CLASSES = 8


@pytest.fixture
def videos():
    """Probabilities of 8 classes for 300 videos that favour the true one, and the labels; class 6 never occurs."""
    labels = torch.randint(NUM_CLASSES, (300,)) % 6 + torch.tensor([0, 1]).repeat(150) * 2
    labels[labels == 6] = 7
    logits = torch.randn(300, 3, NUM_CLASSES)
    logits[range(300), :, labels] += 0.8
    return mean_probabilities(logits), labels


@pytest.fixture
def clips():
    """Predicted and true depth of 5 clips, a third of it unknown."""
    metres = 0.3 + 6 * torch.rand(5, 4, 6, 8)
    predicted = metres * (1 + 0.3 * torch.randn_like(metres)) + 0.05
    return predicted, torch.where(torch.rand_like(metres) < 0.33, 0, metres)


def samples(arguments, score_samples=score_classes):
    return score_samples(*arguments, torch.arange(len(arguments[1])))


def test_accuracies_are_those_of_scikit_learn(videos):
    probabilities, labels = videos
    rows = samples(videos)
    predicted = probabilities.argmax(dim=1)
    names = range(NUM_CLASSES)
    assert measure(CLASSIFICATION, rows) == pytest.approx(
        {
            "top1": sklearn.metrics.accuracy_score(labels, predicted),
            "top5": sklearn.metrics.top_k_accuracy_score(labels, probabilities, k=5, labels=names),
            "mean_class_accuracy": sklearn.metrics.recall_score(
                labels, predicted, average="macro", labels=labels.unique()
            ),
            "log_loss": sklearn.metrics.log_loss(labels, probabilities, labels=names),
        }
    )
    expected = sklearn.metrics.confusion_matrix(labels, predicted, labels=names)
    assert np.array_equal(confusion_matrix(rows, NUM_CLASSES), expected)


def test_accuracies_are_those_of_torchmetrics(videos):
    probabilities, labels = videos
    rows = samples(videos)
    found = measure(CLASSIFICATION, rows)
    for k in (1, 5):
        expected = multiclass_accuracy(probabilities, labels, NUM_CLASSES, average="micro", top_k=k)
        assert found[f"top{k}"] == pytest.approx(expected.item())
    expected = multiclass_confusion_matrix(probabilities, labels, NUM_CLASSES)
    assert torch.equal(confusion_matrix(rows, NUM_CLASSES), expected)


def test_clips_are_averaged_after_softmax():
    # One clip is sure of class 0, two lean to class 1: the mean of the logits would side with the one
    logits = torch.tensor([[[9.0, 0.0], [0.0, 1.5], [0.0, 1.5]]])
    assert mean_probabilities(logits).argmax() == 1
    assert logits.mean(dim=1).argmax() == 0
    assert mean_probabilities(logits).sum() == pytest.approx(1)


def test_two_classes_have_no_top_five_to_miss():
    rows = samples((torch.tensor([[0.9, 0.1], [0.9, 0.1]]), torch.tensor([0, 1])))
    assert measure(CLASSIFICATION, rows)["top1"] == 0.5
    assert measure(CLASSIFICATION, rows)["top5"] == 1


def test_equal_probabilities_do_not_make_everything_right():
    labels = torch.arange(NUM_CLASSES)
    found = measure(CLASSIFICATION, samples((torch.full((NUM_CLASSES, NUM_CLASSES), 0.125), labels)))
    assert found["top1"] == 1 / NUM_CLASSES
    assert found["top5"] == 5 / NUM_CLASSES


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_readout_that_diverged_has_no_accuracy(videos, value):
    """One video, and one class of it, are enough: the order of what is not finite means nothing."""
    probabilities, labels = videos
    probabilities[3, (labels[3] + 1) % NUM_CLASSES] = value
    found = measure(CLASSIFICATION, samples(videos))
    assert len(found) == 4 and all(math.isnan(number) for number in found.values())


@pytest.mark.parametrize("score_samples, data", [(score_classes, "videos"), (score_depth, "clips")])
def test_neither_batches_nor_their_order_matter(request, score_samples, data):
    first, second = request.getfixturevalue(data)
    whole = score_samples(first, second, torch.arange(len(second)))
    ids = torch.randperm(len(second))
    # Uneven parts, out of order, and one that comes twice
    parts = [score_samples(first[part], second[part], part) for part in [*ids.split(3), ids[:2]]]
    joined = in_order(parts)
    assert joined.keys() == whole.keys()
    for name, values in whole.items():
        assert torch.equal(joined[name], values), name


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            (torch.ones(2, 3), torch.tensor([0, 3]), torch.arange(2)),
            "labels must be at least 0 and less than 3, .* got 0 to 3",
        ),
        ((torch.ones(2, 3), torch.tensor([0, -1]), torch.arange(2)), "labels must be at least 0 .* got -1 to 0"),
        ((torch.ones(2, 4, 3), torch.tensor([0, 1]), torch.arange(2)), r"got \(2, 4, 3\)"),
        ((torch.ones(2, 3), torch.tensor([0, 1]), torch.arange(3)), r"\(3,\)"),
    ],
)
def test_classes_that_cannot_be_judged(arguments, message):
    with pytest.raises(ValueError, match=message):
        score_classes(*arguments)


def test_depth_that_cannot_be_judged():
    with pytest.raises(ValueError, match=r"\(1, 2, 4, 4\), \(1, 2, 4, 5\)"):
        score_depth(torch.ones(1, 2, 4, 4), torch.ones(1, 2, 4, 5), torch.arange(1))


def test_parts_of_different_kinds_do_not_join(videos, clips):
    with pytest.raises(ValueError, match="same columns"):
        in_order([samples(videos), samples(clips, score_depth)])
    with pytest.raises(ValueError, match="same columns"):
        in_order([])


def test_depth_by_hand():
    # Two frames: four known pixels, one at 10 m and one at the least; then one known pixel
    metres = torch.tensor([[[[2.0, 10.0], [4.0, 0.001]], [[0.0, 1.0], [10.001, 0.0009]]]])
    predicted = torch.tensor([[[[3.0, 10.0], [-1.0, 0.001]], [[7.0, 1.2], [9.0, 9.0]]]])
    errors, truth = [1.0, 0, 5.0, 0, 0.2], [2.0, 10, 4.0, 0.001, 1]
    relative = [error / (depth + EPSILON) for error, depth in zip(errors, truth, strict=True)]
    logs = [math.log(1.5), 0, math.log(4 / 0.001), 0, math.log(1.2)]
    found = measure(DEPTH, score_depth(predicted, metres, torch.arange(1)))
    assert (
        found
        == pytest.approx(
            {
                "abs_rel": sum(relative) / 5,  # 0.39: what is less than nothing is not clamped here
                "abs_rel_per_frame": (sum(relative[:4]) / 4 + relative[4]) / 2,
                "delta1": 3 / 5,
                "delta2": 4 / 5,
                "delta3": 4 / 5,
                "rmse": math.sqrt((1 + 25 + 0.04) / 5),
                "mae": 6.2 / 5,
                "rmse_log": math.sqrt(sum(log**2 for log in logs) / 5),
                "log10": sum(logs) / 5 / math.log(10),
            },
            rel=1e-6,
        )
    )


def test_epsilon_is_in_the_denominator():
    metres = torch.full((1, 1, 1, 1), 0.001)
    found = measure(DEPTH, score_depth(2 * metres, metres, torch.arange(1)))
    assert found["abs_rel"] == pytest.approx(0.001 / (0.001 + EPSILON), rel=1e-6)
    assert found["abs_rel"] != pytest.approx(1, rel=1e-4)


def test_errors_are_those_of_scikit_learn_and_torchmetrics(clips):
    predicted, metres = clips
    is_known = metres > 0
    pair = metres[is_known], predicted[is_known]
    found = measure(DEPTH, samples(clips, score_depth))
    logs = [values.clamp(min=0.001).log() for values in pair]
    for name, expected in {
        "mae": sklearn.metrics.mean_absolute_error(*pair),
        "rmse": sklearn.metrics.root_mean_squared_error(*pair),
        "rmse_log": sklearn.metrics.root_mean_squared_error(*logs),
        "abs_rel": sklearn.metrics.mean_absolute_percentage_error(*pair),
    }.items():
        assert found[name] == pytest.approx(expected, rel=1e-5), name
    truth, guess = pair
    assert found["abs_rel"] == pytest.approx(torchmetrics.mean_absolute_percentage_error(guess, truth).item(), 1e-5)
    assert found["rmse"] == pytest.approx(torchmetrics.mean_squared_error(guess, truth, squared=False).item(), 1e-5)
    ratio = torch.maximum(guess / truth, truth / guess)
    for power in (1, 2, 3):
        expected = ((ratio < 1.25**power) & (ratio > 0)).double().mean().item()
        assert found[f"delta{power}"] == pytest.approx(expected)


def test_what_is_predicted_where_depth_is_unknown_is_ignored(clips):
    predicted, metres = clips
    before = samples(clips, score_depth)
    predicted[metres == 0] = torch.nan
    metres[0, 0, metres[0, 0] == 0] = torch.nan
    after = samples((predicted, metres), score_depth)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_pixels_weigh_alike_and_clips_without_depth_do_not_count(clips):
    predicted, metres = clips
    metres[1] = 0
    metres[2, :, 1:] = 0
    rows = samples((predicted, metres), score_depth)
    assert rows["num"][1] == 0
    is_known = metres > 0
    expected = ((predicted - metres).abs() / (metres + EPSILON))[is_known].double().mean().item()
    found = measure(DEPTH, rows)
    assert found["abs_rel"] == pytest.approx(expected, rel=1e-6)
    kept = {name: values[[0, 2, 3, 4]] for name, values in rows.items()}
    assert measure(DEPTH, kept) == found


def test_depth_that_is_not_finite_does_not_hide(clips):
    predicted, metres = clips
    predicted[0, 0, metres[0, 0] > 0] = torch.nan
    assert math.isnan(measure(DEPTH, samples(clips, score_depth))["abs_rel"])


def test_intervals_of_independent_videos_are_binomial():
    num, share = 800, 0.7
    labels = (torch.arange(num) >= share * num).long()
    rows = samples((torch.tensor([[1.0, 0.0]]).expand(num, 2), labels))
    found = intervals(CLASSIFICATION, rows)["top1"]
    half = 1.96 * math.sqrt(share * (1 - share) / num)
    assert found["value"] == share
    assert found["low"] == pytest.approx(share - half, abs=0.1 * half)
    assert found["high"] == pytest.approx(share + half, abs=0.1 * half)


def test_groups_that_succeed_together_widen_the_interval():
    labels = torch.arange(400) // 20 % 2  # 20 groups, of which every second is wrong
    rows = samples((torch.tensor([[1.0, 0.0]]).expand(400, 2), labels))
    groups = [str(place // 20) for place in range(400)]
    alone, together = (intervals(CLASSIFICATION, rows, names)["top1"] for names in (None, groups))
    width = {name: found["high"] - found["low"] for name, found in (("alone", alone), ("together", together))}
    assert alone["value"] == together["value"] == 0.5
    assert width["together"] == pytest.approx(width["alone"] * math.sqrt(20), rel=0.15)


def test_a_single_group_is_no_sample():
    assert resampling_units(4, ["a"] * 4)[1] == "items"
    assert resampling_units(4, None)[1] == "items"
    units, name = resampling_units(4, ["b", "a", "b", "c"])
    assert (units.tolist(), name) == ([0, 1, 0, 2], "groups")
    with pytest.raises(ValueError, match="groups must be one per item, got 3 for 4 items"):
        resampling_units(4, ["a", "b", "c"])


def test_intervals_of_depth_weigh_pixels(clips):
    rows = samples(clips, score_depth)
    found = intervals(DEPTH, rows, num_resamples=300)
    # By hand: every resample is the mean over the pixels of the clips drawn
    drawn = torch.randint(5, (3000, 5))
    means = rows["relative"][drawn].sum(1) / rows["num"][drawn].sum(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    width = high - low
    assert found["abs_rel"]["low"] == pytest.approx(low, abs=0.15 * width)
    assert found["abs_rel"]["high"] == pytest.approx(high, abs=0.15 * width)


def test_intervals_depend_on_their_seed_alone(videos):
    rows = samples(videos)
    torch.manual_seed(1)
    first = intervals(CLASSIFICATION, rows, num_resamples=200)
    torch.manual_seed(2)
    assert intervals(CLASSIFICATION, rows, num_resamples=200) == first
    assert intervals(CLASSIFICATION, rows, num_resamples=200, seed=1) != first
    with pytest.raises(ValueError, match="got 0 and"):
        intervals(CLASSIFICATION, rows, num_resamples=0)
    with pytest.raises(ValueError, match="no test items"):
        intervals(CLASSIFICATION, {name: values[:0] for name, values in rows.items()})


def judged_of(is_right):
    """Videos of class 0, some of which are taken for class 1."""
    probabilities = torch.stack([is_right, ~is_right], dim=1).double()
    return score_classes(probabilities, torch.zeros(len(is_right)).long(), torch.arange(len(is_right)))


def test_few_groups_have_honest_intervals():
    """Four groups that happen to be alike tell little, though a bootstrap over them finds no spread at all."""
    right = torch.tensor([True] + 5 * [False]).repeat(4)
    rows = judged_of(right)
    groups = [name for name in "abcd" for _ in range(6)]
    found = intervals(CLASSIFICATION, rows, groups)["top1"]
    items = intervals(CLASSIFICATION, rows)["top1"]
    assert found["low"] <= items["low"] < 0.1 and found["high"] >= items["high"] > 0.25
    # Groups that differ: mean +- t(0.975, 3) * deviation / sqrt(4), which no accuracy is above
    shares = torch.tensor([0.0, 0.5, 1.0, 0.5])
    right = torch.cat([torch.arange(6) < round(6 * share.item()) for share in shares])
    rows = judged_of(right)
    found = intervals(CLASSIFICATION, rows, groups)["top1"]
    half = 3.182446 * shares.std().item() / 2
    assert (found["low"], found["high"]) == (pytest.approx(max(0, 0.5 - half), abs=1e-3), pytest.approx(1.0))


@pytest.mark.parametrize(("freedom", "expected"), [(1, 12.7062), (3, 3.18245), (8, 2.30600)])
def test_quantiles_of_student(freedom, expected):
    assert student_quantile(0.975, freedom) == pytest.approx(expected, abs=1e-3)
