"""Floating-point operations of a training step, counted from exact token counts.

A multiply-accumulate counts 2. Layers that learn cost three times their forward pass (the backward pass computes
gradients of inputs and of weights), frozen ones once; matrix products only, as is usual.

There are two accountings. `step_flops` and `forward_flops` count every clip by itself, as papers do. `executed_flops`
counts what a batch computes: what is the same for all of its clips once, and checkpointed layers twice.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ..models.configuration_layerlock import LayerLockViTConfig
from ..models.objectives import Objective, Stage


@dataclass(frozen=True)
class Work:
    """Matrix products of a step that have the same fate.

    Args:
        forward: their operations in a forward pass, per clip.
        num_passes: forward and backward passes, each as expensive as the forward one: 1 to 3.
        is_shared: whether all clips of a batch share the result.
        again: those of `forward` that gradient checkpointing computes a second time.
    """

    forward: int
    num_passes: int
    is_shared: bool = False
    again: int = 0


def layer_flops(width: int, mlp_width: int, num_tokens: int, num_outputs: int | None = None) -> int:
    """Forward pass of one layer on `num_tokens` tokens, of which it computes the first `num_outputs`, per clip."""
    num_outputs = num_tokens if num_outputs is None else num_outputs
    keys_and_values = 2 * num_tokens * 2 * width * width
    queries_and_outputs = 2 * num_outputs * 2 * width * width
    attention = 2 * 2 * num_outputs * num_tokens * width
    mlp = 2 * num_outputs * 2 * width * mlp_width
    return keys_and_values + queries_and_outputs + attention + mlp


def prefix_flops(config: LayerLockViTConfig, depth: int, num_tokens: int) -> int:
    """Forward pass of the embedding and the first `depth` layers, per clip."""
    embedding = num_tokens * linear_flops(config.values_per_token, config.hidden_size)
    return embedding + depth * layer_flops(*_widths(config), num_tokens)


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
    return sum(work.forward * work.num_passes for work in _works(config, stage, masks, num_tokens, teacher))


def forward_flops(
    config: LayerLockViTConfig,
    stage: Stage,
    masks: list[tuple[int, int | None]],
    num_tokens: int | None = None,
    teacher: LayerLockViTConfig | None = None,
) -> int:
    """The forward passes alone, those that compute the targets included; arguments as of `step_flops`."""
    return sum(work.forward for work in _works(config, stage, masks, num_tokens, teacher))


def executed_flops(
    config: LayerLockViTConfig,
    stage: Stage,
    masks: list[tuple[int, int | None]],
    num_clips: int,
    num_tokens: int | None = None,
    teacher: LayerLockViTConfig | None = None,
    checkpointing: bool = False,
) -> int:
    """Forward and backward pass of a batch as it is computed: decoding tokens that are the same for every clip are
    projected once, and with `checkpointing` the layers that learn run forward once more. Other arguments as of
    `step_flops`."""
    total = 0
    for work in _works(config, stage, masks, num_tokens, teacher):
        once_more = work.again if checkpointing and work.num_passes == 3 else 0
        total += (1 if work.is_shared else num_clips) * (work.forward * work.num_passes + once_more)
    return total


def _works(config, stage, masks, num_tokens, teacher) -> Iterator[Work]:
    num_tokens = num_tokens or config.num_tokens
    for num_context, num_targets in masks:
        num_targets = num_tokens if num_targets is None else num_targets
        yield from _encoder(config, stage, num_context)
        for read_at in stage.read_depths:
            objectives = [objective for objective in stage.objectives if objective.read_at == read_at]
            for num_decoded in {_num_decoded(objective, num_targets) for objective in objectives}:
                # Those of the whole grid are decoding tokens that depend on no mask
                is_whole = num_decoded == num_tokens
                yield from _DECODERS[config.decoder](config, stage, read_at, num_context, num_decoded, is_whole)
            for objective in objectives:
                yield _head(config, stage, objective, _num_decoded(objective, num_targets))
    yield from _targets(config, stage, masks, num_tokens, teacher or config)


def _num_decoded(objective: Objective, num_targets: int) -> int:
    return max(1, round(objective.patch_fraction * num_targets))


def _widths(config) -> tuple[int, int]:
    return config.hidden_size, config.intermediate_size


def _layer(widths, num_passes, num_tokens, num_outputs=None) -> Work:
    """A layer; when it is computed again, that ends before its last product, of which nothing is kept."""
    forward = layer_flops(*widths, num_tokens, num_outputs)
    last = (num_tokens if num_outputs is None else num_outputs) * linear_flops(*widths)
    return Work(forward, num_passes, again=forward - last)


def _encoder(config, stage, num_context):
    """The layers that see the context alone."""
    deepest = stage.read_depths[-1] - (config.num_decoder_layers if config.decoder == "trunk" else 0)
    # Pixels need no gradient
    yield Work(num_context * linear_flops(config.values_per_token, config.hidden_size), 1 if stage.num_frozen else 2)
    # With an overlap, the layers before a cut run once more, for the next block
    runs = list(range(1, deepest + 1))
    for cut in stage.read_depths[:-1]:
        runs += range(max(1, cut - stage.overlap + 1), cut + 1)
    for depth in runs:
        yield _layer(_widths(config), _num_passes(stage, depth), num_context)


def _num_passes(stage, depth):
    return 1 if depth <= stage.num_frozen else 3


def _trunk(config, stage, read_at, num_context, num_decoded, is_whole):
    first = read_at - config.num_decoder_layers + 1
    for depth in range(first, read_at + 1):
        num_passes = _num_passes(stage, depth)
        num_outputs = num_decoded if depth == read_at else None
        layer = _layer(_widths(config), num_passes, num_context + num_decoded, num_outputs)
        if depth == first and is_whole:
            # Queries, keys and values
            shared = 3 * num_decoded * linear_flops(config.hidden_size, config.hidden_size)
            yield Work(shared, num_passes, is_shared=True, again=shared)
            layer = Work(layer.forward - shared, num_passes, again=layer.again - shared)
        yield layer


def _predictor(config, stage, read_at, num_context, num_decoded, is_whole):
    widths = config.predictor_hidden_size, config.predictor_intermediate_size
    # No gradient goes into an encoder that is frozen as a whole
    projection = num_context * linear_flops(config.hidden_size, config.predictor_hidden_size)
    yield Work(projection, 2 if stage.num_frozen >= read_at else 3)
    num_all = num_context + num_decoded
    for _ in range(config.num_decoder_layers - 1):
        yield _layer(widths, 3, num_all)
    yield _layer(widths, 3, num_all, num_decoded)


_DECODERS = {"trunk": _trunk, "predictor": _predictor}


def _head(config, stage, objective, num_decoded) -> Work:
    width_in = config.predictor_hidden_size if config.decoder == "predictor" else config.hidden_size
    width_out = config.head_widths[objective.target.head]
    # Nothing before the head learns when the layers that decode are frozen
    num_passes = 2 if config.decoder == "trunk" and stage.num_frozen == config.num_hidden_layers else 3
    return Work(num_decoded * linear_flops(width_in, width_out), num_passes)


def _targets(config, stage, masks, num_tokens, teacher):
    """Whole-clip targets are computed once for all masks, subsets once for each."""
    networks = {"encoder": config, "teacher": teacher}
    counted = set()
    for objective in stage.objectives:
        target = objective.target
        if target.depth == 0:
            continue
        if objective.patch_fraction < 1:
            for _, num_targets in masks:
                num_decoded = _num_decoded(objective, num_tokens if num_targets is None else num_targets)
                yield Work(prefix_flops(networks[target.of], target.depth, num_decoded), 1)
        elif target not in counted:
            counted.add(target)
            yield Work(prefix_flops(networks[target.of], target.depth, num_tokens), 1)
