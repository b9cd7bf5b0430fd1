"""The picture of ordered convergence: Fig. 1 of the LayerLock paper."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from .convergence import deviations_of
from .step_axis import count_steps


@matplotlib.rc_context({"font.size": 14, "axes.spines.top": False, "axes.spines.right": False})
def plot_convergence(results: dict, path: Path):
    """Deviation from the loss of the run that is never frozen, over the step of freezing, a curve per depth.

    Args:
        results: as `summarise_convergence` returns them, with `recipe`, `max_steps` and `last_steps`.
    """
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="#4c566a", linewidth=1.5, label=f"never frozen: loss {results['baseline_loss']:.4g}")
    threshold = results["threshold_percent"]
    axes.axhline(threshold, color="#777777", linewidth=1.2, linestyle=":", label=f"limit: {threshold:g}%")
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(results["converged"])))  # without the palest end
    for row, colour in zip(results["converged"], colours, strict=True):
        deviations = deviations_of(results["points"], row["layers"])
        has_converged = [row["step"] is not None and step >= row["step"] for step in deviations]
        label = f"L = {row['layers']}: " + (f"step {row['step']:,}" if row["step"] else "not within the grid")
        axes.plot(deviations.keys(), deviations.values(), color=colour, linewidth=2.2, marker="o", label=label)
        hollow = [point for point, inside in zip(deviations.items(), has_converged, strict=True) if not inside]
        if hollow:
            axes.plot(*zip(*hollow, strict=True), "o", color=colour, markerfacecolor="white", markersize=8)
    axes.legend(
        loc="upper right", framealpha=0.95, title="L layers have converged at\n(filled marks)", alignment="left"
    )
    axes.set_xlabel("step T at which the layers are frozen")
    axes.set_ylabel("deviation of the final loss from that\nof the run that is never frozen, in %")
    count_steps(axes.xaxis)
    axes.grid(axis="y", alpha=0.3)
    figure.suptitle(
        f"{results['recipe']}: the first L layers frozen at step T, then trained on to step {results['max_steps']:,}",
        fontsize=16,
    )
    correlation = results["step_correlation"]
    told = "not defined" if correlation is None else f"{correlation:.2f}"
    axes.set_title(
        f"loss: mean of the last {results['last_steps']:,} steps; rank correlation of depth and step of convergence: "
        f"{told}",
        fontsize=12,
    )
    figure.savefig(path, dpi=110)
