import math

import pytest
from toy_methods import make_trainer
from transformers import TrainerCallback

from layerlock_hf.training import (
    FreezeSchedule,
    Latents,
    LayerLockTrainingArguments,
    Objective,
    Stage,
    locked,
    mae,
    schedules,
)
from layerlock_hf.training.schedules import check_schedule, last_switch, learning_rate_factor, whole_steps


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


def test_decays():
    assert [schedules.linear(2, 4, p) for p in (0, 0.25, 1, 3)] == [2, 2.5, 4, 4]
    assert [schedules.constant(2, 4, p) for p in (0, 1, 3)] == [2, 2, 2]
    assert [schedules.cosine(0.04, 0.4, p) for p in (0, 0.5, 1, 3)] == pytest.approx([0.04, 0.22, 0.4, 0.4])


def test_learning_rate_of_vjepa_v1():
    """From 2e-4 to 6.25e-4 in 12,000 steps, then along a cosine to 1e-6, cut off at 80% of its length."""
    peak, steps = 6.25e-4, 90_000 * 1.25

    def rate(step):
        return peak * learning_rate_factor(step, steps, 12_000, mae(6), 0, "cosine", 2e-4 / peak, 1e-6 / peak)

    assert rate(0) == pytest.approx(2e-4, rel=1e-3)
    assert rate(5_999) == pytest.approx((2e-4 + 6.25e-4) / 2, rel=1e-3)
    assert rate(12_000) == pytest.approx(6.25e-4)
    progress = (90_000 - 12_000) / (steps - 12_000)
    assert rate(90_000) == pytest.approx(1e-6 + (6.25e-4 - 1e-6) * 0.5 * (1 + math.cos(math.pi * progress)))
    assert rate(112_500) == pytest.approx(1e-6)


def test_learning_rate_of_vjepa_v2():
    """Up from 1e-4 in 12,000 steps, then constant; the cooldown is a line down to 1e-6."""
    peak = 5.25e-4
    up = [learning_rate_factor(s, 240_000, 12_000, mae(6), 0, "constant", 1e-4 / peak) for s in (0, 12_000, 240_000)]
    assert [peak * factor for factor in up] == pytest.approx([1e-4, peak, peak], rel=1e-3)
    down = [learning_rate_factor(s, 12_000, 0, mae(6), 0, "linear", last=1e-6 / peak) for s in (0, 6_000, 12_000)]
    assert [peak * factor for factor in down] == pytest.approx([peak, (peak + 1e-6) / 2, 1e-6])


def record(trainer):
    """(learning rate, weight decays) of every step."""
    rows = []

    class Recorder(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
            groups = trainer.optimizer.param_groups
            rows.append((groups[0]["lr"], groups[1]["lr"], groups[0]["weight_decay"], groups[1]["weight_decay"]))

    trainer.add_callback(Recorder())
    return rows


def test_schedules_of_a_run_and_after_a_resume(tmp_path):
    settings = {
        "schedule_stretch": 1.25,
        "first_learning_rate": 1e-3,
        "last_learning_rate": 2e-3,
        "warmup_steps": 2,
        "weight_decay": 0.04,
        "weight_decay_end": 0.4,
    }
    trainer = make_trainer("vjepa_locked", tmp_path / "a", save_strategy="steps", save_steps=6, **settings)
    rows = record(trainer)
    trainer.train()
    stages = trainer.stages
    factors = [learning_rate_factor(s, 12.5, 2, stages, 1, "cosine", 0.1, 0.2) for s in range(10)]
    decays = [schedules.cosine(0.04, 0.4, s / 12.5) for s in range(10)]
    assert rows == [pytest.approx((1e-2 * f, 1e-2 * f, d, 0)) for f, d in zip(factors, decays, strict=True)]
    resumed = make_trainer("vjepa_locked", tmp_path / "b", **settings)
    again = record(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-6"))
    assert again == rows[6:]


def test_restarts_at_every_stage(tmp_path):
    trainer = make_trainer("blockwise_in_sequence", tmp_path, max_steps=9, warmup_steps=1)
    rows = record(trainer)
    trainer.train()
    rates = [row[0] for row in rows]
    assert rates[:3] == rates[3:6] == rates[6:]
    assert rates[:3] == pytest.approx([0.5e-2, 1e-2, 0.5e-2])


def test_a_weight_decay_that_stays(tmp_path):
    trainer = make_trainer("mae", tmp_path, max_steps=3, weight_decay_end=None)
    rows = record(trainer)
    trainer.train()
    assert {row[2:] for row in rows} == {(0.5, 0.0)}


def doubts(schedule, max_steps, switch_warmup_steps, **settings):
    args = LayerLockTrainingArguments(
        output_dir="unused", use_cpu=True, max_steps=max_steps, switch_warmup_steps=switch_warmup_steps, **settings
    )
    return check_schedule(locked(mae(6), schedule), args)


def test_a_learning_rate_that_never_rises_again_is_refused():
    schedule = FreezeSchedule(1000, 300, num_freezes=3)
    assert doubts(schedule, 2000, 100) == []
    message = "switch_warmup_steps must be less than the 300 steps of the stage that starts at step 1000, got 1000"
    with pytest.raises(ValueError, match=message):
        doubts(schedule, 2000, 1000)
    with pytest.raises(ValueError, match="got 300"):
        doubts(schedule, 2000, 300)
    assert doubts(schedule, 2000, 1000, schedule_restarts=True) == []  # there is no such rise


def test_schedules_that_are_doubtful():
    schedule = FreezeSchedule(1000, 300, num_freezes=3)
    (doubt,) = doubts(schedule, 1500, 10)
    assert "max_steps=1500 ends the run before 1 of its 4 stages begin, the first of them at step 1600" in doubt
    (doubt,) = doubts(schedule, 900, 10)
    assert "before 3 of its 4 stages" in doubt and doubt.endswith("at step 1000, so that nothing is ever frozen")
    (doubt,) = doubts(FreezeSchedule(1000, 40, num_freezes=3), 2000, 10)
    assert "2 of 4 stages are too short for a fresh head" in doubt and "the first has 40, from step 1000 on" in doubt
    (doubt,) = doubts(schedule, 2000, 200)  # more than half of a stage rises
    assert "for 200 of them the learning rate rises" in doubt
    # The last stage may be cut short
    cut, short = doubts(schedule, 1610, 20)[-1], doubts(schedule, 1700, 20)
    assert "1 of 4 stages are too short" in cut and "the first has 10, from step 1600 on" in cut and short == []


def test_steps_as_shares_of_the_run():
    assert [whole_steps("steps", value, 1200) for value in (0.35, 0.0001, 7, 7.0, 0)] == [420, 1, 7, 7, 0]
    with pytest.raises(ValueError, match="freeze_start must be a whole number of steps, or a share .*, got 3.5"):
        whole_steps("freeze_start", 3.5, 1200)
    with pytest.raises(ValueError, match="max_steps must be set, as freeze_start=0.3 is a share of the run"):
        whole_steps("freeze_start", 0.3, None)


def test_doubts_are_told_at_both_ends(tmp_path, caplog):
    trainer = make_trainer("layerlock", tmp_path, max_steps=6)
    trainer.train()
    said = [record.getMessage() for record in caplog.records]
    late = [index for index, line in enumerate(said) if line.startswith("max_steps=6 ends the run before")]
    ran = [index for index, line in enumerate(said) if line == "3 of 4 stages ran"]
    assert len(late) == 2 and len(ran) == 1 and late[0] < ran[0] < late[1]
