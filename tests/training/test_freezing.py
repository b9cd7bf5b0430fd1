"""A run that decides itself when to freeze: the same on any number of processes, and after a kill."""

import json
from itertools import pairwise
from pathlib import Path

import forked
import pytest
import torch
from auto_run import PLAN, RULE, auto_trainer, freezings, run
from toy_methods import weights

from layerlock_hf.models import LayerLockViTConfig
from layerlock_hf.training import AutoFreezing, StageArguments, mae
from layerlock_hf.training.freezing import FILE
from layerlock_hf.training.rehearsal import rehearse
from layerlock_hf.training.run_file import CheckpointRefused
from layerlock_hf.training.settling import Movement


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run to the end, with a checkpoint at every tenth step."""
    trainer = auto_trainer(tmp_path_factory.mktemp("auto"), save_strategy="steps", save_steps=10)
    trainer.train()
    return trainer


@pytest.mark.slow
def test_layers_freeze_in_order_of_depth_within_the_limits(finished):
    steps, counts = zip(*freezings(finished), strict=True)
    assert counts == PLAN.counts
    assert all(PLAN.first_step <= step <= PLAN.last_step and step % PLAN.every == 0 for step in steps)
    assert all(after - before >= PLAN.min_interval for before, after in pairwise(steps))
    rows = [row for row in finished.state.log_history if "learning_rate" in row]
    assert [row["step"] for row in rows] == list(range(1, 61))  # observations take no line of losses away
    for row in rows:  # row N is of the step before step N, and no row mixes two stages
        num_frozen = sum(start < row["step"] for start in steps)
        assert row["num_frozen"] == num_frozen
        (label,) = (name for name in row if name.endswith("/loss"))
        assert label == ("pixels/loss" if num_frozen == 0 else f"layer_{num_frozen}/loss")


@pytest.mark.slow
def test_what_froze_had_settled_and_an_interval_before_it_had_not(finished):
    rows = {row["step"]: row for row in finished.state.log_history if "projected_drift/layer_1" in row}

    def reason(layer, step):
        names = [f"projected_{measure}/layer_{layer}" for measure in ("drift", "growth")]
        history = [Movement(*(rows[one][name] for name in names)) for one in sorted(rows) if one <= step]
        return RULE.reason_to_wait(layer, history)

    earliest = PLAN.first_step
    for step, count in freezings(finished):
        assert reason(count, step) is None
        assert all(reason(count, earlier) is not None for earlier in range(earliest, step, PLAN.every))
        earliest = step + PLAN.min_interval


@pytest.mark.slow
def test_a_resumed_run_decides_as_if_it_had_never_ended(finished, tmp_path):
    (first, _), *_ = freezings(finished)
    for step in (first // 10 * 10, first // 10 * 10 + 10):  # before and after the first layer froze
        resumed = auto_trainer(tmp_path / str(step))
        resumed.train(resume_from_checkpoint=f"{finished.args.output_dir}/checkpoint-{step}")
        assert freezings(resumed) == freezings(finished)
        ours, theirs = weights(resumed.model), weights(finished.model)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


FSDP = {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"}}


@pytest.mark.slow
@pytest.mark.parametrize("wrapping", [{}, FSDP], ids=["ddp", "fsdp2"])
def test_two_processes_decide_as_one_does_and_resume_bit_identically(finished, tmp_path, wrapping):
    saving = {"per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 20, **wrapping}
    whole, resumed = str(tmp_path / "whole"), str(tmp_path / "resumed")
    jobs = [(whole, None, saving), (resumed, f"{whole}/checkpoint-20", saving)]
    for job in jobs:
        assert forked.finish(forked.start(2, run, *job)) == [0, 0]
    reports = [json.loads(Path(folder, f"rank-{rank}.json").read_text()) for folder, *_ in jobs for rank in (0, 1)]
    assert all(report == reports[0] for report in reports)
    assert list(map(tuple, reports[0]["freezings"])) == freezings(finished)


def test_checkpoints_of_another_kind_of_run_are_refused(tmp_path):
    short = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    plan = AutoFreezing((1,), 1, 3, 1, 1)
    for name, freezing in (("auto", plan), ("fixed", None)):
        auto_trainer(tmp_path / name, freezing, **short).train()
    assert not (tmp_path / "fixed" / "checkpoint-2" / FILE).exists()
    with pytest.raises(CheckpointRefused, match="without schedule=auto"):
        auto_trainer(tmp_path / "a", plan, **short).train(str(tmp_path / "fixed" / "checkpoint-2"))
    with pytest.raises(CheckpointRefused, match="freezing schedule=auto"):
        auto_trainer(tmp_path / "b", None, **short).train(str(tmp_path / "auto" / "checkpoint-2"))


def test_settings_become_limits(tiny_sizes):
    config = LayerLockViTConfig.from_preset("tiny", **tiny_sizes)
    arguments = StageArguments(schedule="auto", freeze_start=0.25, freeze_interval=20, latent_patch_fraction=0.5)
    assert arguments.build(config, max_steps=400) == mae(6)
    plan = arguments.freezing(config, 400, switch_warmup_steps=10)
    assert (plan.counts, plan.first_step, plan.min_interval, plan.every) == ((1, 2, 3, 4), 100, 20, 20)
    assert plan.last_step == 350  # a head takes 50 steps to learn
    stages = plan.earliest(mae(6))
    assert [(stage.start, stage.num_frozen) for stage in stages[1:]] == [(100, 1), (120, 2), (140, 3), (160, 4)]
    assert all(stage.objectives[0].patch_fraction == 0.5 for stage in stages[1:])
    assert StageArguments().freezing(config, 400, 10) is None
    soon = StageArguments(schedule="auto", freeze_interval=30).freezing(config, 400, 10)
    # Three observations make two intervals, and between observations nothing is decided
    assert [stage.start for stage in soon.earliest(mae(6))] == [0, 60, 100, 140, 180]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"schedule": "automatic"}, "schedule must be fixed or auto, got 'automatic'"),
        ({"schedule": "auto", "target_layers": [1]}, "schedule=auto does not read it"),
        ({"settled_drift": 0.1}, "settled_drift is set but schedule is not auto"),
        ({"schedule": "auto", "settled_drift": 0.0}, "settled_drift must be above 0"),
        ({"schedule": "auto", "freeze_start": 390}, "freeze_start must be at most 350"),
        ({"schedule": "auto", "max_frozen": 7}, "max_frozen must be at most 6"),
    ],
)
def test_settings_that_cannot_work(tiny_sizes, changes, message):
    config = LayerLockViTConfig.from_preset("tiny", **tiny_sizes)
    arguments = StageArguments(**changes)
    with pytest.raises(ValueError, match=message):
        arguments.build(config, max_steps=400)
        arguments.freezing(config, 400, switch_warmup_steps=10)


def test_too_short_a_run(tiny_sizes):
    config = LayerLockViTConfig.from_preset("tiny", **tiny_sizes)
    with pytest.raises(ValueError, match="max_steps must be above 50 with schedule=auto.*got 20"):
        StageArguments(schedule="auto").freezing(config, 20, switch_warmup_steps=0)


def test_the_stages_that_there_may_be_are_rehearsed(tmp_path):
    trainer = auto_trainer(tmp_path, switch_warmup_steps=10)
    rows = rehearse(trainer.model, trainer.args, mae(6), trainer.train_dataset, trainer.data_collator, freezing=PLAN)
    assert [(row["start"], row["num_frozen"]) for row in rows] == [(0, 0), (9, 1), (12, 2), (15, 3)]


def test_too_few_clips_to_compare(tmp_path):
    with pytest.raises(ValueError, match="global_batch_size must be at least 4 with schedule=auto"):
        auto_trainer(tmp_path, per_device_train_batch_size=2)


def test_a_learning_rate_that_depends_on_stages_to_come(tmp_path):
    with pytest.raises(ValueError, match="schedule_restarts must be left out"):
        auto_trainer(tmp_path, schedule_restarts=True)
