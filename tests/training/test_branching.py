"""Runs that go on from a checkpoint of another run, with other stages from there on."""

import dataclasses
import json
import shutil

import pytest
import torch
from toy_trainer import make_trainer, weights

from layerlock_hf.models import LayerLockViTConfig
from layerlock_hf.training import check_stages, mae, teacher_latents
from layerlock_hf.training.run_file import CheckpointRefused, check_run_file


BORDER = 4
BASE = mae(6)


def freezing(step: int, num_frozen: int):
    """The stages that freeze layers of the baseline at a step."""
    return check_stages([*BASE, dataclasses.replace(BASE[0], start=step, num_frozen=num_frozen)])


@pytest.fixture(scope="module")
def baseline(tmp_path_factory, tiny_sizes):
    """A run of ten steps that is never frozen: its configuration, its last weights and its checkpoint of step 4."""
    folder, config = tmp_path_factory.mktemp("baseline"), LayerLockViTConfig.from_preset("tiny", **tiny_sizes)
    trainer = make_trainer(config, folder, BASE, save_strategy="steps", save_steps=BORDER)
    trainer.train()
    return config, weights(trainer.model), folder / f"checkpoint-{BORDER}"


def go_on(baseline, folder, stages, **settings):
    config, _, checkpoint = baseline
    trainer = make_trainer(config, folder, stages, resume_from_checkpoint=str(checkpoint), **settings)
    trainer.train(trainer.args.resume_from_checkpoint)
    return weights(trainer.model)


def differing(some, others):
    return [name for name in some if not torch.equal(some[name], others[name])]


@pytest.mark.parametrize("num_frozen", [0, 3])
def test_a_branch_is_the_run_of_its_stages(baseline, tmp_path, num_frozen):
    config, last, _ = baseline
    stages = freezing(BORDER, num_frozen)
    branch = go_on(baseline, tmp_path / "branch", stages, branch=True)
    whole = make_trainer(config, tmp_path / "whole", stages)
    whole.train()
    assert differing(branch, weights(whole.model)) == []
    assert (differing(branch, last) == []) == (num_frozen == 0)


def test_a_branch_without_its_switch_is_the_baseline(baseline, tmp_path):
    assert differing(go_on(baseline, tmp_path, BASE, branch=True), baseline[1]) == []


@pytest.mark.parametrize(
    ("stages", "settings", "message"),
    [
        (freezing(BORDER, 3), {}, "other stages: stage 1 was 'none', but is now 'from step 4 on freezes 3 layers"),
        (freezing(BORDER - 1, 3), {"branch": True}, "other stages: stage 1 was 'none', but is now 'from step 3"),
        (mae(6, loss="l1"), {"branch": True}, "other stages: stage 0"),
        (freezing(BORDER, 3), {"branch": True, "seed": 1}, "was written with seed 42, but it is now 1"),
        (
            [*BASE, dataclasses.replace(teacher_latents(6, 3)[0], start=BORDER)],
            {"branch": True},
            "holds no teacher, which a stage of this branch predicts",
        ),
    ],
)
def test_nothing_but_later_stages_may_differ(baseline, tmp_path, stages, settings, message):
    with pytest.raises(CheckpointRefused, match=message):
        go_on(baseline, tmp_path, stages, **settings)


def test_a_checkpoint_that_does_not_tell_its_step_is_not_branched_from(baseline, tmp_path):
    config, _, checkpoint = baseline
    old = shutil.copytree(checkpoint, tmp_path / "old")
    record = json.loads((old / "layerlock.json").read_text())
    check_run_file(old, freezing(BORDER, 3), config, record["identity"], may_branch=True)
    del record["step"]
    (old / "layerlock.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointRefused, match="other stages"):
        check_run_file(old, freezing(BORDER, 3), config, record["identity"], may_branch=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "branch is set but resume_from_checkpoint is not"),
        ({"resume_from_checkpoint": "there", "schedule_restarts": True}, "schedule_restarts must be left out"),
    ],
)
def test_branches_that_cannot_be(tiny_config, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tiny_config, tmp_path, BASE, branch=True, **settings)
