"""The scores of `layerlock probe` as a picture and as a table."""

import itertools
import textwrap
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..evaluation import RUNGS, Rung
from .ladder import ATTENTION


ENCODER_COLOURS = ("#d1495b", "#1f77b4", "#2a9d8f", "#b07d00", "#7b4fa3")
CONTROL_COLOUR = "#c3c9d2"
INK = "#2e3440"
EDGE = "#8a93a3"
HATCHES = {"ceiling": "///"}
ONE_FRAME = "_one_frame"
CONSTANT = "constant"
# Names of `layerlock probe` that are not those of models
CONTROLS = {
    "random": "random weights",
    "differences": "frame differences",
    CONSTANT: "constant answer",
    "ceiling": "trained with labels",
}
ENCODERS = {"layerlock": "LayerLock", "mae": "plain MAE"}
# Metric -> how it is called, how it is written, and the axis that shows all its values
METRICS = {
    "accuracy": ("accuracy", "{:.0%}", (0, 1)),
    "r2": ("share of the variance explained, R²", "{:.2f}", (0, 1)),
    "abs_rel": ("error over distance, AbsRel", "{:.3f}", None),
}
AXIS_PATTERNS = {"accuracy": "{:.0%}", "r2": "{:g}", "abs_rel": "{:g}"}
# Last line of the head of a column of the table
COLUMNS = {
    ("easy", "r2"): "R2",
    ("easy", "accuracy"): "accuracy",
    ("full", "accuracy"): "accuracy",
    ("full", "abs_rel"): "AbsRel, low is good",
}
NAME_WIDTH, COLUMN_WIDTH = 22, 15


def title_of(name: str) -> str:
    if name.endswith(ONE_FRAME):
        return f"{title_of(name.removesuffix(ONE_FRAME))}, one frame"
    return CONTROLS.get(name) or ENCODERS.get(name, name)


def is_control(name: str) -> bool:
    return name in CONTROLS or name.endswith(ONE_FRAME)


def shown_rungs(scores: dict[str, dict]) -> list[tuple[Rung, str]]:
    """The rungs that anything has a score on, with the metric to show."""
    pairs = [(rung, rung.metrics[0]) for rung in RUNGS]
    return [(rung, metric) for rung, metric in pairs if any(f"{rung.name}_{metric}" in row for row in scores.values())]


def print_probes(scores: dict[str, dict]):
    """A table: a row per encoder and control, a column per rung, ridge above attention."""
    rungs = shown_rungs(scores)
    heads = [
        [*textwrap.wrap(rung.title, COLUMN_WIDTH - 2), *textwrap.wrap(COLUMNS[rung.scenes, metric], COLUMN_WIDTH - 2)]
        for rung, metric in rungs
    ]
    print("\nTest scores, ± half of the 95% interval over videos; by ridge and, indented, by a readout by attention.")
    for line in range(-max(map(len, heads)), 0):
        cells = (head[line] if -line <= len(head) else "" for head in heads)
        print(" " * NAME_WIDTH + "".join(cell.rjust(COLUMN_WIDTH) for cell in cells))
    for name in sorted(scores, key=is_control):
        row = scores[name]
        for ending, start in (("", title_of(name)), (ATTENTION, "  by attention")):
            keys = [f"{rung.name}_{metric}{ending}" for rung, metric in rungs]
            if any(key in row for key in keys):
                cells = [_cell(row, key, metric) for key, (_, metric) in zip(keys, rungs, strict=True)]
                print(start.ljust(NAME_WIDTH) + "".join(cell.rjust(COLUMN_WIDTH) for cell in cells))


def _written(value: float, pattern: str) -> str:
    text = pattern.format(value)
    return text if text.strip("-0.%") else text.removeprefix("-")


def _cell(row: dict, key: str, metric: str) -> str:
    if key not in row:
        return ""
    pattern = METRICS[metric][1]
    text = _written(row[key], pattern)
    if key in row.get("intervals", {}):
        low, high = row["intervals"][key]
        text += f" ± {pattern.format((high - low) / 2)}"
    return text


