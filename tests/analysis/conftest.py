"""Runs in small, as they are planned."""

import pytest

from layerlock_hf.pretraining.planning import planned_run


@pytest.fixture(scope="session")
def plan_run(tiny_sizes):
    """Plan a run of 100 steps on the model of `tiny_sizes`, of which the encoder sees a quarter of the tokens."""

    def plan(**settings):
        defaults = {"preset": "tiny", **tiny_sizes, "max_steps": 100, "global_batch_size": 8}
        defaults |= {} if "mask" in settings else {"mask_ratio": 0.75}
        return planned_run(defaults | settings, "tiny")

    return plan


@pytest.fixture(scope="session")
def schedule():
    """Settings that freeze all six layers, one by one."""
    return {"freeze_start": 40, "freeze_interval": 10, "layers_per_freeze": 1, "num_freezes": 6}


@pytest.fixture(scope="session")
def two_freezes():
    """Settings that freeze two layers, and two more."""
    return {"freeze_start": 40, "freeze_interval": 10, "layers_per_freeze": 2, "num_freezes": 2}
