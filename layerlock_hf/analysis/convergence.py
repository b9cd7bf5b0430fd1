"""In which order layers converge: what freezing the first L layers at step T costs (LayerLock, Fig. 1, sec. 3.2, A.1).

The layers up to L have converged at step T if a run that freezes them there still reaches the loss of the run that is
never frozen. The paper states no limit to the deviation from that loss; `THRESHOLD` is ours.
"""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..utils.packages import importing


THRESHOLD = 1.0  # per cent
# As shares: the 16 layers and 14,000 steps of the paper give its layers 3, 6, 9, 12, its steps 2,000 to 12,000, and
# the last 1,000 steps as those of the final loss
LAYER_SHARES = (3 / 16, 6 / 16, 9 / 16, 12 / 16)
NUM_INTERVALS, LAST_SHARE = 7, 1 / 14


@dataclass(frozen=True)
class Grid:
    """Which branches there are, and what their final loss is.

    Args:
        layers: how many leading layers are frozen; 0 is a control, which must not deviate.
        steps: at which they are frozen.
        last_steps: of the run, over which the loss is averaged.

    Raises:
        ValueError: naming what is wrong.
    """

    layers: tuple[int, ...]
    steps: tuple[int, ...]
    last_steps: int

    def __post_init__(self):
        for name in ("layers", "steps"):
            values = getattr(self, name)
            if not values or list(values) != sorted(set(values)):
                raise ValueError(f"{name} must ascend, got {list(values)}: give each once, the lowest first")
        if self.last_steps < 1:
            raise ValueError(f"last_steps must be at least 1, got {self.last_steps}")

    @classmethod
    def of(
        cls,
        num_layers: int,
        max_steps: int,
        layers: Iterable[int] | None = None,
        steps: Iterable[int] | None = None,
        last_steps: int | None = None,
    ) -> "Grid":
        """The grid for a run, by default that of the paper, scaled to the run.

        Args:
            num_layers: of the encoder.
            max_steps: of the run.

        Raises:
            ValueError: naming what does not fit the run.
        """
        every = max(1, max_steps // NUM_INTERVALS)
        grid = cls(
            tuple(layers or sorted({max(1, round(share * num_layers)) for share in LAYER_SHARES})),
            tuple(steps or range(every, NUM_INTERVALS * every, every)),
            last_steps or max(1, round(LAST_SHARE * max_steps)),
        )
        if not 0 <= grid.layers[0] <= grid.layers[-1] <= num_layers:
            raise ValueError(f"layers must be from 0 to {num_layers}, those of the encoder, got {list(grid.layers)}")
        latest = max_steps - grid.last_steps
        if not 1 <= grid.steps[0] <= grid.steps[-1] <= latest:
            raise ValueError(
                f"steps must be from 1 to {latest}, as the loss is averaged over the last {grid.last_steps} of "
                f"{max_steps} steps, got {list(grid.steps)}: freeze earlier, or set fewer last_steps"
            )
        return grid

    def points(self) -> list[tuple[int, int]]:
        """(layers, step) of every branch."""
        return [(layers, step) for layers in self.layers for step in self.steps]


def final_loss(rows: list[dict], max_steps: int, last_steps: int) -> float:
    """The mean loss over the last steps of a run (LayerLock, A.1).

    Args:
        rows: of its log, one per step.

    Raises:
        ValueError: if a step is missing.
    """
    losses = {row["step"]: row["loss"] for row in rows if row["step"] > max_steps - last_steps}
    if sorted(losses) != list(range(max_steps - last_steps + 1, max_steps + 1)):
        raise ValueError(
            f"the log must hold every one of the last {last_steps} steps up to {max_steps}, got {len(losses)}: train "
            "with logging_steps 1, to the end"
        )
    return statistics.fmean(losses.values())


def converged_at(deviations: Mapping[int, float], threshold: float) -> int | None:
    """The earliest step from which on, as far as was looked, freezing costs less than the threshold; None if none.

    Args:
        deviations: in per cent, by the step of freezing.
        threshold: in per cent.
    """
    found = None
    for step in sorted(deviations, reverse=True):
        if not deviations[step] < threshold:
            break
        found = step
    return found


def rank_correlation(first: list[float], second: list[float]) -> float | None:
    """Spearman's, of which infinity is the highest rank; None where it has no value, as one of them is constant."""
    from scipy.stats import rankdata, spearmanr

    if min(len(set(first)), len(set(second))) < 2:
        return None
    return float(spearmanr(rankdata(first), rankdata(second)).statistic)


def check_scipy():
    """Raise `PackageUnusable` where SciPy, which ranks are left to, cannot be imported."""
    with importing("scipy", "rank correlations", "analysis"):
        import scipy.stats  # noqa: F401


def summarise_convergence(
    baseline_loss: float, losses: Mapping[tuple[int, int], float], threshold: float = THRESHOLD
) -> dict:
    """Deviations, the steps at which layers have converged, and how both go with depth.

    Args:
        baseline_loss: final loss of the run that is never frozen.
        losses: final losses by (layers, step).
        threshold: deviation in per cent below which layers have converged.

    Returns:
        `points` (rows of `layers`, `step`, `loss`, `deviation_percent`); `converged` (rows of `layers`, `step`, None
        where they never have); `step_correlation`, of depth and step of convergence, where what never converges comes
        last; `deviation_correlation`, of depth and deviation, the mean over the steps, which needs no threshold.
        Controls with 0 layers count in neither correlation.
    """
    points = [
        {
            "layers": layers,
            "step": step,
            "loss": loss,
            "deviation_percent": 100 * (loss - baseline_loss) / baseline_loss,
        }
        for (layers, step), loss in sorted(losses.items())
    ]
    converged = [
        {"layers": layers, "step": converged_at(deviations_of(points, layers), threshold)}
        for layers in sorted({point["layers"] for point in points})
    ]
    frozen = [row for row in converged if row["layers"]]
    steps = [math.inf if row["step"] is None else row["step"] for row in frozen]
    by_step = []
    for step in sorted({point["step"] for point in points}):
        own = [point for point in points if point["step"] == step and point["layers"]]
        by_step.append(rank_correlation([one["layers"] for one in own], [one["deviation_percent"] for one in own]))
    by_step = [value for value in by_step if value is not None]
    return {
        "baseline_loss": baseline_loss,
        "threshold_percent": threshold,
        "points": points,
        "converged": converged,
        "step_correlation": rank_correlation([row["layers"] for row in frozen], steps),
        "deviation_correlation": statistics.fmean(by_step) if by_step else None,
    }


def deviations_of(points: list[dict], layers: int) -> dict[int, float]:
    """Deviations in per cent by the step of freezing, of so many frozen layers."""
    return {point["step"]: point["deviation_percent"] for point in points if point["layers"] == layers}
