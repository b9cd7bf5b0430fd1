"""The picture of what a run costs: the right half of Fig. 3 of the LayerLock paper, from counts."""

import math
from itertools import accumulate
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from .step_axis import count_steps


RUN_COLOUR, UNFROZEN_COLOUR, MAE_COLOUR, BORDER_COLOUR = "#1f77b4", "#d1495b", "#4c566a", "#c4c8d0"
MAX_LABELS = 12  # of stages, above the plot


@matplotlib.rc_context({"font.size": 14, "axes.spines.top": False, "axes.spines.right": False})
def plot_cost(plan: dict, path: Path):
    """Operations so far over the steps: of the run, of the same without its freezing, and of MAE on all patches."""
    stages, steps = plan["stages"], [0, *accumulate(stage["num_steps"] for stage in plan["stages"])]
    exponent = math.floor(math.log10(max(plan[name] for name in plan if name.startswith("total_flops"))))
    unit = 10.0**exponent
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    axes = figure.subplots()
    for stage in stages[1:]:
        axes.axvline(stage["start"], color=BORDER_COLOUR, linewidth=1, zorder=0)
    others = {"the same recipe without freezing": (plan["total_flops_unfrozen"], UNFROZEN_COLOUR, "--")}
    others["MAE on all patches"] = (plan["total_flops_mae"], MAE_COLOUR, ":")
    own = [0, *(stage["cumulative_flops"] / unit for stage in stages)]
    axes.plot(steps, own, color=RUN_COLOUR, linewidth=3, label=f"{plan['recipe']}: {own[-1]:.2f}")
    for name, (total, colour, style) in others.items():
        label = f"{name}: {total / unit:.2f}"
        axes.plot([0, steps[-1]], [0, total / unit], style, color=colour, linewidth=2.5, label=label)
    if len(stages) > 1:
        axes.plot([], [], color=BORDER_COLOUR, linewidth=1, label="a stage begins")
    axes.legend(loc="upper left", framealpha=0.95, title=f"in all, in $10^{{{exponent}}}$ FLOP", alignment="left")
    axes.set_xlabel("step of the optimizer")
    axes.set_ylabel(f"operations so far, in $10^{{{exponent}}}$ FLOP")
    axes.set(xlim=(0, steps[-1]), ylim=(0, None))
    count_steps(axes.xaxis)
    _name_stages(axes, [stage for stage in stages if stage["num_steps"]])
    figure.suptitle(f"{plan['recipe']}: what training costs, counted and not measured", fontsize=17)
    figure.savefig(path, dpi=110)


def _name_stages(axes, stages: list[dict]):
    """How many layers are frozen, above the first, the last and some of the stages in between."""
    first, *others = stages
    every = math.ceil(len(others) / MAX_LABELS) or 1
    shown = [first, *others[::every]]
    if stages[-1] not in shown:
        shown[-1] = stages[-1]
    top = axes.secondary_xaxis("top")
    top.set_xticks([stage["start"] for stage in shown], [str(stage["num_frozen"]) for stage in shown])
    top.set_xlabel("layers frozen from here on")
    top.spines["top"].set_visible(False)
