from ..models.objectives import Latents, Objective, Pixels, Stage
from .arguments import LayerLockTrainingArguments
from .flops import executed_flops, forward_flops, step_flops
from .freezing import AutoFreezing
from .methods import METHODS, StageArguments
from .stages import (
    FreezeSchedule,
    blockwise,
    blockwise_in_sequence,
    check_stages,
    locked,
    mae,
    mae_and_latents,
    stage_at,
    teacher_latents,
)
from .teachers import as_teacher, load_teacher
from .trainer import LayerLockTrainer


__all__ = [
    "AutoFreezing",
    "METHODS",
    "as_teacher",
    "blockwise",
    "blockwise_in_sequence",
    "load_teacher",
    "mae_and_latents",
    "teacher_latents",
    "FreezeSchedule",
    "Latents",
    "LayerLockTrainer",
    "LayerLockTrainingArguments",
    "Objective",
    "Pixels",
    "Stage",
    "StageArguments",
    "check_stages",
    "executed_flops",
    "forward_flops",
    "locked",
    "mae",
    "stage_at",
    "step_flops",
]
