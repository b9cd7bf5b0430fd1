"""Centred kernel alignment (CKA): how alike two representations of the same clips are.

It does not see rotations and scales, and compares widths that differ (Kornblith et al., 2019, arXiv 1905.00414).
n clips, D width.
"""

from collections.abc import Callable, Sequence

import torch


MIN_CLIPS = 4  # which the unbiased estimate divides by n - 3


def linear_kernel(features: torch.Tensor) -> torch.Tensor:
    """(n, D) -> (n, n)"""
    return features @ features.T


def rbf_kernel(features: torch.Tensor) -> torch.Tensor:
    """A Gaussian of the distance, as wide as the median distance between two clips: (n, D) -> (n, n)."""
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    rows, columns = torch.triu_indices(*distances.shape, offset=1)
    width = distances[rows, columns].median()
    return (-0.5 * (distances / width).square()).exp()


KERNELS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"linear": linear_kernel, "rbf": rbf_kernel}


def alignment(features: torch.Tensor, kernel: str = "linear", is_biased: bool = False) -> torch.Tensor:
    """The centred kernel matrix, of norm 1, so that CKA is the inner product of two of them: (n, D) -> (n, n).

    The biased estimate, which the blockwise paper has (arXiv 2601.09040), is above 0 for features that have nothing to
    do with each other, and close to 1 where they are wider than there are clips. The unbiased one (Song et al., 2012;
    for CKA Nguyen et al., 2021, arXiv 2010.15327) is 0 then, give or take, and may be negative.

    Args:
        features: of at least `MIN_CLIPS` clips.
        kernel: a key of `KERNELS`.
        is_biased: which of the estimates is meant.

    Returns:
        float32, or NaN for features that are all the same.
    """
    # Double, and centred before products: a mean that all share would take the digits
    features = features.double()
    gram = KERNELS[kernel](features - features.mean(dim=0))
    num = len(gram)
    if is_biased:
        gram = gram - gram.mean(dim=0) - gram.mean(dim=1, keepdim=True) + gram.mean()
    else:
        # "U-centring" (Szekely and Rizzo, 2014), whose inner product is the estimate of Song et al. but for a factor
        gram = gram.fill_diagonal_(0)
        rows = gram.sum(dim=0) / (num - 2)
        gram = gram - rows - rows[:, None] + gram.sum() / ((num - 1) * (num - 2))
        gram = gram.fill_diagonal_(0)
    return (gram / gram.norm()).float()


def cka(first: torch.Tensor, second: torch.Tensor, kernel: str = "linear", is_biased: bool = False) -> float:
    """CKA of two representations, (n, D) and (n, D').

    >>> x = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    >>> round(cka(x, 3 * x.flip(1)), 4)
    1.0
    """
    return similarities([alignment(first, kernel, is_biased)], [alignment(second, kernel, is_biased)]).item()


def similarities(firsts: Sequence[torch.Tensor], seconds: Sequence[torch.Tensor]) -> torch.Tensor:
    """CKA of each of the first with each of the second, of what `alignment` gives: (len(firsts), len(seconds))."""
    return torch.stack([torch.stack([first.flatten() @ second.flatten() for second in seconds]) for first in firsts])
