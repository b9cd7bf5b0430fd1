"""The pictures of `layerlock readout`: the sweep, its curves, the confusion matrix, and depth beside the truth."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter

from ..models.modeling_layerlock_readout import MAX_DEPTH, is_known_depth
from .metrics import MEASURES


BEST_COLOUR = "#d1495b"
UNKNOWN_COLOUR = "#b9b9b9"
MAX_POINTS = 80  # of a curve; steps between are averaged
MAX_CLASSES_WITH_NUMBERS, MAX_CLASSES_WITH_NAMES = 16, 60
MAX_NAME, MAX_NAME_IN_LIST = 24, 46  # characters of a class
NUM_CONFUSIONS = 15
FRAME_INCHES = 1.5
MAX_RELATIVE_ERROR = 0.5


@dataclass(frozen=True)
class Shown:
    """How a metric is written: its name, a factor, decimals."""

    name: str
    factor: float
    num_decimals: int

    def text(self, value: float) -> str:
        return f"{self.factor * value:.{self.num_decimals}f}"


SHOWN = {
    "top1": Shown("top-1 accuracy (%)", 100, 1),
    "top5": Shown("top-5 accuracy (%)", 100, 1),
    "mean_class_accuracy": Shown("mean accuracy of classes (%)", 100, 1),
    "abs_rel": Shown("AbsRel", 1, 3),
    "delta1": Shown("delta < 1.25 (%)", 100, 1),
    "rmse": Shown("RMSE (m)", 1, 3),
}
# What else was asked of the features, without an interval: key in `probes` of results.json, name, colour, marker
PROBES = (("knn_top1", "k-NN", "#3f7d58", "x"), ("ridge_top1", "ridge", "#5b6abf", "+"))


def plot_sweep(results: dict, path: Path):
    """The main metric of every member of a sweep, learning rate by depth, the best framed; and the best of each depth.

    Where probes looked at the same depths, they stand beside the best.
    """
    task = MEASURES[results["task"]]
    shown = SHOWN[task.main_metric]
    depths = sorted({row["depth"] for row in results["members"]})
    rates = sorted({row["learning_rate"] for row in results["members"]})
    fractions = {row["depth"]: row["depth_fraction"] for row in results["members"]}
    values = np.full((len(rates), len(depths)), np.nan)
    has_member = np.zeros_like(values, dtype=bool)
    for row in results["members"]:
        place = rates.index(row["learning_rate"]), depths.index(row["depth"])
        has_member[place] = True
        value = row["metrics"][task.main_metric]
        values[place] = np.nan if value is None else shown.factor * value
    colours = colormaps["viridis" if task.is_higher_better else "viridis_r"].with_extremes(bad="#e6e6e6")
    heights = 0.75 * len(rates), 2.1
    figure = Figure(figsize=(2.9 + 1.05 * len(depths), 2.4 + sum(heights)), layout="constrained")
    axes, lines = figure.subplots(2, 1, height_ratios=heights, sharex=True)
    image = axes.imshow(values, cmap=colours, aspect="auto", origin="lower", norm=_norm(values, results))
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            red, green, blue, _ = colours(image.norm(value))
            colour = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"
            axes.text(j, i, shown.text(value / shown.factor), ha="center", va="center", color=colour, fontsize=12)
        elif has_member[i, j]:
            axes.text(j, i, "diverged", ha="center", va="center", color="#666666", fontsize=9)
    best = results["best"]
    corner = depths.index(best["depth"]) - 0.47, rates.index(best["learning_rate"]) - 0.47
    axes.add_patch(Rectangle(corner, 0.94, 0.94, fill=False, edgecolor=BEST_COLOUR, linewidth=3.5))
    axes.set_yticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    axes.set_ylabel("learning rate")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    chosen = "" if best["is_chosen_on"] == "test" else f", chosen on {best['is_chosen_on']} items"
    axes.set_title(
        f"{_short(results['model'], 60)} on {results['dataset']}\nbest framed: "
        f"{shown.name} {shown.text(best['metrics'][task.main_metric]['value'])}{chosen}",
        fontsize=12,
    )
    figure.colorbar(image, ax=axes, label=shown.name, pad=0.02)
    _plot_depths(results, depths, lines)
    lines.set_xticks(range(len(depths)), [f"{depth}\n({fractions[depth]:.2g})" for depth in depths])
    lines.set_xlabel("layers before the readout (share asked for)")
    figure.savefig(path, dpi=110)


def _norm(values: np.ndarray, results: dict) -> Normalize:
    """A scale of colours that does not blow up differences which are within the interval of the best member."""
    metric = MEASURES[results["task"]].main_metric
    interval = results["best"]["metrics"][metric]
    finite = values[np.isfinite(values)]
    least = SHOWN[metric].factor * (interval["high"] - interval["low"])
    spare = max(0.0, least - (finite.max() - finite.min())) / 2
    return Normalize(finite.min() - spare, finite.max() + spare)


def _plot_depths(results: dict, depths: list[int], axes):
    """The best readout of each depth with its interval, and what probes say there."""
    metric = MEASURES[results["task"]].main_metric
    shown = SHOWN[metric]
    rows = [row for row in results["per_depth"] if None not in row["metrics"][metric].values()]
    places = [depths.index(row["depth"]) for row in rows]
    value, low, high = (
        shown.factor * np.array([row["metrics"][metric][name] for row in rows]) for name in ("value", "low", "high")
    )
    axes.errorbar(places, value, (value - low, high - value), color=BEST_COLOUR, marker="o", label="best readout")
    probes = results.get("probes", [])
    for name, label, colour, marker in PROBES * bool(probes):
        places = [depths.index(row["depth"]) for row in probes]
        values = [shown.factor * row[name] for row in probes]
        axes.plot(places, values, color=colour, marker=marker, markersize=8, label=label)
    levels = {name: row[metric]["value"] for name, row in results["baselines"].items()}
    if results.get("per_class"):
        levels["chance"] = 1 / len(results["per_class"])
    for (name, level), style in zip(levels.items(), itertools.cycle(("--", "-.", ":"))):
        axes.axhline(
            shown.factor * level, color="#777777", linestyle=style, linewidth=1.2, label=name.replace("_", " ")
        )
    axes.set_ylabel(shown.name)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=10)


def plot_curves(rows: list[dict], task: str, path: Path):
    """Training loss over the steps, a panel per learning rate, a colour per depth; and the main metric where measured.

    Args:
        rows: with "step", "depth", "learning_rate" (the peak that names the member), and "loss" or the main metric of
            the task, or both.
        task: a key of `MEASURES`.
        path: of the picture.

    Raises:
        ValueError: without anything to plot.
    """
    metric = MEASURES[task].main_metric
    steps = {name: {row["step"] for row in rows if row.get(name) is not None} for name in ("loss", metric)}
    # What was measured once is no curve
    lines = [name for name in steps if len(steps[name]) > 1] or [name for name in steps if steps[name]]
    if not lines:
        raise ValueError(f"no row holds loss or {metric}, so there are no curves to plot: log more often")
    depths = sorted({row["depth"] for row in rows})
    rates = sorted({row["learning_rate"] for row in rows})
    # Without the palest end of the map
    colours = dict(zip(depths, colormaps["viridis"](np.linspace(0, 0.9, len(depths))), strict=True))
    figure = Figure(figsize=(1.6 + 4.2 * len(rates), 0.8 + 3.2 * len(lines)), layout="constrained")
    grid = figure.subplots(len(lines), len(rates), sharex=True, sharey="row", squeeze=False)
    for line, panels in zip(lines, grid, strict=True):
        factor = SHOWN[line].factor if line in SHOWN else 1
        for rate, axes in zip(rates, panels, strict=True):
            for depth in depths:
                points = [
                    (row["step"], row[line])
                    for row in rows
                    if (row["depth"], row["learning_rate"]) == (depth, rate) and row.get(line) is not None
                ]
                steps, values = _averaged(np.array(points, dtype=float).reshape(-1, 2))
                marker = "o" if len(steps) < 30 else None
                style = {"color": colours[depth], "linewidth": 1.8, "marker": marker, "markersize": 3.5}
                axes.plot(steps, factor * values, label=str(depth), **style)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel(SHOWN[line].name if line in SHOWN else "training loss (log scale)")
        if line == "loss":
            panels[0].set_yscale("log")
            panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panels[0].yaxis.set_major_formatter("{x:g}")
            panels[0].yaxis.set_minor_formatter(NullFormatter())
    for rate, axes in zip(rates, grid[0], strict=True):
        axes.set_title(f"learning rate {rate:g}", fontsize=12)
    for axes in grid[-1]:
        axes.set_xlabel("step")
    figure.legend(
        *grid[0, 0].get_legend_handles_labels(),
        loc="outside right center",
        title="layers before\nthe readout",
        frameon=False,
    )
    figure.savefig(path, dpi=110)


def _averaged(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `MAX_POINTS` means of neighbouring points (n, 2)."""
    parts = np.array_split(points, min(MAX_POINTS, max(1, len(points))))
    steps, values = np.array([part.mean(axis=0) for part in parts if len(part)]).reshape(-1, 2).T
    return steps, values


