import pytest
import torch
import torch.nn.functional as F

from layerlock_hf.analysis import tokens as module
from layerlock_hf.analysis.tokens import TokenStatistics, kept_tokens
from layerlock_hf.training.diagnostics import effective_rank, feature_statistics


def gathered(tokens: torch.Tensor, batch_size: int = 3) -> TokenStatistics:
    statistics = TokenStatistics(len(tokens))
    for batch in tokens.split(batch_size):
        statistics.add(batch)
    return statistics


def test_cosines_are_those_of_all_pairs():
    tokens = torch.randn(5, 7, 8) + 2 * torch.randn(5, 1, 8) + torch.randn(8)
    directions = F.normalize(F.layer_norm(tokens, (8,)), dim=-1).flatten(0, 1)
    cosines, clip = directions @ directions.T, torch.arange(35) // 7
    is_same_clip, is_pair = clip[:, None] == clip, ~torch.eye(35, dtype=torch.bool)
    statistics = gathered(tokens)
    assert statistics.cosine_within() == pytest.approx(cosines[is_same_clip & is_pair].mean().item(), abs=1e-5)
    assert statistics.cosine_between() == pytest.approx(cosines[~is_same_clip].mean().item(), abs=1e-5)
    assert statistics.cosine_within() > statistics.cosine_between() + 0.1


def test_cosines_of_tokens_that_are_all_the_same():
    statistics = gathered(torch.randn(8).expand(4, 6, 8))
    assert statistics.cosine_within() == pytest.approx(1) and statistics.cosine_between() == pytest.approx(1)


def test_norms_and_outliers():
    tokens = F.normalize(torch.randn(4, 50, 16), dim=-1) * 2
    tokens[0, 0] *= 10
    tokens[1, 3] *= 2.9  # within three medians
    mean, outliers = gathered(tokens).norms()
    assert outliers == pytest.approx(1 / 200)
    assert mean == pytest.approx((198 * 2 + 20 + 5.8) / 200, rel=1e-4)


def test_batches_do_not_matter_and_the_tokens_kept_are_few(monkeypatch):
    monkeypatch.setattr(module, "MAX_ROWS", 30)
    tokens = torch.randn(6, 40, 16)
    whole, parts = gathered(tokens, 6), gathered(tokens, 1)
    assert whole.measures() == pytest.approx(parts.measures(), rel=1e-4)
    assert whole.kept.shape == (6, 5, 16)
    assert torch.equal(whole.kept, tokens[:, [4, 12, 20, 28, 36]])


def test_tokens_kept():
    assert kept_tokens(1, 8).tolist() == list(range(8))
    assert kept_tokens(10**6, 8).tolist() == [4]  # one of each clip in any case
    assert len(kept_tokens(100, 10**4)) == module.MAX_ROWS // 100


def test_what_the_measures_are_of():
    tokens = torch.randn(20, 6, 8) + torch.randn(6, 8) * 50  # every position has a mean of its own
    found = gathered(tokens).measures()
    assert found["feature_std"] == pytest.approx(feature_statistics(tokens)["feature_std"].item())
    assert found["effective_rank"] > 7 and found["participation_ratio"] > 6.5  # without these means
    assert found["rankme"] == pytest.approx(effective_rank(tokens.mean(dim=1)).item())
    assert found["rankme"] < 2  # with them
