"""Signs of collapse: on features made for it, and in the logs."""

import pytest
import torch
from toy_methods import make_trainer, step_logs

from layerlock_hf.training.diagnostics import MAX_ROWS, feature_statistics, weight_norms


NUM_CLIPS, NUM_TOKENS, WIDTH = 32, 16, 8


def statistics(features):
    return {name: value.item() for name, value in feature_statistics(features).items()}


def test_features_that_fill_the_space():
    found = statistics(3 * torch.randn(NUM_CLIPS, NUM_TOKENS, WIDTH))
    assert found["effective_rank"] == pytest.approx(WIDTH, rel=0.02)
    assert found["feature_std"] == pytest.approx(3 * (1 - 1 / NUM_CLIPS) ** 0.5, rel=0.05)


@pytest.mark.parametrize("rank", [1, 3])
def test_features_of_a_low_rank(rank):
    directions = torch.linalg.qr(torch.randn(WIDTH, WIDTH))[0][:rank]
    features = torch.randn(NUM_CLIPS, NUM_TOKENS, rank) @ directions + 5
    assert statistics(features)["effective_rank"] == pytest.approx(rank, rel=0.02)


def test_effective_rank_by_hand():
    """Singular values 3 and 1: the exponential of the entropy of (3/4, 1/4)."""
    features = torch.zeros(4, 1, WIDTH)
    features[:, 0, 0] = torch.tensor([3.0, -3.0, 0.0, 0.0])
    features[:, 0, 1] = torch.tensor([0.0, 0.0, 1.0, -1.0])
    entropy = -(0.75 * torch.tensor(0.75).log() + 0.25 * torch.tensor(0.25).log())
    assert statistics(features)["effective_rank"] == pytest.approx(entropy.exp().item(), rel=1e-4)


@pytest.mark.parametrize(
    "features",
    [
        torch.ones(NUM_CLIPS, NUM_TOKENS, WIDTH),
        torch.randn(1, NUM_TOKENS, WIDTH, generator=torch.Generator().manual_seed(0)).expand(NUM_CLIPS, -1, -1),
    ],
    ids=["constant", "position alone"],
)
def test_features_that_tell_no_clips_apart(features):
    found = statistics(features)
    assert found["feature_std"] == pytest.approx(0, abs=1e-5)
    # Of rounding alone every direction may be as large: the deviation is what tells
    assert found["effective_rank"] <= WIDTH


def test_many_rows_are_thinned_out():
    features = torch.randn(NUM_CLIPS, 4 * MAX_ROWS // NUM_CLIPS + 3, WIDTH)
    found = statistics(features)
    assert found["effective_rank"] == pytest.approx(WIDTH, rel=0.02)
    assert found["feature_std"] == pytest.approx((1 - 1 / NUM_CLIPS) ** 0.5, rel=0.05)


def test_features_that_are_not_finite():
    found = feature_statistics(torch.full((2, 3, 4), torch.nan))
    assert all(value.isnan() for value in found.values())


def test_content_is_what_clips_add_to_positions():
    content, position = torch.randn(NUM_CLIPS, NUM_TOKENS, WIDTH), torch.randn(NUM_TOKENS, WIDTH)
    expected = content.var() / (content.var() + 9 * position.var())
    assert statistics(7 + content + 3 * position)["content_fraction"] == pytest.approx(expected.item(), rel=0.1)
    assert statistics(100 * (content + 3 * position))["content_fraction"] == pytest.approx(expected.item(), rel=0.1)
    assert statistics(position.expand(NUM_CLIPS, -1, -1))["content_fraction"] == pytest.approx(0, abs=1e-5)


def test_weight_norms_by_hand():
    layers = torch.nn.ModuleList([torch.nn.Linear(2, 1), torch.nn.Linear(1, 1, bias=False)])
    with torch.no_grad():
        for layer, values in zip(layers, ([[2.0, 1.0]], [[-5.0]]), strict=True):
            layer.weight.copy_(torch.tensor(values))
        layers[0].bias.fill_(2.0)
    norms = {name: norm.item() for name, norm in weight_norms(layers).items()}
    assert norms == pytest.approx({"weight_norm_layer_1": 3, "weight_norm_layer_2": 5})


NAMES = {"feature_std", "effective_rank", "content_fraction"}


@pytest.mark.parametrize(
    "name, expected",
    [
        ("mae", NAMES),
        ("vjepa", NAMES | {"teacher_distance"}),
        ("salt", NAMES),
        ("blockwise", {f"depth_{depth}/{name}" for depth in (2, 4, 6) for name in NAMES}),
    ],
)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_diagnostics_are_logged_when_they_are_due(tmp_path, name, expected, accumulation):
    trainer = make_trainer(
        name,
        tmp_path,
        max_steps=5,
        diagnostics_steps=3,
        per_device_train_batch_size=4 // accumulation,
        gradient_accumulation_steps=accumulation,
    )
    trainer.train()
    for step, row in enumerate(step_logs(trainer)):
        assert (expected <= set(row)) == (step in (0, 3)), step
        assert bool(expected & set(row)) == (step in (0, 3)), step
    if name == "vjepa":
        assert step_logs(trainer)[0]["teacher_distance"] == 0 < step_logs(trainer)[3]["teacher_distance"]


def test_diagnostics_change_nothing(tmp_path):
    runs = [make_trainer("vjepa", tmp_path, max_steps=4, diagnostics_steps=every) for every in (0, 1)]
    for trainer in runs:
        trainer.train()
    pairs = zip(*(trainer.model.parameters() for trainer in runs), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not any(NAMES & set(row) for row in step_logs(runs[0]))


def test_a_clip_alone_is_no_sign_of_collapse(tmp_path):
    """Batches of one clip, as large models have them: their deviation from the mean of the batch would be 0."""
    trainer = make_trainer("vjepa", tmp_path, max_steps=2, diagnostics_steps=1, per_device_train_batch_size=1)
    trainer.train()
    for row in step_logs(trainer):
        assert "teacher_distance" in row and not NAMES & set(row)
