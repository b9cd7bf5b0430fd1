"""The picture of a run's health: its curves over the steps, with the borders of its stages."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .health_rules import MAX_WAIT, MIN_CONTENT
from .stage_logs import CONTENT, EFFECTIVE_RANK, EXPLAINED_VARIANCE, StageLog, loss_rows, stage_logs
from .step_axis import count_steps


BORDER_COLOUR, LIMIT_COLOUR = "#c4c8d0", "#d1495b"
LOWEST_SHOWN = -1.0  # explained variance: what lies below is far off, and would flatten the rest
MAX_NAMED = 12  # curves in a legend
MAX_MARKS = 60  # points of a curve that are marked


@dataclass(frozen=True)
class Panel:
    """Curves of one quantity.

    Attributes:
        name: of the quantity in the log, the part after the last slash.
        title: of the axis, with the unit.
        is_log: whether the axis is logarithmic.
        limits: of the axis; None for those of the curves.
        threshold: of trouble, drawn as a line, if there is one.
    """

    name: str
    title: str
    is_log: bool = False
    limits: tuple[float, float] | None = None
    threshold: float | None = None


PANELS = (
    Panel(EXPLAINED_VARIANCE, "explained variance\n(share)", limits=(LOWEST_SHOWN, 1)),
    Panel("target_variance", "variance of the target\n(squared units of it)", is_log=True),
    Panel("grad_norm", "gradient norm\n(before clipping)", is_log=True),
    Panel(EFFECTIVE_RANK, "effective rank\nof features", limits=(0, None)),
    Panel(CONTENT, "share of features'\nvariance between clips", limits=(0, 1), threshold=MIN_CONTENT),
    Panel("data_wait_fraction", "waiting for data\n(share of the time)", limits=(0, 1), threshold=MAX_WAIT),
)


@matplotlib.rc_context({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False})
def plot_health(rows: list[dict], stages: list[dict], max_steps: int, path: Path):
    """Everything that verdicts rest on, over the steps.

    Args:
        rows: lines of the log.
        stages: rows of `stages.json`.
        max_steps: of the run.
    """
    logs = stage_logs(loss_rows(rows), stages, max_steps)
    panels = [panel for panel in PANELS if any(log.names(panel.name) for log in logs)]
    figure = Figure(figsize=(12, 2.1 * len(panels) + 0.8), layout="constrained")
    subplots = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, panel in zip(subplots, panels, strict=True):
        _draw(axes, panel, logs)
        for log in logs[1:]:
            axes.axvline(log.start, color=BORDER_COLOUR, linewidth=1.2, linestyle="--", zorder=0)
    subplots[-1].set_xlabel("step of the optimizer")
    subplots[-1].set_xlim(0, max_steps)
    count_steps(subplots[-1].xaxis)
    borders = "; dashed: a stage begins" if len(logs) > 1 else ""
    low = f" Explained variance below {LOWEST_SHOWN:g} is drawn at {LOWEST_SHOWN:g}." if _is_cut(logs) else ""
    figure.suptitle(f"Up to step {logs[-1].rows[-1]['step']:,} of {max_steps:,}{borders}.{low}", fontsize=13)
    figure.savefig(path, dpi=110)


def _draw(axes: Axes, panel: Panel, logs: list[StageLog]):
    names = dict.fromkeys(name for log in logs for name in log.names(panel.name))
    curves = {name: points for name in names if (points := list(_curve(logs, name)))}
    for colour, (name, points) in zip(_colours(len(curves)), curves.items(), strict=True):
        steps, values = zip(*points, strict=True)
        if panel.name == EXPLAINED_VARIANCE:
            values = [max(value, LOWEST_SHOWN) if math.isfinite(value) else value for value in values]
        label = name.rpartition("/")[0].replace("_", " ").replace("/", ": ") or None
        marker = "o" if len(points) < MAX_MARKS else None
        axes.plot(steps, values, color=colour, linewidth=1.8, marker=marker, markersize=3, label=label)
    if panel.threshold is not None:
        axes.axhline(panel.threshold, color=LIMIT_COLOUR, linewidth=1.2, linestyle=":", label="limit")
    if panel.is_log:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        if high < 10 * low:  # else the scatter of what stays the same would fill the panel
            axes.set_ylim(math.sqrt(low * high / 10), math.sqrt(low * high * 10))
    if panel.limits is not None:
        axes.set_ylim(*panel.limits)
    axes.set_ylabel(panel.title)
    axes.grid(axis="y", alpha=0.3)
    if axes.get_legend_handles_labels()[1] and len(curves) <= MAX_NAMED:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=10)


def _curve(logs: list[StageLog], name: str) -> Iterator[tuple[int, float]]:
    """Points of all stages, with a gap where a stage begins, if the quantity has the same name in both."""
    for log in logs:
        series = log.series(name)
        if series:
            yield from series.items()
            yield log.end, math.nan


def _is_cut(logs: list[StageLog]) -> bool:
    return any(
        value < LOWEST_SHOWN
        for log in logs
        for label in log.labels
        for value in log.series(f"{label}/{EXPLAINED_VARIANCE}").values()
    )


def _colours(number: int):
    return colormaps["viridis"]([0.85 * place / max(1, number - 1) for place in range(number)])