@matplotlib.rc_context({"font.size": 13, "axes.spines.top": False, "axes.spines.right": False})
def plot_probes(scores: dict[str, dict], path: Path):
    """A panel per rung, a row per encoder and control: bars for ridge, diamonds for attention, lines for intervals."""
    rungs = shown_rungs(scores)
    # The constant answer is no row but the line that all others are compared to
    names = [name for name in sorted(scores, key=is_control) if name != CONSTANT]
    colours = dict(zip((name for name in names if not is_control(name)), itertools.cycle(ENCODER_COLOURS)))  # noqa: B905
    places = _places(names)
    columns = min(3, len(rungs))
    num_rows = -(-len(rungs) // columns)
    height = num_rows * (1.5 + 0.4 * places[names[-1]]) + 2.2
    figure = Figure(figsize=(5.2 * columns + 2.2, height))
    panels = figure.subplots(num_rows, columns, squeeze=False)
    for number, (axes, (rung, metric)) in enumerate(zip(panels.flat, rungs)):  # noqa: B905
        _draw_panel(axes, scores, names, places, colours, rung, metric)
        goal = " (shorter is better)" if metric == "abs_rel" else ""
        axes.set_title(f"{number + 1}. {rung.title}{goal}", fontsize=15, weight="bold", loc="left", pad=8)
        if number % columns:
            axes.set_yticklabels([])
    for axes in panels.flat[len(rungs) :]:
        axes.axis("off")
    figure.suptitle("What frozen features know: scores on test videos", fontsize=20, x=0.02, y=0.99, ha="left")
    figure.legend(handles=_legend(), loc="lower center", ncols=3, frameon=False)
    figure.tight_layout(rect=(0, 0.8 / height, 1, 1 - 0.1 / height), h_pad=2, w_pad=2)
    figure.savefig(path, dpi=110)


def _places(names: list[str]) -> dict[str, float]:
    """Where rows lie, from the top, with a gap between encoders and controls."""
    return {name: index + 0.6 * is_control(name) for index, name in enumerate(names)}


def _draw_panel(axes, scores, names, places, colours, rung: Rung, metric: str):
    label, pattern, limits = METRICS[metric]
    key = f"{rung.name}_{metric}"
    values = [row[key + ending] for row in scores.values() for ending in ("", ATTENTION) if key + ending in row]
    low, high = limits or (0, 1.12 * max(values))
    for name in names:
        row, place, colour = scores[name], places[name], colours.get(name, CONTROL_COLOUR)
        if key in row:
            axes.barh(
                place,
                max(row[key], low) - low,
                left=low,
                height=0.72,
                color=colour,
                hatch=HATCHES.get(name),
                ec=EDGE,
                lw=0,
                zorder=2,
            )
            _draw_interval(axes, row, key, place + 0.14, low)
        if key + ATTENTION in row:
            value = max(row[key + ATTENTION], low)
            _draw_interval(axes, row, key + ATTENTION, place - 0.18, low)
            axes.plot(value, place - 0.18, "D", color="white", mec=INK, mew=1.5, markersize=7, zorder=4, clip_on=False)
        if key in row:
            axes.text(1.02, place, _written(row[key], pattern), transform=axes.get_yaxis_transform(), va="center")
    if key in scores.get(CONSTANT, {}):
        constant = scores[CONSTANT][key]
        axes.axvline(max(constant, low), color=INK, linestyle=(0, (4, 3)), linewidth=1.5, zorder=3)
    axes.set_xlim(low, high)
    axes.set_ylim(places[names[-1]] + 0.7, -0.7)
    axes.set_yticks([places[name] for name in names], [title_of(name) for name in names])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.3, zorder=0)
    axes.xaxis.set_major_formatter(lambda value, _: AXIS_PATTERNS[metric].format(value))
    axes.set_xlabel(label, color="#555555")


def _draw_interval(axes, row: dict, key: str, place: float, low: float):
    if key in row.get("intervals", {}):
        edges = [max(edge, low) for edge in row["intervals"][key]]
        axes.plot(edges, [place, place], color=INK, linewidth=1.6, solid_capstyle="butt", zorder=3)


def _legend() -> list:
    return [
        Patch(color=ENCODER_COLOURS[0], label="bar, and value at the right: read by ridge regression"),
        Line2D([], [], color=INK, marker="D", mfc="white", mew=1.5, label="diamond: by a trained attention readout"),
        Patch(color=CONTROL_COLOUR, label="grey: controls (hatched: the ceiling)"),
        Line2D([], [], color=INK, linewidth=1.6, label="line: 95% interval over videos"),
        Line2D([], [], color=INK, linestyle=(0, (4, 3)), label="dashes: chance, a constant answer"),
    ]
