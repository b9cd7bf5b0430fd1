"""Floating-point operations of a training step, counted from exact token counts.

A multiply-accumulate counts 2. Layers that learn cost three times their forward pass (the backward pass computes
gradients of inputs and of weights), frozen ones once; matrix products only, as is usual.
"""

from ..models.configuration_layerlock import LayerLockViTConfig
from ..models.objectives import Stage


def layer_flops(config: LayerLockViTConfig, num_tokens: int, num_outputs: int | None = None) -> int:
    """Forward pass of one layer on `num_tokens` tokens, of which it computes the first `num_outputs`, per clip."""
    num_outputs = num_tokens if num_outputs is None else num_outputs
    width = config.hidden_size
    keys_and_values = 2 * num_tokens * 2 * width * width
    queries_and_outputs = 2 * num_outputs * 2 * width * width
    attention = 2 * 2 * num_outputs * num_tokens * width
    mlp = 2 * num_outputs * 2 * width * config.intermediate_size
    return keys_and_values + queries_and_outputs + attention + mlp


def step_flops(config: LayerLockViTConfig, stage: Stage, num_context: int, num_tokens: int | None = None) -> int:
    """Forward and backward pass of one clip in this stage, its targets included.

    Args:
        num_context: context tokens.
        num_tokens: tokens of the clip's grid; those of the configured clip size if None.
    """
    num_tokens = num_tokens or config.num_tokens
    num_layers = config.num_hidden_layers
    context_depth = num_layers - config.num_decoder_layers
    embedding = 2 * config.values_per_token * config.hidden_size

    def passes(depth):
        return 1 if depth <= stage.num_frozen else 3

    total = num_context * embedding * (1 if stage.num_frozen else 2)  # pixels need no gradient
    total += sum(passes(depth) * layer_flops(config, num_context) for depth in range(1, context_depth + 1))
    decoder_passes = {objective.patch_fraction for objective in stage.objectives}
    for fraction in decoder_passes:
        num_decoded = max(1, round(fraction * num_tokens))
        for depth in range(context_depth + 1, num_layers + 1):
            num_outputs = num_decoded if depth == num_layers else None
            total += passes(depth) * layer_flops(config, num_context + num_decoded, num_outputs)
    for objective in stage.objectives:
        num_decoded = max(1, round(objective.patch_fraction * num_tokens))
        depth = objective.target.depth
        head_width = config.hidden_size if depth else config.values_per_token
        head_passes = 2 if stage.num_frozen == num_layers else 3
        total += head_passes * 2 * num_decoded * config.hidden_size * head_width
        if depth:
            total += num_decoded * embedding + depth * layer_flops(config, num_decoded)
    return total
