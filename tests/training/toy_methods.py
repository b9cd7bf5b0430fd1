"""A ten-step run of every method on a model of six layers of width 32, for the tests of the trainer."""

from dataclasses import dataclass, field

import torch
from transformers import set_seed

from layerlock_hf.data import MultiBlockMasks, PretrainingCollator, RandomMask, TubeMask
from layerlock_hf.models import LayerLockViTConfig, LayerLockViTForPretraining, LayerLockViTModel, Stage
from layerlock_hf.training import (
    FreezeSchedule,
    LayerLockTrainer,
    LayerLockTrainingArguments,
    blockwise,
    blockwise_in_sequence,
    locked,
    mae,
    mae_and_latents,
    teacher_latents,
)


TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 4,
    "num_frames": 4,
    "num_decoder_layers": 2,
}
PREDICTOR = {
    "decoder": "predictor",
    "predictor_hidden_size": 24,
    "predictor_num_attention_heads": 2,
    "position_embedding": "sincos",
    "use_final_norm": True,
}
VJEPA = {**PREDICTOR, "num_mask_tokens": 2}
BLOCKS = {**PREDICTOR, "predictor_depths": [2, 4, 6]}
SCHEDULE = FreezeSchedule(3, 2, 2, num_freezes=3)
RANDOM, TUBES = RandomMask(0.75), TubeMask(0.75)
BLOCK_MASKS = MultiBlockMasks(((2, 0.15), (1, 0.5)), group_size=8)
# The name of Transformers' older versions warns in later ones
CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in LayerLockTrainingArguments.__dataclass_fields__
)
# Of a run of ten steps
SETTINGS = {
    "max_steps": 10,
    "per_device_train_batch_size": 4,
    "save_strategy": "no",
    "logging_steps": 1,
    "report_to": [],
    "use_cpu": True,
    "learning_rate": 1e-2,
    "weight_decay": 0.5,
    "switch_warmup_steps": 1,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}
MOVING = {"teacher_momentum": 0.9, "teacher_momentum_end": 1.0}


@dataclass
class Method:
    stages: list[Stage]
    masks: object = RANDOM
    sizes: dict = field(default_factory=dict)
    settings: dict = field(default_factory=dict)
    has_given_teacher: bool = False


METHODS = {
    "mae": Method(mae(6)),
    "layerlock": Method(locked(mae(6), SCHEDULE, patch_fraction=0.5)),
    "freezing_only": Method(locked(mae(6), SCHEDULE, predict_latents=False)),
    "keep_targets": Method(locked(mae(6), SCHEDULE, keep_targets=True), sizes={"latent_head_depths": [2, 4, 6]}),
    "mae_and_latents": Method(
        mae_and_latents(6, [2, 6], weight=0.5, ramp_steps=4), sizes={"latent_head_depths": [2, 6]}
    ),
    "vjepa": Method(teacher_latents(6, 6), BLOCK_MASKS, VJEPA, MOVING),
    "vjepa_locked": Method(locked(teacher_latents(6, 1), SCHEDULE), BLOCK_MASKS, VJEPA, MOVING),
    "salt": Method(
        teacher_latents(6, 3),
        BLOCK_MASKS,
        {**VJEPA, "teacher_hidden_size": 48},
        {"teacher_momentum": 1.0},
        has_given_teacher=True,
    ),
    "blockwise": Method(blockwise([2, 4, 6]), TUBES, BLOCKS),
    "blockwise_overlap": Method(blockwise([2, 4, 6], overlap=1), TUBES, BLOCKS),
    "blockwise_in_sequence": Method(blockwise_in_sequence([2, 4, 6], 3), TUBES, BLOCKS, {"schedule_restarts": True}),
}


class MaskedClips(torch.utils.data.Dataset):
    """Clips with their masks, for runs without a collator."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return {
            "pixel_values_videos": torch.randint(0, 256, (4, 3, 16, 16), generator=generator, dtype=torch.uint8),
            "context_ids": torch.randperm(32, generator=generator)[:8],
            "target_ids": torch.randperm(32, generator=generator),
        }


class Clips(torch.utils.data.Dataset):
    """Clips that are functions of their position."""

    def __init__(self):
        self.read = []

    def __len__(self):
        return 80

    def __getitem__(self, index):
        self.read.append(index)
        generator = torch.Generator().manual_seed(index)
        return {
            "pixel_values_videos": torch.randint(0, 256, (4, 3, 16, 16), generator=generator, dtype=torch.uint8),
            "position": index,
            "is_padded": False,
        }


def make_config(method: Method, **sizes) -> LayerLockViTConfig:
    return LayerLockViTConfig.from_preset("tiny", **{**TINY, **method.sizes, **sizes})


def make_given_teacher() -> LayerLockViTModel:
    """Three layers of width 48."""
    set_seed(1)
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "use_final_norm": True}
    return LayerLockViTModel(LayerLockViTConfig.from_preset("tiny", **{**TINY, **sizes})).eval().requires_grad_(False)


def make_vjepa(**sizes):
    return LayerLockViTForPretraining(LayerLockViTConfig.from_preset("tiny", **{**TINY, **VJEPA, **sizes}))


def trainer_parts(name: str, output_dir, dataset=None, **settings) -> dict:
    """What the trainer of a method is made of."""
    method = METHODS[name]
    teacher = make_given_teacher() if method.has_given_teacher else None
    set_seed(0)
    config = make_config(method)
    schedules = {"weight_decay_end": 0.1, "max_grad_norm": 1.0, "diagnostics_steps": 3}
    args = LayerLockTrainingArguments(
        output_dir=str(output_dir), **{**SETTINGS, **schedules, **method.settings, **settings}
    )
    return {
        "model": LayerLockViTForPretraining(config),
        "args": args,
        "stages": method.stages,
        "train_dataset": dataset or Clips(),
        "data_collator": PretrainingCollator(config.grid_size, method.masks, args.seed),
        "teacher": teacher,
    }


def make_trainer(name: str, output_dir, dataset=None, **settings) -> LayerLockTrainer:
    return LayerLockTrainer(**trainer_parts(name, output_dir, dataset, **settings))


def weights(module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def step_logs(trainer) -> list[dict]:
    return [row for row in trainer.state.log_history if "grad_norm" in row]
