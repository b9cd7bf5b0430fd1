"""`torch.compile`, layer by layer."""

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..models.modeling_layerlock import LayerLockViTEmbeddings


# Graphs of one kind of layer. Dynamo's default of 8 sends what is called in more ways to eager mode, with a warning
# only: the first, a middle and the last layer of a decoder, each learning, above the frozen prefix or within it, and
# all that again for a predictor and a teacher of another width.
MAX_GRAPHS = 32


def compile_layers(network: nn.Module | None, parts: bool = False, **settings):
    """In place, so that names, checkpoints and what DDP wraps stay as they are.

    Compiled as a whole, a model would be recompiled in every stage and run eagerly from the ninth on.

    Args:
        parts: compile attention, norms and MLP instead. Activation checkpointing needs it: since Transformers 5.20
            it happens within the layer, where PyTorch refuses to compile it without a backward pass.
        settings: as for `torch.compile`.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_GRAPHS)
    # Context, decoder and target see different numbers of tokens
    settings = {"dynamic": True, **settings}
    for module in network.modules() if network is not None else ():
        if isinstance(module, GradientCheckpointingLayer):
            for part in module.children() if parts else [module]:
                part.compile(**settings)
        elif isinstance(module, LayerLockViTEmbeddings):
            # A linear layer gives a view, for which the first layer would get graphs of its own
            module.register_forward_hook(lambda module, inputs, tokens: tokens.clone())
