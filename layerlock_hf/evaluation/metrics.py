"""Metrics of predictions: accuracies, errors of depth, and their confidence intervals.

Every test item is scored by itself, into a row of numbers, and metrics are made of the rows in the order of the items:
neither batches nor processes change a result. T frames, K classes, n items, R resamples.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch

from ..models.modeling_layerlock_readout import MIN_DEPTH, is_known_depth


EPSILON = 1e-6  # metres, in AbsRel. The paper gives no number; at MIN_DEPTH this one changes an error by a thousandth
TOP = 5
NUM_RESAMPLES = 1000
CONFIDENCE = 0.95
MIN_GROUPS = 10  # from which on they are enough to draw from
CHUNK = 2**21  # weights of a bootstrap that are held at once

# Columns of n values each, on the CPU. All have "index", of the test item, and "num", how many true values it has
SampleScores = dict[str, torch.Tensor]


def mean_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """The mean over the clips of a video of their softmax (LayerLock, sec. A.4.2): (n, clips, K) -> (n, K)."""
    return logits.cpu().double().softmax(dim=-1).mean(dim=1)


def score_classes(probabilities: torch.Tensor, labels: torch.Tensor, indices: torch.Tensor) -> SampleScores:
    """One row per video: its class, the likeliest class, whether the true one is among five, and its probability.

    Equally likely classes are ranked in order. The probability is NaN where any of a video is not finite.

    Args:
        probabilities: (n, K), as `mean_probabilities` gives them.
        labels: (n,), classes counted from 0.
        indices: (n,), the places of the videos in the test set.

    Raises:
        ValueError: for other shapes, or classes that do not exist.
    """
    if probabilities.ndim != 2 or not len(probabilities) == len(labels) == len(indices):
        shapes = ", ".join(str(tuple(values.shape)) for values in (probabilities, labels, indices))
        raise ValueError(f"probabilities, labels and indices must be (n, K), (n,) and (n,), got {shapes}")
    probabilities, labels = probabilities.cpu().double(), labels.cpu().long()
    num_classes = probabilities.shape[1]
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"labels must be at least 0 and less than {num_classes}, the number of classes, got {labels.min()} to "
            f"{labels.max()}"
        )
    is_finite = probabilities.isfinite().all(dim=1)
    order = probabilities.sort(dim=1, descending=True, stable=True).indices
    return {
        "index": indices.long().cpu(),
        "num": torch.ones(len(labels), dtype=torch.float64),
        "label": labels,
        "predicted": order[:, 0],
        "is_in_top5": (order[:, :TOP] == labels[:, None]).any(dim=1),
        "probability": torch.where(is_finite, probabilities.gather(1, labels[:, None])[:, 0], torch.nan),
    }


def score_depth(predicted: torch.Tensor, metres: torch.Tensor, indices: torch.Tensor) -> SampleScores:
    """One row per clip: sums over its pixels of known depth, `MIN_DEPTH` <= d <= `MAX_DEPTH`.

    Predictions are compared as they are, without any alignment of scale. A regression may predict less than nothing:
    for ratios and logarithms, and for them alone, predictions below `MIN_DEPTH` count as `MIN_DEPTH`.

    Args:
        predicted, metres: (n, T, H, W).
        indices: (n,), the places of the clips in the test set.

    Raises:
        ValueError: for other shapes.
    """
    if predicted.ndim != 4 or predicted.shape != metres.shape or len(indices) != len(metres):
        shapes = ", ".join(str(tuple(values.shape)) for values in (predicted, metres, indices))
        raise ValueError(f"predicted and metres must both be (n, T, H, W) and indices (n,), got {shapes}")
    # Clip by clip: sums over a batch at once would depend on its size
    rows = [_depth_sums(*pair) for pair in zip(predicted.float(), metres.float(), strict=True)]
    columns = {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}
    return {"index": indices.long().cpu(), **columns}


def _depth_sums(predicted: torch.Tensor, metres: torch.Tensor) -> dict[str, float]:
    is_known = is_known_depth(metres)
    truth = torch.where(is_known, metres, 1)
    error = torch.where(is_known, (predicted - metres).abs(), 0)
    relative = error / (truth + EPSILON)
    ratio = torch.where(is_known, predicted.clamp(min=MIN_DEPTH), 1) / truth
    factor = torch.where(is_known, torch.maximum(ratio, 1 / ratio), torch.inf)
    num_per_frame = is_known.sum(dim=(1, 2))
    frame_means = relative.sum(dim=(1, 2), dtype=torch.float64) / num_per_frame.clamp(min=1)
    sums = {
        "num": num_per_frame.sum(),
        "num_frames": (num_per_frame > 0).sum(),
        "relative": relative.sum(dtype=torch.float64),
        "frame_relative": frame_means.sum(),
        "absolute": error.sum(dtype=torch.float64),
        "squared": error.square().sum(dtype=torch.float64),
        "log_squared": ratio.log().square().sum(dtype=torch.float64),
        "log10": ratio.log10().abs().sum(dtype=torch.float64),
        **{f"within{power}": (factor < 1.25**power).sum() for power in (1, 2, 3)},
    }
    return {name: value.item() for name, value in sums.items()}


def in_order(parts: list[SampleScores]) -> SampleScores:
    """All rows by index, each index once: processes that share a test set unevenly repeat some of it.

    Raises:
        ValueError: without parts, or if they have different columns.
    """
    if not parts or any(part.keys() != parts[0].keys() for part in parts):
        raise ValueError(f"parts must have the same columns, got {[sorted(part) for part in parts]}")
    columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    order = columns["index"].sort(stable=True).indices
    index = columns["index"][order]
    is_first = torch.ones_like(index, dtype=torch.bool)
    is_first[1:] = index[1:] != index[:-1]
    return {name: values[order[is_first]] for name, values in columns.items()}


def without(samples: SampleScores, indices: Collection[int]) -> SampleScores:
    """The rows of all other items."""
    is_kept = torch.tensor([index not in indices for index in samples["index"].tolist()], dtype=torch.bool)
    return {name: values[is_kept] for name, values in samples.items()}


def classification_metrics(samples: SampleScores, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """Accuracies over videos, over classes that occur, and the mean -log of the probability of the true class.

    Args:
        samples: rows of `score_classes`.
        weights: (R, n), how often each row counts.

    Returns:
        (R,) per metric, NaN if any probability is. Probabilities below float32's precision count as that in
        `log_loss`.
    """
    total = weights.sum(dim=1)
    is_right = (samples["predicted"] == samples["label"]).double()
    num, num_right = _per_class(samples, weights)
    likelihood = samples["probability"].clamp(min=torch.finfo(torch.float32).eps)
    metrics = {
        "top1": weights @ is_right / total,
        "top5": weights @ samples["is_in_top5"].double() / total,
        "mean_class_accuracy": (num_right / num).nanmean(dim=1),
        "log_loss": weights @ -likelihood.log() / total,
    }
    # The order of classes that are not finite means nothing
    return {name: values.where(metrics["log_loss"].isfinite(), torch.nan) for name, values in metrics.items()}


def _per_class(samples: SampleScores, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of all videos of each class, and of those that are recognised: (R, n) -> (R, classes) each."""
    labels = samples["label"]
    is_right = (samples["predicted"] == labels).double()
    zeros = weights.new_zeros(len(weights), int(labels.max()) + 1)
    return zeros.index_add(1, labels, weights), zeros.index_add(1, labels, weights * is_right)


