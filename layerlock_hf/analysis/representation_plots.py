"""The pictures of `layerlock analyze representations`: measures over depth, and CKA of all depths with all."""

import itertools
import math
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..evaluation.probe_plots import ENCODER_COLOURS
from .measures import MEASURES


NUM_COLUMNS = 4
MARKERS = "osD^vP"
MAX_SHOWN = 8  # models in a picture of pairs
CHANCE_COLOUR = "#777777"
STYLE = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False}


@matplotlib.rc_context(STYLE)
def plot_depths(rows: list[dict], chance: dict[str, float], is_sequence: bool, path: Path):
    """A panel per measure over the depth, a line per model, and dashes for what knows nothing.

    Args:
        rows: "model", "depth", "measure", "value".
        chance: by measure.
        is_sequence: whether the models are one after the other, so that their colours are.
        path: of the picture.
    """
    names = list(dict.fromkeys(row["model"] for row in rows))
    measures = [name for name in MEASURES if any(row["measure"] == name for row in rows)]
    colours = [ENCODER_COLOURS[place % len(ENCODER_COLOURS)] for place in range(len(names))]
    if is_sequence:
        colours = colormaps["viridis"](np.linspace(0, 0.9, len(names)))  # without the palest end
    num_columns = min(NUM_COLUMNS, len(measures))
    num_rows = -(-len(measures) // num_columns)
    legend_rows = -(-(len(names) + 1) // (2 * num_columns))
    figure = Figure(figsize=(3.9 * num_columns, 2.9 * num_rows + 0.5 + 0.3 * legend_rows), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False)
    for axes, measure in zip(panels.flat, measures, strict=False):
        for name, colour, marker in zip(names, colours, itertools.cycle(MARKERS)):  # noqa: B905
            own = [row for row in rows if (row["model"], row["measure"]) == (name, measure)]
            points = [(row["depth"], row["value"]) for row in own]
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=4.5, label=name, alpha=0.9)
        if not math.isnan(chance.get(measure, math.nan)):
            axes.axhline(chance[measure], color=CHANCE_COLOUR, linestyle="--", linewidth=1.3, label="chance")
        low, high = axes.dataLim.intervaly
        if 0 <= low < 0.5 * high:  # what fills less than half of an axis from 0 would not be seen on it
            axes.set_ylim(bottom=0)
        axes.set_title(MEASURES[measure].title, fontsize=11, loc="left", weight="bold")
        axes.set_ylabel(MEASURES[measure].axis)
        axes.set_xlabel("layers passed")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    for axes in panels.flat[len(measures) :]:
        axes.axis("off")
    labelled = [pair for axes in panels.flat for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    handles = {label: handle for handle, label in labelled}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=2 * num_columns, frameon=False)
    figure.savefig(path, dpi=110)


@matplotlib.rc_context(STYLE)
def plot_similarities(tables: list[dict], title: str, path: Path):
    """CKA of every depth with every depth: of each model with itself on the diagonal, and of each pair below it.

    Args:
        tables: {"models": (first, second), "depths": those of each, "values"} of every model and pair.
        title: what is shown.
        path: of the picture. Of many models it shows `MAX_SHOWN`, the first, the last and some between.
    """
    names = list(dict.fromkeys(table["models"][0] for table in tables))
    places = np.unique(np.linspace(0, len(names) - 1, min(MAX_SHOWN, len(names))).round().astype(int))
    shown = [names[place] for place in places]
    note = f", {len(shown)} of {len(names)} models" if len(shown) < len(names) else ""
    tables = [table for table in tables if set(table["models"]) <= set(shown)]
    values = np.concatenate([np.ravel(table["values"]) for table in tables])
    lowest = np.min(values, where=np.isfinite(values), initial=0.9)
    limits = {"vmin": math.floor(10 * lowest) / 10, "vmax": 1}
    colours = colormaps["viridis"].with_extremes(bad="#e6e6e6")
    side = 4.2 if len(shown) == 1 else max(1.9, 3.2 - 0.2 * len(shown))
    figure = Figure(figsize=(side * len(shown) + 1.5, side * len(shown) + 0.9), layout="constrained")
    panels = figure.subplots(len(shown), len(shown), squeeze=False)
    for axes in panels.flat:
        axes.axis("off")
    for table in tables:
        column, row = (shown.index(name) for name in table["models"])
        axes = panels[row, column]
        axes.axis("on")
        axes.spines[:].set_visible(False)
        image = axes.imshow(np.array(table["values"]).T, origin="lower", cmap=colours, **limits)
        for depths, set_ticks in zip(table["depths"], (axes.set_xticks, axes.set_yticks), strict=True):
            step = max(1, math.ceil(len(depths) / 7))
            set_ticks(range(0, len(depths), step), depths[::step], fontsize=9)
        if row == len(shown) - 1:
            axes.set_xlabel(f"{shown[column]}\nlayers passed")
        if column == 0:
            axes.set_ylabel(f"{shown[row]}\nlayers passed")
    figure.colorbar(image, ax=panels, label="CKA", shrink=0.7)
    figure.suptitle(f"{title}{note}", fontsize=13)
    figure.savefig(path, dpi=110)
