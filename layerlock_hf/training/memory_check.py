"""Whether the steps of a run fit into memory, checked before it starts and can bring the machine down."""

import math

import torch
from accelerate import Accelerator

from ..models.configuration_layerlock import LayerLockViTConfig
from ..models.objectives import Stage
from ..utils.memory import free_memory
from .arguments import LayerLockTrainingArguments
from .memory_plan import FULL, activation_bytes, empty_model, gathered_bytes, state_bytes
from .run_file import describe


NEGLIGIBLE = 0.25  # of what is free: a generous estimate below it needs no count, which takes seconds
PREFETCHED = 2  # batches of a data worker, by default


class DoesNotFit(ValueError):
    """The run needs more memory than there is; the message is for the user."""


def check_fits(
    config: LayerLockViTConfig,
    stages: list[Stage],
    masks: list[tuple[torch.Tensor, torch.Tensor]],
    args: LayerLockTrainingArguments,
    accelerator: Accelerator,
    has_moments: bool,
):
    """Raise a `ValueError` if batches certainly do not fit: the count leaves out the temporary memory of operations.

    Checks the first stage, the one after it and the last, where targets change, but not local stages whose blocks
    settle one by one, for which the count would be too high.

    Args:
        masks: of one clip: a pair of `context_ids`, `target_ids` for every type of mask.
        has_moments: whether those of the optimizer are in memory already, as after a resume.
    """
    clips = args.per_device_train_batch_size
    values = config.num_frames * config.num_channels * config.image_size**2  # of a clip
    _check_workers(clips * values, args)
    free = free_memory(args.device)
    if free is None or clips * (_generous_bytes(config, masks) + FULL * values) < NEGLIGIBLE * free:
        return
    for stage in dict.fromkeys((stages[0], stages[min(1, len(stages) - 1)], stages[-1])):
        if stage.local and args.settle_blocks:
            continue
        model = empty_model(config)
        model.freeze_for(stage)
        state = state_bytes(model, args.world_size if accelerator.is_fsdp2 else 1)
        per_clip, fixed = activation_bytes(config, stage, masks, args.bf16, args.gradient_checkpointing)
        per_clip += (1 + FULL) * values  # as bytes and as floats
        fixed += state["gradients"] + (0 if has_moments else state["moments"])
        fixed += gathered_bytes(model, args.bf16) if accelerator.is_fsdp2 else 0
        if fixed + clips * per_clip <= free:
            continue
        most = max(0, math.floor((free - fixed) / per_clip))
        advice = (
            f"at most {most} clips fit. Use fewer, and the same global_batch_size will accumulate more batches"
            if most
            else "not even one clip fits. Set gradient_checkpointing, or shard the model (fsdp)"
        )
        raise ValueError(
            f"per_device_train_batch_size={clips} needs more than {(fixed + clips * per_clip) / 2**30:.1f} GiB "
            f"besides the weights in the stage that {describe(stage)}, but {free / 2**30:.1f} GiB are free: {advice}"
        )


def _check_workers(batch_bytes: int, args: LayerLockTrainingArguments):
    """The batches that are ready lie in the memory of the machine, as bytes."""
    num_batches = 1 + args.dataloader_num_workers * (args.dataloader_prefetch_factor or PREFETCHED)
    free = free_memory(torch.device("cpu"))
    if free is not None and num_batches * batch_bytes > free:
        raise ValueError(
            f"dataloader_num_workers={args.dataloader_num_workers} keeps {num_batches} batches of "
            f"{batch_bytes / 2**30:.1f} GiB ready, but only {free / 2**30:.1f} GiB of the machine's memory are free: "
            "lower it, or per_device_train_batch_size"
        )


def _generous_bytes(config: LayerLockViTConfig, masks: list[tuple[torch.Tensor, torch.Tensor]]) -> int:
    """More than a clip keeps: every layer has all tokens, and keeps some 20 tensors of its width, 6 of its MLP's."""
    num_tokens = sum(seen.shape[1] + hidden.shape[1] for seen, hidden in masks) + config.num_tokens
    num_layers = config.num_hidden_layers + config.num_decoder_layers
    return FULL * num_tokens * num_layers * (20 * config.hidden_size + 6 * config.intermediate_size)