def depth_metrics(samples: SampleScores, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """Errors of depth in which all known pixels of the test set weigh alike, and AbsRel once more over frames.

    `abs_rel` is the mean of |d* - d| / (d + EPSILON), with d* predicted and d true (LayerLock, sec. A.4.3);
    `abs_rel_per_frame` the mean over frames of their means. `delta1` to `delta3` are the shares of pixels with
    max(d* / d, d / d*) < 1.25, 1.25^2, 1.25^3; `mae` and `rmse` are in metres, `rmse_log` and `log10` (the mean of
    |log10 d* - log10 d|) of logarithms.

    Args:
        samples: rows of `score_depth`.
        weights: (R, n), how often each row counts.

    Returns:
        (R,) per metric.
    """

    def mean(name: str, num: str = "num") -> torch.Tensor:
        return weights @ samples[name] / (weights @ samples[num])

    return {
        "abs_rel": mean("relative"),
        "abs_rel_per_frame": mean("frame_relative", "num_frames"),
        **{f"delta{power}": mean(f"within{power}") for power in (1, 2, 3)},
        "rmse": mean("squared").sqrt(),
        "mae": mean("absolute"),
        "rmse_log": mean("log_squared").sqrt(),
        "log10": mean("log10"),
    }


@dataclass(frozen=True)
class Measure:
    """How predictions of a kind are measured.

    Args:
        metrics: of scores per sample and weights (R, n), (R,) values by name.
        main_metric: what members of a sweep are ranked by.
        is_higher_better: whether the main metric grows with quality.
        bounds: that no metric can pass.
    """

    metrics: Callable[[SampleScores, torch.Tensor], dict[str, torch.Tensor]]
    main_metric: str
    is_higher_better: bool
    bounds: tuple[float, float] = (-math.inf, math.inf)


MEASURES = {
    "classification": Measure(classification_metrics, "top1", is_higher_better=True, bounds=(0.0, 1.0)),
    "depth": Measure(depth_metrics, "abs_rel", is_higher_better=False, bounds=(0.0, math.inf)),
}


def measure(kind: Measure, samples: SampleScores) -> dict[str, float]:
    """The metrics of all rows. They are not finite where predictions are not."""
    weights = torch.ones(1, len(samples["index"]), dtype=torch.float64)
    return {name: value.item() for name, value in kind.metrics(samples, weights).items()}


def confusion_matrix(samples: SampleScores, num_classes: int) -> torch.Tensor:
    """How many videos of a class (row) are taken for which (column): (num_classes, num_classes)."""
    cells = samples["label"] * num_classes + samples["predicted"]
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)


