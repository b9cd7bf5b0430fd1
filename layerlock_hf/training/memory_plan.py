"""What a device must hold in a training step: counted without one, and without allocating anything.

Weights, gradients and AdamW's moments are exact counts over the real model; activations are what autograd keeps of its
forward pass on fake tensors. Not counted: what operations need while they run (targets included), fragments, CUDA and
NCCL. So a step needs more than what is counted here.
"""

import contextlib
import math
import weakref
from collections import Counter
from functools import partial

import torch
import torch.utils.checkpoint
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..models.configuration_layerlock import LayerLockViTConfig
from ..models.modeling_layerlock import LayerLockViTLayer
from ..models.modeling_layerlock_pretraining import LayerLockViTForPretraining
from ..models.objectives import Stage


FULL, HALF = 4, 2  # bytes of a number


def empty_model(config: LayerLockViTConfig) -> LayerLockViTForPretraining:
    """The real model, without memory."""
    with torch.device("meta"):
        return LayerLockViTForPretraining(config)


def state_bytes(model: nn.Module, num_ranks: int = 1) -> dict[str, int]:
    """What a rank holds between steps, of a model that `num_ranks` share (FSDP2)."""
    numbers = {True: 0, False: 0}
    for parameter in model.parameters():
        # FSDP2 cuts the first dimension and pads the last piece
        first, *others = parameter.shape
        numbers[parameter.requires_grad] += math.ceil(first / num_ranks) * math.prod(others)
    learning, frozen = FULL * numbers[True], FULL * numbers[False]
    return {"weights that learn": learning, "frozen": frozen, "gradients": learning, "moments": 2 * learning}


def gathered_bytes(model: nn.Module, bf16: bool) -> int:
    """What FSDP2 holds whole: a layer, the next one, the gradients of one, and all that is in no layer."""
    layers = [sum(p.numel() for p in m.parameters()) for m in model.modules() if isinstance(m, LayerLockViTLayer)]
    rest = sum(parameter.numel() for parameter in model.parameters()) - sum(layers)
    return (rest + 3 * max(layers)) * (HALF if bf16 else FULL)


class Kept:
    """A tensor that autograd keeps, for as long as it does, and the layer that was running."""

    def __init__(self, tensor: torch.Tensor, layer: nn.Module | None):
        self.tensor, self.layer = tensor, layer


def kept_bytes(model: nn.Module, inputs: dict, bf16: bool = False) -> tuple[int, int]:
    """Bytes that a forward pass leaves for the backward pass, parameters excepted: all, and the most of one layer."""
    kept, running, handles = [], [None], []

    def pack(tensor):
        entry = Kept(tensor, running[0])
        kept.append(weakref.ref(entry))
        return entry

    for module in model.modules():
        if isinstance(module, LayerLockViTLayer):
            handles.append(module.register_forward_pre_hook(lambda module, inputs: running.__setitem__(0, module)))
            handles.append(module.register_forward_hook(lambda module, inputs, outputs: running.__setitem__(0, None)))
        elif isinstance(module, nn.LayerNorm):  # CUDA's autocast normalises in fp32, the CPU's in bf16
            handles.append(module.register_forward_pre_hook(lambda module, inputs: (inputs[0].float(),)))
    autocast = torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda entry: entry.tensor), autocast:
        loss = model(**inputs).loss
    for handle in handles:
        handle.remove()
    alive = [entry for entry in (reference() for reference in kept) if entry is not None]
    # What several layers keep belongs to the first of them
    storages = {entry.tensor.untyped_storage()._cdata: entry for entry in reversed(alive)}
    for parameter in model.parameters():
        storages.pop(parameter.untyped_storage()._cdata, None)
    sizes = Counter()
    for entry in storages.values():
        sizes[entry.layer] += entry.tensor.untyped_storage().nbytes()
    del loss  # what autograd keeps lives as long as the loss
    return sizes.total(), max((size for layer, size in sizes.items() if layer is not None), default=0)


def activation_bytes(config, stage: Stage, masks: list, bf16: bool, checkpointing: bool = False) -> tuple[int, int]:
    """Bytes after a forward pass: per clip, and per step, since autocast keeps bf16 copies of weights that learn.

    With checkpointing: the inputs of the layers, and what the largest keeps when it is computed again.
    """
    checkpoint = partial(torch.utils.checkpoint.checkpoint, use_reentrant=False, preserve_rng_state=False)
    shape = (config.num_frames, config.num_channels, config.image_size, config.image_size)
    model, totals = empty_model(config).train(), []
    model.freeze_for(stage)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        # A teacher keeps nothing, whatever it is
        inputs = {"stage": stage, "teacher": model.encoder if stage.needs_teacher else None}
        for batch in (2, 3):
            ids = [[torch.zeros(batch, ids.shape[1], dtype=torch.long) for ids in pair] for pair in masks]
            inputs["context_ids"], inputs["target_ids"] = map(list, zip(*ids, strict=True))
            inputs["pixel_values_videos"] = torch.zeros(batch, *shape)
            model._set_gradient_checkpointing(False, checkpoint)
            total, largest = kept_bytes(model, inputs, bf16)
            if checkpointing:
                model._set_gradient_checkpointing(True, checkpoint)
                total = kept_bytes(model, inputs, bf16)[0] + largest
            totals.append(total)
    per_clip = totals[1] - totals[0]
    return per_clip, totals[0] - 2 * per_clip


def held_bytes(config: LayerLockViTConfig, stage: Stage, masks: list, bf16: bool, num_clips: int) -> int:
    """What one GPU holds in a step of `num_clips` clips without checkpointing, the clips themselves excepted."""
    model = empty_model(config)
    model.freeze_for(stage)
    per_clip, per_step = activation_bytes(config, stage, masks, bf16)
    return sum(state_bytes(model).values()) + per_step + num_clips * per_clip
