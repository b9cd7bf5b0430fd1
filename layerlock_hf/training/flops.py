"""Floating-point operations of a training step, counted from exact token counts.

A multiply-accumulate counts 2. Layers that learn cost three times their forward pass (the backward pass computes
gradients of inputs and of weights), frozen ones once; matrix products only, as is usual.
"""

from ..models.configuration_layerlock import LayerLockViTConfig
from ..models.objectives import Objective, Stage


def layer_flops(config: LayerLockViTConfig, num_tokens: int, num_outputs: int | None = None) -> int:
    """Forward pass of one layer on `num_tokens` tokens, of which it computes the first `num_outputs`, per clip."""
    num_outputs = num_tokens if num_outputs is None else num_outputs
    width = config.hidden_size
    keys_and_values = 2 * num_tokens * 2 * width * width
    queries_and_outputs = 2 * num_outputs * 2 * width * width
    attention = 2 * 2 * num_outputs * num_tokens * width
    mlp = 2 * num_outputs * 2 * width * config.intermediate_size
    return keys_and_values + queries_and_outputs + attention + mlp


def prefix_flops(config: LayerLockViTConfig, depth: int, num_tokens: int) -> int:
    """Forward pass of the embedding and the first `depth` layers, per clip."""
    return num_tokens * linear_flops(config.values_per_token, config.hidden_size) + depth * layer_flops(
        config, num_tokens
    )


def linear_flops(width_in: int, width_out: int) -> int:
    """Forward pass of a linear layer, per token."""
    return 2 * width_in * width_out


def step_flops(
    config: LayerLockViTConfig,
    stage: Stage,
    masks: list[tuple[int, int | None]],
    num_tokens: int | None = None,
    teacher: LayerLockViTConfig | None = None,
) -> int:
    """Forward and backward pass of one clip in this stage, its targets included.

    Args:
        masks: for each type of mask the number of context tokens and of target tokens (None: all of them).
        num_tokens: tokens of the clip's grid; those of the configured clip size if None.
        teacher: configuration of the teacher; that of the model if None.
    """
    num_tokens = num_tokens or config.num_tokens
    total = 0
    for num_context, num_targets in masks:
        num_targets = num_tokens if num_targets is None else num_targets
        total += _encoder_flops(config, stage, num_context)
        for read_at in stage.read_depths:
            objectives = [objective for objective in stage.objectives if objective.read_at == read_at]
            for num_decoded in {_num_decoded(objective, num_targets) for objective in objectives}:
                total += _DECODER_FLOPS[config.decoder](config, stage, read_at, num_context, num_decoded)
            for objective in objectives:
                total += _head_flops(config, stage, objective, _num_decoded(objective, num_targets))
    return total + _target_flops(config, stage, masks, num_tokens, teacher or config)


def _num_decoded(objective: Objective, num_targets: int) -> int:
    return max(1, round(objective.patch_fraction * num_targets))


def _encoder_flops(config, stage, num_context):
    """The layers that see the context alone."""
    deepest = stage.read_depths[-1] - (config.num_decoder_layers if config.decoder == "trunk" else 0)
    embedding = num_context * linear_flops(config.values_per_token, config.hidden_size)
    total = embedding * (1 if stage.num_frozen else 2)  # pixels need no gradient
    # With an overlap, the layers before a cut run once more, for the next block
    runs = list(range(1, deepest + 1))
    for cut in stage.read_depths[:-1]:
        runs += range(max(1, cut - stage.overlap + 1), cut + 1)
    return total + sum(_passes(stage, depth) * layer_flops(config, num_context) for depth in runs)


def _passes(stage, depth):
    return 1 if depth <= stage.num_frozen else 3


def _trunk_flops(config, stage, read_at, num_context, num_decoded):
    total = 0
    for depth in range(read_at - config.num_decoder_layers + 1, read_at + 1):
        num_outputs = num_decoded if depth == read_at else None
        total += _passes(stage, depth) * layer_flops(config, num_context + num_decoded, num_outputs)
    return total


def _predictor_flops(config, stage, read_at, num_context, num_decoded):
    sizes = config.for_predictor()
    # No gradient goes into an encoder that is frozen as a whole
    projection_passes = 2 if stage.num_frozen >= read_at else 3
    total = projection_passes * num_context * linear_flops(config.hidden_size, sizes.hidden_size)
    num_all = num_context + num_decoded
    total += 3 * (config.num_decoder_layers - 1) * layer_flops(sizes, num_all)
    return total + 3 * layer_flops(sizes, num_all, num_decoded)


_DECODER_FLOPS = {"trunk": _trunk_flops, "predictor": _predictor_flops}


def _head_flops(config, stage, objective, num_decoded):
    width_in = config.predictor_hidden_size if config.decoder == "predictor" else config.hidden_size
    width_out = config.head_widths[objective.target.head]
    # Nothing before the head learns when the layers that decode are frozen
    passes = 2 if config.decoder == "trunk" and stage.num_frozen == config.num_hidden_layers else 3
    return passes * num_decoded * linear_flops(width_in, width_out)


def _target_flops(config, stage, masks, num_tokens, teacher):
    """Whole-clip targets are computed once for all masks, subsets once for each."""
    networks = {"encoder": config, "teacher": teacher}
    total, counted = 0, set()
    for objective in stage.objectives:
        target = objective.target
        if target.depth == 0:
            continue
        if objective.patch_fraction < 1:
            for _, num_targets in masks:
                num_decoded = _num_decoded(objective, num_tokens if num_targets is None else num_targets)
                total += prefix_flops(networks[target.of], target.depth, num_decoded)
        elif target not in counted:
            counted.add(target)
            total += prefix_flops(networks[target.of], target.depth, num_tokens)
    return total