def resampling_units(num_items: int, groups: list[str] | None) -> tuple[torch.Tensor, str]:
    """What a bootstrap draws: the unit of each item (n,), counted from 0, and "groups" or "items".

    Fewer than two groups say nothing about how groups differ; then items are drawn.

    Raises:
        ValueError: if there is not one group per item.
    """
    if groups is None:
        return torch.arange(num_items), "items"
    if len(groups) != num_items:
        raise ValueError(f"groups must be one per item, got {len(groups)} for {num_items} items")
    names = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    if len(names) < 2:
        return torch.arange(num_items), "items"
    return torch.tensor([names[name] for name in groups]), "groups"


def intervals(
    kind: Measure,
    samples: SampleScores,
    groups: list[str] | None = None,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Every metric with its percentile bootstrap interval: {"top1": {"value", "low", "high"}, ...}.

    Test items are drawn with replacement, or whole groups of them (`resampling_units`): videos of one person or scene
    succeed and fail together. The interval says how the result would vary with other test items of the kind. It does
    not say how it varies with the training seed, and where the best of several members was chosen on the same
    test items, it does not include that choice, which flatters the best.

    Of fewer than `MIN_GROUPS` groups a bootstrap knows too little: four that happen to be alike give an interval of
    no width. There the interval is the hull of two, of the bootstrap over items and of Student's t over the groups,
    each left out once (jackknife).

    Args:
        kind: a value of `MEASURES`.
        samples: rows in the order of the test items.
        groups: the group of each row.
        num_resamples: draws.
        confidence: share of the draws within the interval.
        seed: of the draws.

    Raises:
        ValueError: without rows, for less than one draw, or no share.
    """
    if not len(samples["index"]):
        raise ValueError("there are no test items to measure")
    if num_resamples < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"num_resamples must be at least 1 and confidence between 0 and 1, got {num_resamples} and {confidence}"
        )
    units, unit_name = resampling_units(len(samples["index"]), groups)
    num_units = int(units.max()) + 1
    is_few = unit_name == "groups" and num_units < MIN_GROUPS
    drawn = torch.arange(len(units)) if is_few else units
    found = _bootstrap(kind, samples, drawn, num_resamples, confidence, seed)
    if is_few:
        for name, edges in _jackknife(kind, samples, units, confidence).items():
            found[name] = (min(found[name][0], edges[0]), max(found[name][1], edges[1]))
    lowest, highest = kind.bounds
    return {
        name: {"value": value, "low": max(found[name][0], lowest), "high": min(found[name][1], highest)}
        for name, value in measure(kind, samples).items()
    }


def _bootstrap(
    kind: Measure, samples: SampleScores, units: torch.Tensor, num_resamples: int, confidence: float, seed: int
) -> dict[str, tuple[float, float]]:
    generator = torch.Generator().manual_seed(seed)
    num_units, parts = int(units.max()) + 1, []
    for start in range(0, num_resamples, max(1, CHUNK // len(units))):
        size = min(max(1, CHUNK // len(units)), num_resamples - start)
        drawn = torch.randint(num_units, (size, num_units), generator=generator)
        counts = torch.zeros(size, num_units, dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones_like(drawn, dtype=torch.float64)
        )
        parts.append(kind.metrics(samples, counts[:, units]))
    edges = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    return {name: tuple(torch.cat([part[name] for part in parts]).quantile(edges).tolist()) for name in parts[0]}


def _jackknife(
    kind: Measure, samples: SampleScores, units: torch.Tensor, confidence: float
) -> dict[str, tuple[float, float]]:
    num_units = int(units.max()) + 1
    without = (torch.arange(num_units).unsqueeze(1) != units).double()
    factor = student_quantile((1 + confidence) / 2, num_units - 1)
    found = {}
    for name, value in measure(kind, samples).items():
        values = kind.metrics(samples, without)[name]
        error = ((num_units - 1) ** 2 / num_units * values.var()).sqrt().item()
        found[name] = (value - factor * error, value + factor * error)
    return found


def student_quantile(share: float, freedom: int) -> float:
    """Below what value such a share, above a half, of Student's t with so many degrees of freedom lies."""
    x = torch.linspace(0, 1000, 4_000_001, dtype=torch.float64)
    norm = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    density = norm * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
    return x[1:][torch.searchsorted(0.5 + torch.cumulative_trapezoid(density, x), share)].item()
