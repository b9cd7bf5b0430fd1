import math

import pytest
import torch
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMAP

from layerlock_hf.analysis import retrieval as module
from layerlock_hf.analysis.retrieval import retrieval, retrieval_by_chance


def test_classes_far_apart_are_found_and_strangers_are_not():
    labels = torch.arange(40) % 4
    features = torch.eye(4, 8)[labels] + 0.05 * torch.randn(40, 8)
    assert set(retrieval(features, labels, torch.arange(40)).values()) == {1.0}
    wrong = torch.cat([torch.eye(4), torch.eye(4)])
    found = retrieval(wrong, torch.tensor([0, 1, 2, 3, 1, 0, 3, 2]), torch.arange(8))
    assert found["hit_rate_1"] == 0 and found["hit_rate_10"] == 1


def test_it_is_what_torchmetrics_says(monkeypatch):
    monkeypatch.setattr(module, "MAX_ASKED", 7)
    features, labels = torch.randn(30, 4), torch.arange(30) % 3
    cosines = torch.nn.functional.cosine_similarity(features[:, None], features, dim=2)
    is_other = ~torch.eye(30, dtype=torch.bool)
    arguments = {
        "preds": 2 + cosines[is_other],  # torchmetrics takes what is below 0 for wrong
        "target": (labels[:, None] == labels)[is_other],
        "indexes": torch.arange(30)[:, None].expand(30, 30)[is_other],
    }
    found = retrieval(features, labels, torch.arange(30))
    assert found["mean_average_precision"] == pytest.approx(RetrievalMAP()(**arguments).item(), abs=1e-5)
    for count in (1, 5, 10):
        assert found[f"hit_rate_{count}"] == pytest.approx(RetrievalHitRate(top_k=count)(**arguments).item())


def test_clips_of_the_same_video_do_not_count():
    features = torch.tensor([[1.0, 0], [1, 0.01], [0, 1], [0.01, 1]])
    labels, videos = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1])
    assert all(math.isnan(value) for value in retrieval(features, labels, videos).values())
    assert retrieval(features, labels, torch.arange(4))["hit_rate_1"] == 1


def test_chance_is_the_mean_over_random_orders():
    labels, videos = [0] * 6 + [1] * 10 + [2], [*range(5), 4, *range(5, 16)]
    found = [retrieval(torch.randn(17, 30), torch.tensor(labels), torch.tensor(videos)) for _ in range(300)]
    for name, value in retrieval_by_chance(labels, videos).items():
        assert value == pytest.approx(sum(one[name] for one in found) / 300, abs=0.02), name
