"""Health checks of the features, which cost an extra forward pass now and then, and of the weights."""

import torch
from torch import nn


MAX_ROWS = 2048


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
def weight_norms(layers: nn.ModuleList) -> dict[str, torch.Tensor]:
    """`weight_norm_layer_K`, of all parameters of the K-th layer, each ()."""
    norms = (torch.stack([parameter.float().norm() for parameter in layer.parameters()]).norm() for layer in layers)
    return {f"weight_norm_layer_{number}": norm for number, norm in enumerate(norms, start=1)}
