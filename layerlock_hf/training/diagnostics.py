"""Health checks of the features, which cost an extra forward pass now and then, and of the weights."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor

from ..models.modeling_layerlock_pretraining import LayerLockViTForPretraining
from ..models.objectives import Stage


MAX_ROWS = 2048


@torch.no_grad()
def stage_statistics(
    model: LayerLockViTForPretraining, stage: Stage, video: torch.Tensor, accelerator: Accelerator
) -> dict[str, torch.Tensor]:
    """`feature_statistics` where the decoders of a stage read whole clips, (B, T, C, H, W), and `weight_statistics`.
    A clip alone differs from no other, and has none of the first."""
    depths_read = stage.read_depths if len(video) > 1 else []
    depths = {read_at: model.decoders[str(read_at)].context_depth for read_at in depths_read}
    with accelerator.autocast():
        taps = model.encoder.tap(video, list(depths.values()))
    found = {}
    for read_at, features in zip(depths, taps, strict=True):
        prefix = f"depth_{read_at}/" if len(depths) > 1 else ""
        found |= {prefix + name: value for name, value in feature_statistics(features).items()}
    return found | weight_statistics(model.encoder.layers)


@torch.no_grad()
def feature_statistics(features: torch.Tensor) -> dict[str, torch.Tensor]:
    """How much features of different clips differ: (B, N, D) -> `feature_std`, `effective_rank` and
    `content_fraction`, each ().

    The mean over the clips is subtracted at every position, so that only content remains: features that distinguish
    positions but not clips have collapsed, too. The effective rank is at most what the number of clips and channels
    allows. `content_fraction` is the share of content in the variance of all tokens, the rest of which is by position:
    unlike `feature_std` it has no scale. It is at most (B - 1) / B where positions do not differ.
    """
    features = features.float()
    content = (features - features.mean(dim=0, keepdim=True)).flatten(0, 1)
    every = -(-content.shape[0] // MAX_ROWS)
    content = content[::every]
    if not content.isfinite().all():  # the loss will say so; a decomposition would only fail
        return dict.fromkeys(("feature_std", "effective_rank", "content_fraction"), content.std())
    variance = features.flatten(0, 1)[::every].var(dim=0, correction=0).mean()
    return {
        "feature_std": content.std(dim=0, correction=0).mean(),
        "effective_rank": effective_rank(content),
        "content_fraction": content.square().mean() / variance.clamp_min(torch.finfo(torch.float32).tiny),
    }


def effective_rank(rows: torch.Tensor) -> torch.Tensor:
    """The exponential of the entropy of the normalised singular values (Roy and Vetterli, 2007): (n, D) -> ().

    Of embeddings that are not centred it is RankMe (Garrido et al., 2023).
    """
    singular_values = torch.linalg.svdvals(rows)
    shares = singular_values / singular_values.sum().clamp_min(torch.finfo(torch.float32).tiny)
    return torch.special.entr(shares).sum().exp()


@torch.no_grad()
def weight_norms(layers: nn.ModuleList) -> torch.Tensor:
    """Norm of the matrices of every layer, which may be sharded: (number of layers,). All processes must call it."""
    squares = []
    for layer in layers:
        parts = [parameter.float().square().sum() for parameter in layer.parameters() if parameter.ndim == 2]
        squares.append(sum(part.full_tensor() if isinstance(part, DTensor) else part for part in parts))
    return torch.stack(squares).sqrt()


def weight_statistics(layers: nn.ModuleList) -> dict[str, torch.Tensor]:
    """`weight_norm_layer_K` of the K-th layer, each (): see `weight_norms`."""
    return {f"weight_norm_layer_{number}": norm for number, norm in enumerate(weight_norms(layers), start=1)}
