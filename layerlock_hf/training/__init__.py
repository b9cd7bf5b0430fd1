from ..models.objectives import Latents, Objective, Pixels, Stage
from .arguments import LayerLockTrainingArguments
from .flops import step_flops
from .recipes import StageArguments, load_recipe
from .stages import FreezeSchedule, check_stages, locked, mae, stage_at
from .trainer import LayerLockTrainer


__all__ = [
    "FreezeSchedule",
    "Latents",
    "LayerLockTrainer",
    "LayerLockTrainingArguments",
    "Objective",
    "Pixels",
    "Stage",
    "StageArguments",
    "check_stages",
    "load_recipe",
    "locked",
    "mae",
    "stage_at",
    "step_flops",
]
