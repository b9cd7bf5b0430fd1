"""Health checks of the features, which cost an extra forward pass now and then."""

import torch


MAX_ROWS = 2048


@torch.no_grad()
def feature_statistics(features: torch.Tensor) -> dict[str, torch.Tensor]:
    """How much features of different clips differ: (B, N, D) -> `feature_std` and `effective_rank`, each ().

    The mean over the clips is subtracted at every position, so that only content remains: features that distinguish
    positions but not clips have collapsed, too. The effective rank is at most what the number of clips and channels
    allows.
    """
    features = features.float()
    content = (features - features.mean(dim=0, keepdim=True)).flatten(0, 1)
    content = content[:: -(-content.shape[0] // MAX_ROWS)]
    if not content.isfinite().all():  # the loss will say so; a decomposition would only fail
        return {"feature_std": content.std(), "effective_rank": content.std()}
    return {"feature_std": content.std(dim=0, correction=0).mean(), "effective_rank": effective_rank(content)}


def effective_rank(rows: torch.Tensor) -> torch.Tensor:
    """The exponential of the entropy of the normalised singular values (Roy and Vetterli, 2007): (n, D) -> ().

    Of embeddings that are not centred it is RankMe (Garrido et al., 2023).
    """
    singular_values = torch.linalg.svdvals(rows)
    shares = singular_values / singular_values.sum().clamp_min(torch.finfo(torch.float32).tiny)
    return torch.special.entr(shares).sum().exp()
