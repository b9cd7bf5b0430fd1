"""What a run will cost: one step of each of its stages."""

import copy
from dataclasses import replace

from torch import nn
from transformers.utils import logging

from ..models.modeling_layerlock_pretraining import LayerLockViTForPretraining
from ..models.objectives import Stage
from .arguments import LayerLockTrainingArguments
from .callbacks import StageCallback, StopwatchCallback
from .freezing import AutoFreezing, possible_stages
from .run_file import target_label
from .schedules import check_schedule
from .trainer import LayerLockTrainer


logger = logging.get_logger(__name__)


def rehearse(
    model: LayerLockViTForPretraining,
    args: LayerLockTrainingArguments,
    stages: list[Stage],
    train_dataset,
    data_collator,
    teacher: nn.Module | None = None,
    batch_transform=None,
    freezing: AutoFreezing | None = None,
) -> list[dict]:
    """One optimizer step of every stage, measured: seconds, trainable parameters, peak memory in GiB, and the hours of
    the whole stage at this pace.

    It is a run of its own, through the same loop (precision, checkpointing, wrappers), of one step per stage and one
    batch per step, that leaves no files. The arguments are those of `LayerLockTrainer`; the model is spent by it.

    Raises:
        ValueError: as of `LayerLockTrainer`.
    """
    doubts = check_schedule(stages, args)
    stages = possible_stages(stages, freezing)
    # How many batches each stage of the run itself has
    ends = [*(stage.start for stage in stages[1:]), args.max_steps]
    lengths = [max(0, min(end, ends[-1]) - stage.start) for stage, end in zip(stages, ends, strict=True)]
    num_batches = [length * args.gradient_accumulation_steps for length in lengths]
    args = copy.copy(args)
    args.max_steps, args.gradient_accumulation_steps = len(stages), 1
    args.diagnostics_steps = args.switch_warmup_steps = 0
    one_step_each = [replace(stage, start=number) for number, stage in enumerate(stages)]
    trainer = LayerLockTrainer(
        model, args, one_step_each, train_dataset, data_collator, teacher=teacher, batch_transform=batch_transform
    )
    for callback in list(trainer.callback_handler.callbacks):
        if not isinstance(callback, StageCallback):
            trainer.remove_callback(callback)
    stopwatch = StopwatchCallback()
    trainer.add_callback(stopwatch)
    trainer.train()
    for doubt in doubts:
        logger.warning(doubt)
    return [
        {
            "start": stage.start,
            "num_frozen": stage.num_frozen,
            "target": target_label(stage),
            **row,
            "hours": count * row["seconds"] / 3600,
        }
        for stage, row, count in zip(stages, stopwatch.rows, num_batches, strict=True)
    ]
