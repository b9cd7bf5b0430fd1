"""FSDP2 through accelerate: what a run refuses, how a moving teacher is sharded, what checkpoints need."""

import warnings
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import fsdp2_prepare_model, parse_flag_from_env, save_fsdp_optimizer
from accelerate.utils.constants import FSDP_MODEL_NAME
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers.trainer import OPTIMIZER_NAME, OPTIMIZER_NAME_BIN
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from .pickle_check import check_pickles
from .run_file import CheckpointRefused


SHARDED_MODEL, SHARDED_OPTIMIZER = f"{FSDP_MODEL_NAME}_0", "optimizer_0"


def set_up_sharding(accelerator: Accelerator, is_asked_for: bool):
    """Raise a `ValueError` unless FSDP2 runs if FSDP was asked for, by the arguments or by accelerate's configuration,
    and in a way that freezing survives. Sets its precision."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        # accelerate makes of FSDP what it can, which is DDP on the CPU, without a word
        if is_asked_for or parse_flag_from_env("ACCELERATE_USE_FSDP"):
            raise ValueError(
                "fsdp is set, but accelerate would not use it with this launch: start several processes, on several "
                "GPUs"
            )
        return
    if not accelerator.is_fsdp2:
        raise ValueError("fsdp_version must be 2, got 1: FSDP1 flattens frozen and trained parameters together")
    if plugin.activation_checkpointing:
        raise ValueError(
            "activation_checkpointing of fsdp_config must be left out, as it renames parameters: set it as a "
            "training argument"
        )
    # Of the predictions beside the loss, which nothing writes into
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    if plugin.mixed_precision_policy is not None:
        # accelerate's policy would round the clips, which are targets too, the positions, the gradients' sums and the
        # loss. Gathering in low precision is enough: the trainer opens the autocast that DDP runs in
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            plugin.mixed_precision_policy.param_dtype, torch.float32, cast_forward_inputs=False
        )


def saves_shards(accelerator: Accelerator) -> bool:
    """Whether checkpoints hold a part per process, for which the Trainer writes neither configuration nor run file."""
    return accelerator.is_fsdp2 and "SHARDED" in str(accelerator.state.fsdp_plugin.state_dict_type)


def saves_whole(accelerator: Accelerator) -> bool:
    """Whether sharded weights are gathered for a checkpoint (FULL_STATE_DICT)."""
    return accelerator.is_fsdp2 and not saves_shards(accelerator)


def check_weights(checkpoint: str, accelerator: Accelerator):
    """Raise `CheckpointRefused` if weights and moments were not saved the way they would be loaded, or could run
    code."""
    folder, names, moments = Path(checkpoint), [SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME], OPTIMIZER_NAME
    if saves_shards(accelerator):
        names, moments = [SHARDED_MODEL], SHARDED_OPTIMIZER
    elif saves_whole(accelerator):
        moments = OPTIMIZER_NAME_BIN
    if not (folder / moments).exists() or not any((folder / name).exists() for name in names):
        beside = sorted(path for pattern in ("*model*", "optimizer*") for path in folder.glob(pattern))
        found = [path.name for path in beside if path.suffix != ".py"]  # not the code that is saved with a model
        raise CheckpointRefused(
            f"{checkpoint} holds weights and moments as {', '.join(found) or 'nothing'}, but this run would load "
            f"{names[0]} and {moments}: resume it with the wrapper (DDP or FSDP) and the state_dict_type that wrote "
            "it"
        )
    for part in (SHARDED_MODEL, SHARDED_OPTIMIZER):
        if (folder / part).is_dir():
            check_pickles(folder / part)


def save_whole_optimizer(optimizer, model: nn.Module, accelerator: Accelerator, folder: str):
    """The moments of sharded weights, gathered, as accelerate loads them. All processes must call it."""
    save_fsdp_optimizer(accelerator.state.fsdp_plugin, accelerator, optimizer, model, folder)


def let_methods_gather(model: nn.Module):
    """Let `target_means` and `tap` gather what is sharded, as `forward` does."""
    for name in ("target_means", "tap"):
        register_fsdp_forward_method(model, name)


def shard_teacher(teacher: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Shard a copy of the encoder as accelerate shards the encoder, so that each part has its counterpart."""
    teacher = fsdp2_prepare_model(accelerator, teacher)
    # The root stays gathered until its backward, and a teacher has none: what is updated would not be what teaches
    teacher.set_reshard_after_forward(True)
    register_fsdp_forward_method(teacher, "tap")
    return teacher


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part that this process holds of a parameter, which may be all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """All weights of a module that may be sharded, for the first process; empty for the others. All must call it."""
    return get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def load_whole_state(module: nn.Module, state: dict[str, torch.Tensor]):
    """The inverse of `whole_state`, of weights that every process has read."""
    set_model_state_dict(module, state, options=StateDictOptions(full_state_dict=True))


def load_whole_weights(model: nn.Module, folder: str | Path):
    """The weights that `save_pretrained` has written, in however many files, into a model that may be sharded."""
    files = sorted(Path(folder).glob("model*.safetensors"))
    load_whole_state(model, {name: tensor for file in files for name, tensor in load_file(file).items()})
