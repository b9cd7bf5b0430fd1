"""How far away attention looks (Dosovitskiy et al., 2021, "An Image is Worth 16x16 Words", fig. 7).

B clips, N tokens of the grid (t, h, w), M tokens of a clip with class and register tokens, n tokens that attend to one
another: M, or those of one frame in models of images.
"""

import contextlib
from collections.abc import Iterator

import torch

from ..models import TransformersEncoder
from ..models.positions_layerlock import grid_ids, grid_positions


def token_distances(grid_size: tuple[int, int, int], box: tuple[float, float, float]) -> torch.Tensor:
    """From every token to every other, in the plane of the frame and in time: (2, N, N).

    Args:
        grid_size: of the tokens.
        box: frames, rows and columns of pixels that a token sees, which are the units of the result.
    """
    places = (
        torch.stack(grid_positions(grid_ids(grid_size, "cpu"), grid_size), dim=-1).reshape(-1, 3)
        * torch.tensor(box).float()
    )
    steps = (places[:, None] - places).abs()
    return torch.stack([steps[..., 1:].norm(dim=-1), steps[..., 0]])


def mean_distance(weights: torch.Tensor, ids: torch.Tensor, distances: torch.Tensor) -> torch.Tensor:
    """The distance from a token to what it attends to, over all heads, tokens and clips: (2,).

    Attention to tokens outside the grid is left out, and the rest weighted as if it were all.

    Args:
        weights: (B, heads, n, n), or (B * M / n, heads, n, n), frame by frame.
        ids: where the tokens of the grid are among the M, (N,).
        distances: (2, N, N).

    Raises:
        ValueError: if the M tokens are not whole sets of n.
    """
    num = weights.shape[-1]
    weights = weights.float().mean(dim=1)
    blocks = ids // num
    num_blocks = int(blocks.max()) + 1
    if weights.shape[-2] != num or len(weights) % num_blocks:
        raise ValueError(f"attention of shape {tuple(weights.shape)} is not among all tokens of a clip or frame")
    weights = weights.unflatten(0, (-1, num_blocks))
    total = torch.zeros(2, device=weights.device)
    for block in range(num_blocks):
        own = (blocks == block).nonzero().flatten()
        among = weights[:, block][:, ids[own] % num][:, :, ids[own] % num]
        among = among / among.sum(dim=-1, keepdim=True)
        near = distances[:, own][:, :, own]
        total = total + torch.stack([(among * one).sum(dim=-1).mean(dim=0).sum() for one in near])
    return (total / len(ids)).cpu()


@contextlib.contextmanager
def eager_attention(model) -> Iterator[None]:
    """Attention that is computed step by step, and so has weights to show."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def attention_modules(encoder) -> list[torch.nn.Module]:
    """The module of every layer that returns its attention weights beside its output, as Transformers declares it.

    Raises:
        ValueError: if the model declares none, or not one in each layer.
    """
    model = encoder.model if isinstance(encoder, TransformersEncoder) else encoder
    declared = (model._can_record_outputs or {}).get("attentions")
    kind = getattr(declared, "target_class", declared)
    found = [[module for module in layer.modules() if kind and isinstance(module, kind)] for layer in encoder.layers]
    if any(len(modules) != 1 for modules in found):
        raise ValueError(
            f"attention_distance must be left out for a {model.config.model_type} model, got no attention weights of "
            "its layers: Transformers does not tell where they are"
        )
    return [modules[0] for modules in found]


@torch.no_grad()
def attention_distances(encoder, clips: torch.Tensor) -> torch.Tensor:
    """Of every layer, how far its tokens look in pixels of the frame and in frames of time: (number of layers, 2).

    Args:
        encoder: as `load_encoder` gives it; it ends as it was.
        clips: uint8 (B, T, C, H, W). They are encoded one at a time: all weights of a layer must fit into memory.

    Raises:
        ValueError: if the encoder gives no attention weights.
    """
    model = encoder.model if isinstance(encoder, TransformersEncoder) else encoder
    modules = attention_modules(encoder)
    video = clips[:1].to(encoder.device).float() / 255
    grid_size = encoder.grid_size(video)
    if isinstance(encoder, TransformersEncoder):
        ids = encoder.layout(video).ids.to(encoder.device)
    else:
        ids = torch.arange(grid_size[0] * grid_size[1] * grid_size[2], device=encoder.device)
    sizes = (clips.shape[1], *clips.shape[3:])
    box = tuple(size / num for size, num in zip(sizes, grid_size, strict=True))
    distances = token_distances(grid_size, box).to(encoder.device)
    found = torch.zeros(len(modules), 2)

    # Measured as soon as they are there, so that those of one layer at a time are kept
    def measure(layer: int):
        def hook(module, arguments, output):
            weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
            if weights is None:
                raise ValueError("attention_distance must be left out for this encoder, got no attention weights")
            found[layer] += mean_distance(weights, ids, distances)

        return hook

    handles = [module.register_forward_hook(measure(layer)) for layer, module in enumerate(modules)]
    try:
        with eager_attention(model):
            for clip in clips:
                encoder.tap(clip[None].to(encoder.device).float() / 255, [len(modules)])
    finally:
        for handle in handles:
            handle.remove()
    return found / len(clips)
