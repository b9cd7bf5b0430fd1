"""How many directions features use, from the spectrum of their covariance. n rows, D width, K eigenvalues."""

import math

import torch


NOISE = 1e-9  # eigenvalues below this share of the largest are rounding errors
HEAD, TAIL = 0.05, 0.5  # shares of the spectrum between which a power law is fitted
MIN_POINTS = 5


def eigenvalues(features: torch.Tensor) -> torch.Tensor:
    """Those of the covariance, the largest first, without those that are rounding errors: (n, D) -> (K,)."""
    centred = features.double() - features.double().mean(dim=0)
    values = torch.linalg.svdvals(centred).square() / len(features)
    return values[values > NOISE * values[0]]


def participation_ratio(values: torch.Tensor) -> float:
    """How many equal eigenvalues would be as spread as these: their sum squared over the sum of their squares.

    (K,) -> a number between 1 and K (Gao et al., 2017, "A theory of multineuronal dimensionality").
    """
    return (values.sum().square() / values.square().sum()).item() if len(values) else math.nan


def alpha_req(values: torch.Tensor) -> float:
    """The exponent a of eigenvalue i ~ i^-a, of alpha-ReQ (Agrawal et al., 2022, "alpha-ReQ").

    Least squares of the logarithms with weights 1 / i, which give every octave the same say, as Stringer et al. (2019)
    fit spectra of neurons. Left out are the first `HEAD` of the spectrum, which classes of the data make, and what is
    beyond `TAIL`, which the number of samples makes.

    Returns:
        a, or NaN where fewer than `MIN_POINTS` eigenvalues are left.
    """
    first, last = int(HEAD * len(values)), int(TAIL * len(values))
    if last - first < MIN_POINTS:
        return math.nan
    index = torch.arange(first + 1, last + 1, dtype=torch.float64)
    weights = 1 / index / (1 / index).sum()
    x, y = index.log(), values[first:last].double().log()
    x, y = x - weights @ x, y - weights @ y
    return -((weights * x) @ y / ((weights * x) @ x)).item()
