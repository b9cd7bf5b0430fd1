"""What a checkpoint records of its run, and what is said where another run would resume from it."""

from dataclasses import replace

import pytest

from layerlock_hf.models import LayerLockViTConfig
from layerlock_hf.training import mae
from layerlock_hf.training.freezing import AutoFreezing
from layerlock_hf.training.run_file import CheckpointRefused, check_run_file, write_run_file
from layerlock_hf.training.settling import SettlingRule


PLAN = AutoFreezing((1, 2), 6, 40, 3, 2)


def refusal(folder, then: dict, now: dict) -> str:
    """Why a run of the one identity does not resume from a checkpoint of the other."""
    write_run_file(folder, mae(6), [], then, "run", 4)
    with pytest.raises(CheckpointRefused) as caught:
        check_run_file(str(folder), mae(6), LayerLockViTConfig.from_preset("tiny"), now)
    return str(caught.value).removeprefix(f"{folder} was written with ").partition(": resume with the settings")[0]


def test_only_what_differs_of_a_plan_is_told(tmp_path):
    now = replace(PLAN, min_interval=5, rule=SettlingRule(max_drift=0.2))
    assert refusal(tmp_path, {"freezing": PLAN.identity}, {"freezing": now.identity}) == (
        "freezing at least 3 steps apart; settled_drift 0.02, but it is now at least 5 steps apart; settled_drift 0.2"
    )
    now = replace(PLAN, locking={"keep_targets": True})
    assert refusal(tmp_path, {"freezing": PLAN.identity}, {"freezing": now.identity}) == (
        "freezing nothing more, but it is now keep_targets True"
    )


def test_other_settings_are_told_whole(tmp_path):
    assert refusal(tmp_path, {"seed": 42}, {"seed": 1}) == "seed 42, but it is now 1"
    told = refusal(tmp_path, {"freezing": PLAN.identity}, {"freezing": None})
    assert told == f"freezing {PLAN.identity}, but it is now None"
