"""The picture of when layers have settled."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure


PANELS = {
    "projected_drift": ("drift", "change of what a layer represents\nuntil the end (1 - CKA), projected"),
    "projected_growth": ("growth", "growth of the norm of its weights\nuntil the end, projected"),
    "norm": (None, "norm of its weights,\nas a share of the last"),
}
LIMIT_COLOUR, FREEZE_COLOUR = "#222222", "#c4c8d0"
FLOOR = 1e-4  # of the drift that is drawn


@matplotlib.rc_context({"font.size": 13, "axes.spines.top": False, "axes.spines.right": False})
def plot_plateau(summary: dict, title: str, path: Path):
    """Drift, growth and norm of every layer over the steps, with the limits of the rule and the proposed freezings."""
    layers = [one["layer"] for one in summary["settled"]]
    colours = matplotlib.colormaps["viridis"]
    figure = Figure(figsize=(11, 13), layout="constrained")
    for axes, (name, (limit, label)) in zip(figure.subplots(3, sharex=True), PANELS.items(), strict=True):
        for layer in layers:
            rows = [row for row in summary["rows"] if row["layer"] == layer]
            scale = rows[-1]["norm"] if name == "norm" else 1.0
            values = [max(row[name] / scale, FLOOR) if limit == "drift" else row[name] / scale for row in rows]
            colour = colours(0.92 * (layer - 1) / max(1, len(layers) - 1))
            axes.plot([row["step"] for row in rows], values, "o-", color=colour, markersize=4, label=f"layer {layer}")
        if limit is not None:
            axes.axhline(summary["limits"][limit], color=LIMIT_COLOUR, linestyle="--", linewidth=1.5)
            axes.annotate(
                f"settled below {summary['limits'][limit]:g}",
                (0.995, summary["limits"][limit]),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
            )
        if limit == "drift":
            axes.set_yscale("log")
        for step, _ in freezings(summary["schedule"]):
            axes.axvline(step, color=FREEZE_COLOUR, linewidth=2, zorder=0)
        axes.set_ylabel(label)
    handles, names = axes.get_legend_handles_labels()
    if summary["schedule"] is not None:
        handles += axes.plot([], [], color=FREEZE_COLOUR, linewidth=2)
        names.append("proposed freezing")
    figure.legend(handles, names, loc="outside right upper", frameon=False)
    axes.set_xlabel("step of the optimizer")
    axes.set_xlim(0, summary["max_steps"])
    figure.suptitle(title, fontsize=15)
    figure.savefig(path, dpi=100)


def freezings(schedule: dict | None) -> list[tuple[int, int]]:
    """(step, layer) of each freezing that is proposed."""
    if schedule is None:
        return []
    start, interval = schedule["freeze_start"], schedule["freeze_interval"]
    return [(start + index * interval, index + 1) for index in range(schedule["num_freezes"])]
