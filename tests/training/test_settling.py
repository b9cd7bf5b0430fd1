"""Which layers have settled: known answers."""

import math

import pytest
import torch
from accelerate import Accelerator

from layerlock_hf.models import LayerLockViTForPretraining
from layerlock_hf.training.settling import Movement, Observation, SettlingRule, movements, observe, views


STILL, MOVING = Movement(0.001, 0.01), Movement(0.5, 0.01)
RULE = SettlingRule()


def observation(values: torch.Tensor, norm: float = 1.0) -> Observation:
    """Of one layer whose tokens and changes are the same: (clips, positions, D)."""
    return Observation.of(torch.tensor([norm]), [(values, values)])


def test_what_stays_or_only_turns_has_not_moved():
    values = torch.randn(8, 4, 16)
    turned = values @ torch.linalg.qr(torch.randn(16, 16)).Q * 3
    for other in (values, turned, values + torch.randn(4, 16)):  # the last shifts all clips alike
        (movement,) = movements(observation(values), observation(other), factor=4)
        assert movement.drift == pytest.approx(0, abs=1e-5)


def test_clips_that_do_not_differ_have_nothing_to_compare():
    still = observation(torch.randn(1, 4, 16).expand(8, -1, -1) * 1.0)
    (movement,) = movements(still, still, factor=1)
    assert math.isnan(movement.drift) and RULE.reason_to_wait(1, [movement] * 2) is not None


def test_changes_are_projected_to_the_end():
    before, after = observation(torch.randn(8, 4, 64), 2.0), observation(torch.randn(8, 4, 64), 2.1)
    (once,), (thrice,) = movements(before, after, 1), movements(before, after, 3)
    assert once.growth == pytest.approx(0.05) and thrice.growth == pytest.approx(0.15)
    assert once.drift > 0.1 and thrice.drift == pytest.approx(3 * once.drift)
    (shrinks,) = movements(after, before, 1)
    assert shrinks.growth < 0


def test_motion_that_tokens_hardly_show_counts():
    values = torch.randn(8, 4, 64)
    before = Observation.of(torch.ones(1), [(values, values)])
    after = Observation.of(torch.ones(1), [(values, torch.randn(8, 4, 64))])
    assert movements(before, after, 1)[0].drift > 0.1


def test_layers_wait_until_two_intervals_were_still():
    assert "1 of 2 intervals" in RULE.reason_to_wait(3, [STILL])
    assert RULE.reason_to_wait(3, [MOVING, STILL, STILL]) is None
    assert "what layer 3 represents still moves" in RULE.reason_to_wait(3, [STILL, MOVING])
    assert "what layer 3 represents" in RULE.reason_to_wait(3, [MOVING, STILL])  # may be a lull
    assert "the weights of layer 3 still grow" in RULE.reason_to_wait(3, [STILL, Movement(0.001, 0.2)])
    assert RULE.reason_to_wait(3, [Movement(0.001, -0.2)] * 2) is None  # weight decay
    assert RULE.reason_to_wait(3, [Movement(math.nan, 0.0)] * 2) is not None
    assert RULE.settled_at(1, [MOVING, STILL, STILL, MOVING]) == 2
    assert RULE.settled_at(1, [MOVING, STILL]) is None


def test_views_have_about_as_many_rows_whatever_the_grid():
    for grid_size, num_clips in (((4, 6, 6), 32), ((8, 14, 14), 8)):
        tokens = torch.randn(num_clips, math.prod(grid_size), 5)
        seen, changes = views(tokens, grid_size, num_clips)
        assert seen.shape == changes.shape == (num_clips, 256 // num_clips, 5)
    still = torch.randn(2, 1, 9, 5).expand(2, 4, 9, 5).flatten(1, 2)
    assert views(still, (4, 3, 3), 2)[1].abs().max() == 0
    assert views(torch.randn(2, 4, 5), (1, 2, 2), 2)[1].shape == (2, 4, 5)  # a single time step has no changes


def test_a_model_is_observed_layer_by_layer(tiny_config):
    model = LayerLockViTForPretraining(tiny_config)
    clips = torch.rand(6, 4, 3, 16, 16)
    seen = observe(model, clips, Accelerator(cpu=True), 4, lambda some: some)
    assert seen.norms.shape == (6,)
    assert (seen.tokens.shape, seen.changes.shape) == ((6, 192, 192), (6, 96, 96))  # 2 x 4 x 4 tokens
    with torch.no_grad():
        for parameter in model.encoder.layers[2].parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    later = observe(model, clips, Accelerator(cpu=True), 3, lambda some: some)
    drifts = [movement.drift for movement in movements(seen, later, 1)]
    assert drifts[:2] == pytest.approx([0, 0], abs=1e-6)  # below the layer that moved
    assert min(drifts[2:]) > 1e-3
