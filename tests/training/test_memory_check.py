"""Batches that cannot fit into memory, before anything is read or computed."""

import pytest
from accelerate import Accelerator
from toy_methods import MaskedClips
from transformers import set_seed

from layerlock_hf.data import PretrainingCollator
from layerlock_hf.data.masks import RandomMask
from layerlock_hf.models import LayerLockViTForPretraining
from layerlock_hf.training import (
    FreezeSchedule,
    LayerLockTrainer,
    LayerLockTrainingArguments,
    locked,
    mae,
    memory_check,
)
from layerlock_hf.training.memory_check import DoesNotFit, check_fits
from layerlock_hf.training.memory_plan import activation_bytes, empty_model, held_bytes, state_bytes


STAGES = locked(mae(6), FreezeSchedule(2, 2, 2, num_freezes=2))
CLIPS = 64


@pytest.fixture
def make(tmp_path):
    def make(**settings) -> LayerLockTrainingArguments:
        settings = {"per_device_train_batch_size": CLIPS, "switch_warmup_steps": 1, "report_to": "none"} | settings
        return LayerLockTrainingArguments(output_dir=str(tmp_path / "out"), max_steps=6, use_cpu=True, **settings)

    return make


@pytest.fixture
def masks(tiny_config):
    return RandomMask(0.75)(tiny_config.grid_size, [0], 0)


def needed(config, masks) -> int:
    """Of a step of the first stage, beside the weights."""
    values = config.num_frames * config.num_channels * config.image_size**2
    state = state_bytes(empty_model(config))
    held = held_bytes(config, STAGES[0], masks, False, CLIPS)
    return held + 5 * CLIPS * values - state["weights that learn"] - state["frozen"]


@pytest.mark.parametrize("share, fits", [(1.01, True), (0.99, False)])
def test_at_the_limit(tiny_config, masks, make, monkeypatch, share, fits):
    free = int(share * needed(tiny_config, masks))
    monkeypatch.setattr(memory_check, "free_memory", lambda device: free)
    arguments = (tiny_config, STAGES, masks, make(), Accelerator(cpu=True), False)
    if fits:
        check_fits(*arguments)
        return
    message = rf"per_device_train_batch_size={CLIPS} needs more than .* at most 6\d clips fit"
    with pytest.raises(ValueError, match=message):
        check_fits(*arguments)
    # Moments that are there take nothing more
    check_fits(*arguments[:-1], True)


def test_not_even_one(tiny_config, masks, make, monkeypatch):
    monkeypatch.setattr(memory_check, "free_memory", lambda device: 4 * 10**5)
    with pytest.raises(ValueError, match="not even one clip fits. Set gradient_checkpointing"):
        check_fits(tiny_config, STAGES, masks, make(), Accelerator(cpu=True), False)


def test_the_generous_estimate_is_one(tiny_config, masks):
    for stage in STAGES:
        assert memory_check._generous_bytes(tiny_config, masks) > activation_bytes(tiny_config, stage, masks, False)[0]


def test_batches_that_are_held_ready(tiny_config, masks, make, monkeypatch):
    monkeypatch.setattr(memory_check, "free_memory", lambda device: 10**6)
    args = make(dataloader_num_workers=8, dataloader_prefetch_factor=4)
    with pytest.raises(ValueError, match="dataloader_num_workers=8 keeps 33 batches of .* ready"):
        check_fits(tiny_config, STAGES, masks, args, Accelerator(cpu=True), False)


def test_a_run_is_refused_before_its_first_batch(tiny_config, make, monkeypatch):
    class Unread(MaskedClips):
        def __getitem__(self, index):
            raise AssertionError("read")

    set_seed(0)
    collator = PretrainingCollator(tiny_config.grid_size, RandomMask(0.75))
    trainer = LayerLockTrainer(LayerLockViTForPretraining(tiny_config), make(), STAGES, Unread(), collator)
    monkeypatch.setattr(memory_check, "free_memory", lambda device: 10**6)
    with pytest.raises(DoesNotFit, match="but 0.0 GiB are free"):
        trainer.train()
