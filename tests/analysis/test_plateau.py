"""When layers have settled, and the schedule that follows: known answers."""

import pytest
import torch

from layerlock_hf.analysis.plateau import propose_schedule, spaced, summarise_plateau
from layerlock_hf.analysis.plateau_plot import freezings, plot_plateau
from layerlock_hf.training.settling import Observation


STEPS = range(0, 201, 10)
MAX_STEPS = 200


def moving_until(last_steps: list[int]) -> dict[int, Observation]:
    """Observations of layers each of which is another at every step until its last."""
    found = {}
    for step in STEPS:
        layers = []
        for layer, last in enumerate(last_steps):
            generator = torch.Generator().manual_seed(1000 * layer + min(step, last))
            layers.append((torch.randn(8, 4, 32, generator=generator),) * 2)
        found[step] = Observation.of(torch.ones(len(last_steps)), layers)
    return found


def test_layers_settle_two_intervals_after_they_stopped():
    summary = summarise_plateau(moving_until([40, 60, 300, 20]), [1.0] * MAX_STEPS)
    assert [one["step"] for one in summary["settled"]] == [60, 80, None, 40]
    assert "what layer 3 represents still moves" in summary["settled"][2]["waits"]
    assert summary["schedule"] == {"freeze_start": 60, "freeze_interval": 50, "num_freezes": 2}
    assert freezings(summary["schedule"]) == [(60, 1), (110, 2)]


def test_a_run_that_must_wait(tmp_path):
    summary = summarise_plateau(moving_until([300, 300]), [1.0] * MAX_STEPS)
    assert summary["schedule"] is None and freezings(None) == []
    plot_plateau(summary, "still moving", tmp_path / "plateau.png")
    assert (tmp_path / "plateau.png").stat().st_size > 10_000


def test_a_learning_rate_that_falls_lets_layers_settle_earlier():
    generator = torch.Generator().manual_seed(0)
    base, noise = torch.randn(2, 8, 4, 32, generator=generator)
    drifting = {
        step: Observation.of(torch.ones(1), [(base + step / MAX_STEPS * noise,) * 2]) for step in range(0, 200, 10)
    }
    constant = summarise_plateau(drifting, [1.0] * MAX_STEPS)
    falling = summarise_plateau(drifting, [(1 - step / MAX_STEPS) ** 2 + 1e-3 for step in range(MAX_STEPS)])
    first, second = (summary["settled"][0]["step"] or MAX_STEPS for summary in (falling, constant))
    assert first < second


@pytest.mark.parametrize(
    "settled, schedule",
    [
        ([500, 600, 700], (500, 100, 3)),
        ([500, 500, 760], (500, 130, 3)),
        ([500, 480, 600], (500, 50, 3)),  # no layer before those below it
        ([500, None, 600], (500, 50, 1)),
        ([500, 880, 895], (500, 380, 2)),
        ([500, 990], (500, 50, 1)),
        ([None, 500], None),
        ([960], None),  # a stage could not learn any more
    ],
)
def test_no_layer_freezes_before_it_has_settled(settled, schedule):
    found = propose_schedule(settled, max_steps=1000)
    assert found == (schedule and dict(zip(("freeze_start", "freeze_interval", "num_freezes"), schedule, strict=True)))
    for step, layer in freezings(found):
        assert step >= max(settled[:layer])


def test_checkpoints_are_thinned_to_intervals():
    assert spaced(range(0, 101, 1), 100) == list(range(0, 101, 5))
    assert spaced([30, 10, 20], 100) == [10, 20, 30]


def test_too_few_checkpoints():
    observations = {step: one for step, one in moving_until([40]).items() if step < 20}
    with pytest.raises(ValueError, match="at least 3 checkpoints, got 2: train with a save_steps"):
        summarise_plateau(observations, [1.0] * MAX_STEPS)
