"""Shared by the tests of analyses: encoders to look at, and runs in small as they are planned."""

import csv

import pytest
import transformers

from layerlock_hf import LayerLockViTConfig, LayerLockViTModel
from layerlock_hf.data.procedural import write_procedural_dataset
from layerlock_hf.pretraining.planning import planned_run


CLASSES = ("left", "right", "up")


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """A folder with 12 videos, 4 of each class, a list of them, and one without labels."""
    folder = tmp_path_factory.mktemp("videos")
    write_procedural_dataset(folder, 12, num_frames=8, image_size=32, progress=False)
    rows = [[f"videos/{number:06d}.mp4", CLASSES[number % 3]] for number in range(12)]
    for name, columns in (("labelled.csv", ("path", "label")), ("plain.csv", ("path",))):
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows([columns, *(row[: len(columns)] for row in rows)])
    return folder


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory, tiny_sizes):
    """A run of ours that kept two stages, and a VideoMAE of other sizes."""
    folder = tmp_path_factory.mktemp("checkpoints")
    config = LayerLockViTConfig.from_preset("tiny", **tiny_sizes | {"image_size": 32, "patch_size": 16})
    for name in ("run", "run/stages/stage-10", "run/stages/stage-2"):
        LayerLockViTModel(config).save_pretrained(folder / name)
    config = transformers.VideoMAEConfig(
        num_hidden_layers=2,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=16,
        num_frames=4,
    )
    transformers.VideoMAEModel(config).save_pretrained(folder / "videomae")
    return folder


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
