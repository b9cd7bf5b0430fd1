import pytest
from toy_methods import CHECKPOINTING
from toy_trainer import arguments

from layerlock_hf.training import LayerLockTrainingArguments


def test_jit_checkpoints_are_refused(tmp_path):
    with pytest.raises(ValueError, match="SIGTERM always saves"):
        LayerLockTrainingArguments(output_dir=str(tmp_path), max_steps=1, use_cpu=True, enable_jit_checkpoint=True)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"global_batch_size": 6}, "global_batch_size must be a multiple of per_device_train_batch_size=4 .* got 6"),
        (
            {"global_batch_size": 8, "gradient_accumulation_steps": 3},
            "gradient_accumulation_steps must be 2 for global_batch_size=8, got 3",
        ),
        ({"max_steps": -1}, "max_steps must be set"),
        ({"max_steps": 0}, "max_steps must be set"),
        ({"switch_warmup_steps": -1}, "switch_warmup_steps"),
        ({"ddp_find_unused_parameters": True}, "ddp_find_unused_parameters"),
        ({f"{CHECKPOINTING}_kwargs": {"use_reentrant": True}}, "use_reentrant must be False"),
    ],
)
def test_user_errors(tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **kwargs)


def test_defaults_of_the_paper(tmp_path):
    args = LayerLockTrainingArguments(output_dir=str(tmp_path), max_steps=1, use_cpu=True)
    assert (args.adam_beta1, args.adam_beta2, args.weight_decay) == (0.9, 0.95, 0.05)
    assert args.switch_warmup_steps == 1000
    assert not args.ddp_find_unused_parameters


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor has no effect here: nothing is classified"),
        ({"data_seed": 3}, "data_seed has no effect here: seed also draws the clips"),
        ({"eval_steps": 3}, "eval_steps has no effect here: only readout_data evaluates anything"),
        ({"fp16": True}, "fp16 needs a GPU"),
        (
            {"report_to": ["tensorboard", "nope"]},
            "report_to must be among none, .* got nope, which is not installed: install it",
        ),
        ({"dataloader_prefetch_factor": 0}, "dataloader_prefetch_factor must be at least 1, got 0"),
        ({"output_dir": None}, "output_dir must be set"),
        (
            {"push_to_hub": True},
            "push_to_hub is set, and HF_HUB_OFFLINE forbids asking the Hub",
        ),
    ],
)
def test_settings_without_effect_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        LayerLockTrainingArguments(**{"output_dir": str(tmp_path), "max_steps": 1, "use_cpu": True, **settings})
