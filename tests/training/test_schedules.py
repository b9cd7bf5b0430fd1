import math

import pytest

from layerlock_hf.training import FreezeSchedule, Latents, Objective, Stage, locked, mae
from layerlock_hf.training.schedules import last_switch, learning_rate_factor


def factors(stages, warmup_steps=4, switch_warmup_steps=3, max_steps=24):
    return [
        learning_rate_factor(step, max_steps, warmup_steps, stages, switch_warmup_steps)
        for step in range(max_steps + 2)
    ]


def cosine(step):
    return 0.5 * (1 + math.cos(math.pi * (step - 4) / 20))


def test_warmup_and_cosine():
    rates = factors(mae(6))
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4] == 1
    assert rates[9] == pytest.approx(0.5 + math.sqrt(0.125))
    assert rates[14] == pytest.approx(0.5)
    assert rates[24:] == pytest.approx([0, 0])
    assert rates[4:25] == pytest.approx([cosine(step) for step in range(4, 25)])
    assert factors(mae(6), warmup_steps=0)[0] == 1


def test_ramp_after_every_switch():
    stages = locked(mae(6), FreezeSchedule(10, 5, num_freezes=2))
    ramp = {10: 0.25, 11: 0.5, 12: 0.75, 15: 0.25, 16: 0.5, 17: 0.75}
    expected = [cosine(step) * ramp.get(step, 1) for step in range(4, 25)]
    assert factors(stages)[4:25] == pytest.approx(expected)
    assert factors(stages)[:10] == factors(mae(6))[:10]
    assert factors(stages, switch_warmup_steps=0) == factors(mae(6))


def test_ramp_within_the_warmup():
    stages = locked(mae(6), FreezeSchedule(2, 5, num_freezes=1))
    assert factors(stages)[:6] == pytest.approx([0.2, 0.4, 0.6 / 4, 0.8 / 2, 0.75, cosine(5)])


def test_no_ramp_when_the_target_stays():
    stages = locked(mae(6), FreezeSchedule(10, 5, num_freezes=2), predict_latents=False)
    assert factors(stages) == factors(mae(6))
    again = Stage(15, 2, (Objective(6, Latents(1)),))  # freezes a second layer, predicts the first as before
    stages = [*locked(mae(6), FreezeSchedule(10, 5, num_freezes=1)), again]
    assert factors(stages) == factors(stages[:2])


def test_last_switch():
    stages = locked(mae(6), FreezeSchedule(10, 5, num_freezes=2))
    assert [last_switch(stages, step) for step in (0, 9, 10, 14, 15, 99)] == [0, 0, 10, 10, 15, 15]
