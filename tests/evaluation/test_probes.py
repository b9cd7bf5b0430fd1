import pytest
import torch

from layerlock_hf.evaluation import (
    Ridge,
    clip_features,
    encode,
    fit_and_predict,
    knn_accuracy,
    linear_accuracy,
    mean_features,
    probe_depths,
    probes,
    r2,
)
from layerlock_hf.evaluation.probes import probe_accuracies
from layerlock_hf.models import LayerLockViTModel


@pytest.fixture
def clusters():
    """40 samples of 4 classes, far apart in direction."""
    labels = torch.arange(40) % 4
    return torch.eye(4, 8)[labels] + 0.05 * torch.randn(40, 8), labels


def test_neighbours_of_clusters(clusters):
    features, labels = clusters
    assert knn_accuracy(features, labels) == 1
    assert knn_accuracy(features[::2], labels[::2], features[1::2], labels[1::2]) == 0  # other classes altogether
    assert knn_accuracy(features[:20], labels[:20], features[20:], labels[20:]) == 1


def test_leaving_one_out_leaves_it_out():
    # Two samples of a class each: the only neighbour is always of the other class
    assert knn_accuracy(torch.eye(2), torch.tensor([0, 1])) == 0
    # A class with a single sample can never be found
    labels = torch.tensor([0, 0, 0, 1])
    assert knn_accuracy(torch.tensor([[1.0, 0], [1, 0.1], [1, -0.1], [-1, 0]]), labels) == 0.75


def test_many_are_asked_in_parts(monkeypatch):
    features, labels = torch.randn(50, 6), torch.arange(50) % 3

    def ask():
        split = features[:30], labels[:30], features[30:], labels[30:]
        return knn_accuracy(features, labels), knn_accuracy(*split)

    whole = ask()
    monkeypatch.setattr(probes, "MAX_ASKED", 7)
    assert ask() == whole
    assert 0 < whole[0] < 1


def test_neighbours_are_near_in_direction_after_centring(clusters):
    features, labels = clusters
    scale = torch.rand(40, 1) + 0.5
    assert knn_accuracy(features * scale, labels) == 1
    assert knn_accuracy(features + 1000, labels) == 1


def test_chance_for_noise():
    labels = torch.arange(800) % 4
    assert knn_accuracy(torch.randn(800, 16), labels) == pytest.approx(0.25, abs=0.06)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            (torch.ones(4, 2), torch.zeros(4).long(), torch.ones(4, 2)),
            "test_features and test_labels must be given together",
        ),
        ((torch.ones(1, 2), torch.zeros(1).long()), "features must hold at least 2 samples, got 1"),
    ],
)
def test_neighbours_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        knn_accuracy(*arguments)


def test_ridge_is_the_closed_form():
    features, weights = torch.randn(50, 3, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    targets = features @ weights + 5
    torch.testing.assert_close(Ridge(features, targets).predict(features, 1e-12), targets, atol=1e-4, rtol=1e-4)
    strong = Ridge(features, targets).predict(features, 1e9)  # nothing but the mean is left
    torch.testing.assert_close(strong, targets.mean(dim=0).expand(50, 2), atol=1e-4, rtol=1e-4)


def test_the_strength_suits_held_out_samples():
    features = torch.randn(100, 90)  # more noise than samples to fit it
    targets = features[:, 0] + 0.5 * torch.randn(100)
    tests = torch.randn(500, 90)
    predicted, held_out = fit_and_predict(features, targets, tests, r2)
    weak = Ridge(features, targets).predict(tests, 1e-4)
    assert r2(predicted, tests[:, 0].double()) > r2(weak, tests[:, 0].double())
    assert isinstance(held_out, float) and held_out < 1


def test_linear_accuracy(clusters):
    features, labels = clusters
    assert linear_accuracy(features, labels, features, labels) == (1, 1)


def test_probes_of_depths(clusters):
    features, labels = clusters
    easy, hard = probe_accuracies(
        [3, 6], [features, torch.randn(40, 8)], labels, [features, torch.randn(40, 8)], labels
    )
    assert easy == {"depth": 3, "knn_top1": 1.0, "ridge_top1": 1.0}
    assert hard["depth"] == 6
    assert max(hard["knn_top1"], hard["ridge_top1"]) < 0.6


def test_videos_sorted_by_class_are_shuffled_for_the_ridge(clusters, monkeypatch):
    """It keeps the last fifth of the samples to choose its strength by, which would have a class of their own."""
    features, labels = clusters
    order = labels.argsort(stable=True)
    seen = []

    def record(features, labels, *_):
        seen.append((features, labels))
        return 0.5, 0.5

    monkeypatch.setattr(probes, "linear_accuracy", record)
    probe_accuracies([3], [features[order]], labels[order], [features], labels)
    ((shuffled, of_them),) = seen
    assert len(of_them[-8:].unique()) > 2
    assert torch.equal(shuffled[:, :4].argmax(dim=1), of_them)  # still its own label for each


def test_depths():
    assert probe_depths(48) == [12, 24, 36, 48]
    assert probe_depths(2) == [1, 2]


def test_features_of_a_model(tiny_config):
    model = LayerLockViTModel(tiny_config).eval()
    clips = torch.randint(0, 256, (5, 4, 3, 16, 16), dtype=torch.uint8)
    two, six = encode(model, clips, [2, 6], batch_size=2)
    with torch.no_grad():
        states = model(clips.float() / 255, output_hidden_states=True).hidden_states
    torch.testing.assert_close(two, states[2])
    torch.testing.assert_close(six, states[6])
    (pooled,) = encode(model, clips, [6], batch_size=2, pool=mean_features)
    torch.testing.assert_close(pooled, six.mean(dim=1))
    features = clip_features(six, tiny_config.grid_size)
    times = six.view(5, 2, 16, 32).mean(dim=2)
    torch.testing.assert_close(features, torch.cat([six.mean(dim=1), times[:, 1] - times[:, 0]], dim=1))
