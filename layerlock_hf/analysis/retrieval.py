"""Whether the clips most like a clip are of its class. n clips, D width."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F


COUNTS = (1, 5, 10)  # of the nearest clips that are looked at
MAX_ASKED = 1024  # clips compared with all others at once, which bounds the memory


def retrieval(features: torch.Tensor, labels: torch.Tensor, videos: torch.Tensor) -> dict[str, float]:
    """Every clip asks for those of its class among the clips of other videos, ranked by cosine (arXiv 2601.09040).

    Clips that no other video shares the class of ask nothing.

    Args:
        features: (n, D), as they are: a mean that all share brings all cosines close to 1, but keeps their order.
        labels: classes, (n,).
        videos: which video each clip is of, (n,).

    Returns:
        `hit_rate_1`, `_5` and `_10`, the share of clips that find any among so many, and `mean_average_precision`; NaN
        if no clip can ask.
    """
    directions = F.normalize(features.float(), dim=1)
    hits, precisions = [], []
    for asked in torch.arange(len(labels)).split(MAX_ASKED):
        is_other = videos[asked, None] != videos
        cosines = (directions[asked] @ directions.T).masked_fill(~is_other, -torch.inf)
        is_right = (labels[asked, None] == labels) & is_other
        is_right = is_right.gather(1, cosines.argsort(dim=1, descending=True, stable=True))
        is_right = is_right[is_right.any(dim=1)]
        ranks = torch.arange(1, len(labels) + 1)
        precision = is_right.double().cumsum(dim=1) / ranks
        precisions.append((precision * is_right).sum(dim=1) / is_right.sum(dim=1))
        hits.append(torch.stack([is_right[:, :count].any(dim=1) for count in COUNTS], dim=1))
    shares = torch.cat(hits).double().mean(dim=0).tolist()
    found = {f"hit_rate_{count}": share for count, share in zip(COUNTS, shares, strict=True)}
    return found | {"mean_average_precision": torch.cat(precisions).mean().item()}


def retrieval_by_chance(labels: Sequence[int], videos: Sequence[int]) -> dict[str, float]:
    """What `retrieval` gives on average if all orders of the clips are equally likely."""
    labels, videos = torch.as_tensor(labels), torch.as_tensor(videos)
    found = {f"hit_rate_{count}": [] for count in COUNTS} | {"mean_average_precision": []}
    for label, video in zip(labels, videos, strict=True):
        is_other = videos != video
        num, num_right = int(is_other.sum()), int((is_other & (labels == label)).sum())
        if num_right:
            for count in COUNTS:
                miss = math.comb(num - num_right, count) / math.comb(num, count) if count <= num else 0
                found[f"hit_rate_{count}"].append(1 - miss)
            # At rank k, a right one has before it (k - 1) (num_right - 1) / (num - 1) others on average
            harmonic = sum(1 / rank for rank in range(1, num + 1))
            others = (num_right - 1) / (num - 1) * (num - harmonic) if num > 1 else 0
            found["mean_average_precision"].append((harmonic + others) / num)
    return {name: sum(values) / len(values) if values else math.nan for name, values in found.items()}