def plot_confusion(results: dict, path: Path):
    """Which classes are taken for which, in shares of the true class, and the most frequent mistakes by name."""
    counts = np.array(results["confusion"])
    names = [row["name"] for row in results["per_class"]]
    num = len(names)
    totals = np.array([[row["num"]] for row in results["per_class"]])
    shares = np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    has_names, has_numbers = num <= MAX_CLASSES_WITH_NAMES, num <= MAX_CLASSES_WITH_NUMBERS
    # In inches
    side = float(np.clip(0.62 * num, 3.4, 9.5)) if has_numbers else 9.5
    font_size = float(np.clip(360 / num, 6, 11))
    labels = [_short(name, MAX_NAME) for name in names]
    margin = 0.5 + (0.0085 * font_size * max(map(len, labels)) if has_names else 0.3)
    size = margin + side + 5.6, margin + side + 0.75
    figure = Figure(figsize=size)
    axes = figure.add_axes((margin / size[0], margin / size[1], side / size[0], side / size[1]))
    # Few of many classes are a class's share of mistakes: the root lets them be seen
    norm = Normalize(0, 1) if has_numbers else PowerNorm(0.5, 0, 1)
    colours = colormaps["Blues"].with_extremes(bad="#e6e6e6")
    image = axes.imshow(shares, cmap=colours, norm=norm, interpolation="nearest")
    if has_numbers:
        for (i, j), count in np.ndenumerate(counts):
            if count:
                axes.text(j, i, count, ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black")
    if has_names:
        axes.set_xticks(range(num), labels, rotation=90, fontsize=font_size)
        axes.set_yticks(range(num), labels, fontsize=font_size)
        axes.tick_params(length=0)
    note = "" if has_names else " (place in the list of classes)"
    axes.set_xlabel(f"predicted class{note}")
    axes.set_ylabel(f"true class{note}")
    title = f"{_short(results['model'], 44)} on {results['dataset']}: "
    title += f"{SHOWN['top1'].text(results['best']['metrics']['top1']['value'])}% of {totals.sum()} videos are right"
    figure.text(0.2 / size[0], 1 - 0.42 / size[1], title, fontsize=13)
    bar = figure.add_axes(((margin + side + 0.12) / size[0], margin / size[1], 0.16 / size[0], side / size[1]))
    figure.colorbar(image, cax=bar, label="share of the true class")

    in_list = [_short(name, MAX_NAME_IN_LIST) for name in names]
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[: min(NUM_CONFUSIONS, int(2.5 * side) - 1)]
    lines = [
        f"{in_list[i]}\n    as {in_list[j]}: {wrong[i, j]} of {totals[i, 0]}"
        for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[i, j]
    ]
    left, top = (margin + side + 1.15) / size[0], (margin + side) / size[1]
    figure.text(left, top, "Most frequent mistakes" if lines else "No mistakes", va="top", weight="bold", fontsize=11)
    figure.text(left, top - 0.28 / size[1], "\n".join(lines), va="top", fontsize=9, linespacing=1.3)
    figure.savefig(path, dpi=110)


def _short(name: str, length: int) -> str:
    """The name without its middle, since either end may be what tells it; dollars would begin a formula."""
    end = length // 3
    short = name if len(name) <= length else f"{name[: length - end - 3]}...{name[-end:]}"
    return short.replace("$", r"\$")


@dataclass(frozen=True)
class DepthClip:
    """A clip with its depth.

    Args:
        name: of the sequence.
        video: (T, 3, H, W), bytes or in [0, 1].
        metres: true depth (T, H, W); what is not within the limits of `score_depth` is unknown.
        predicted: (T, H, W) in metres.
    """

    name: str
    video: torch.Tensor
    metres: torch.Tensor
    predicted: torch.Tensor


def plot_depth(clips: list[DepthClip], path: Path, num_frames: int = 3):
    """Input, truth, prediction and relative error of a few frames of each clip, unknown depth grey.

    Truth and prediction share one scale, the same for all clips.
    """
    metres = torch.cat([clip.metres.float().flatten() for clip in clips])
    known = metres[is_known_depth(metres)].numpy()
    near, far = np.percentile(known, (1, 99)) if known.size else (0, MAX_DEPTH)
    depth_colours, error_colours = (colormaps[name].with_extremes(bad=UNKNOWN_COLOUR) for name in ("turbo_r", "magma"))
    depth_scale = {"cmap": depth_colours, "norm": Normalize(near, max(far, near + 1e-3))}
    error_scale = {"cmap": error_colours, "norm": Normalize(0, MAX_RELATIVE_ERROR)}
    blocks = [_film(clip, num_frames) for clip in clips]
    names = ("input", "true depth", "predicted", "relative error")
    # One row of subplots throughout, with a gap after each clip, keeps all images the same size
    ratios = [ratio for block in blocks for ratio in [1] * len(block) + [0.12]][:-1]
    height, width = clips[0].metres.shape[-2:]
    inches = FRAME_INCHES * height / width
    figure = Figure(figsize=(FRAME_INCHES * sum(ratios) + 2.1, 4 * inches + 0.95))
    grid = figure.subplots(4, len(ratios), gridspec_kw={"width_ratios": ratios, "wspace": 0.03, "hspace": 0.03})
    grid = grid.reshape(4, len(ratios))
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    column = 0
    for clip, block in zip(clips, blocks, strict=True):
        for place, (time, frame, truth, predicted, error) in enumerate(block):
            images = grid[:, column + place]
            images[0].imshow(frame, cmap="gray")
            for axes, values, scale in zip(
                images[1:], (truth, predicted, error), (depth_scale, depth_scale, error_scale), strict=True
            ):
                axes.imshow(values, **scale, interpolation="nearest")
            images[0].set_title(f"frame {time + 1}", fontsize=9, pad=3)
        grid[0, column].annotate(
            _short(clip.name, 14 * len(block)),
            (0, 1),
            xycoords="axes fraction",
            xytext=(0, 17),
            textcoords="offset points",
            fontsize=11,
            weight="bold",
        )
        column += len(block) + 1
    for axes, name in zip(grid[:, 0], names, strict=True):
        axes.set_ylabel(name, fontsize=11)
    size = figure.get_size_inches()
    left, right, bottom, top = 0.4 / size[0], 1 - 1.25 / size[0], 0.15 / size[1], 1 - 0.7 / size[1]
    figure.subplots_adjust(left=left, right=right, bottom=bottom, top=top)
    row = (top - bottom) / 4
    for scale, start, rows, label in ((depth_scale, 1, 2, "metres"), (error_scale, 0, 1, "|error| / depth")):
        place = (right + 0.12 / size[0], bottom + start * row + 0.05 * row, 0.16 / size[0], (rows - 0.1) * row)
        figure.colorbar(
            ScalarMappable(scale["norm"], scale["cmap"]),
            cax=figure.add_axes(place),
            extend="both" if rows == 2 else "max",
            label=label,
        )
    figure.savefig(path, dpi=110)


def _film(clip: DepthClip, num_frames: int) -> list[tuple]:
    """Evenly spaced frames: time, picture (H, W, C); true depth, prediction and error (H, W), NaN where unknown."""
    times = np.linspace(0, len(clip.video) - 1, min(num_frames, len(clip.video))).round().astype(int)
    film = []
    for time in times.tolist():
        metres, predicted = clip.metres[time].float(), clip.predicted[time].float()
        is_known = is_known_depth(metres)
        truth = torch.where(is_known, metres, torch.nan)
        frame = clip.video[time].permute(1, 2, 0).numpy()
        film.append((time, frame, truth.numpy(), predicted.numpy(), ((predicted - truth).abs() / truth).numpy()))
    return film
