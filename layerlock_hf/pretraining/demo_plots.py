"""The pictures of the demonstration."""

from itertools import pairwise
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure
from transformers import AutoModelForPreTraining

from ..data import center_crop, read_clip
from ..data.masks import MaskStrategy
from .reconstruction import reconstruct


COLOURS = ("#4c566a", "#1f77b4", "#d1495b", "#2a9d8f", "#b07d00", "#7b4fa3", "#00798c")
MAE_COLOUR = "#a3a9b5"


def spoken(target: str) -> str:
    return target.replace("_", " ")


@matplotlib.rc_context({"font.size": 15, "axes.spines.top": False, "axes.spines.right": False})
def plot_losses(runs: dict[str, list[dict]], stages: list[dict], max_steps: int, path: Path):
    """Losses and explained variances of both runs over the steps; the stages of the LayerLock run are shaded."""
    figure = Figure(figsize=(14, 10))
    losses, explained = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    ends = [*(stage["start"] for stage in stages), max_steps]
    for axes, quantity in ((losses, "loss"), (explained, "explained_variance")):
        axes.plot(
            [row["step"] for row in runs["mae"]],
            [row[f"pixels/{quantity}"] for row in runs["mae"]],
            color=MAE_COLOUR,
            linewidth=2.5,
            label="plain MAE: pixels throughout",
        )
        for index, (stage, (start, end)) in enumerate(zip(stages, pairwise(ends), strict=True)):
            rows = [row for row in runs["layerlock"] if row["stage"] == index]
            colour = COLOURS[index % len(COLOURS)]
            label = f"LayerLock: {spoken(stage['target'])}"
            if stage["num_frozen"]:
                label += f", {stage['num_frozen']} frozen"
            axes.plot(
                [row["step"] for row in rows],
                [row[f"{stage['target']}/{quantity}"] for row in rows],
                color=colour,
                linewidth=2.5,
                label=label,
            )
            axes.axvspan(start, end, color=colour, alpha=0.06, linewidth=0)
            if index:
                axes.axvline(start, color="#888888", linewidth=1, linestyle="--")
        axes.grid(axis="y", alpha=0.3)
    losses.set_yscale("log")
    losses.set_ylabel("loss (log scale)")
    for index, (stage, (start, end)) in enumerate(zip(stages, pairwise(ends), strict=True)):
        losses.annotate(
            spoken(stage["target"]),
            ((start + end) / 2, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            color=COLOURS[index % len(COLOURS)],
            weight="bold",
        )
    losses.set_title("What is predicted, and how well: every freezing starts a new target", pad=34, fontsize=18)
    explained.set_ylabel("explained variance")
    explained.set_ylim(-0.5, 1)
    explained.axhline(0, color="#888888", linewidth=1)
    explained.set_xlabel("step")
    explained.set_xlim(0, max_steps)
    figure.tight_layout()
    handles, labels = losses.get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, frameon=False, fontsize=13)
    figure.subplots_adjust(bottom=0.15)
    figure.savefig(path, dpi=110)


def plot_reconstruction(folder: Path, videos: list[Path], masks: MaskStrategy, resize_factor: float, path: Path):
    """Input, seen part and prediction of the model in `folder`, for the start of each video: every second frame."""
    model = AutoModelForPreTraining.from_pretrained(folder).eval()
    config = model.config
    frames = [read_clip(str(video), lambda available: list(range(config.num_frames))).frames for video in videos]
    clips = torch.stack([center_crop(clip, config.image_size, resize_factor) for clip in frames]).float() / 255
    (objective,) = model.pixel_stage.objectives
    seen, completed = reconstruct(model, clips, masks, objective)
    times = range(config.tubelet_size - 1, config.num_frames, config.tubelet_size)
    rows = (("what happens", clips), ("what the\nencoder sees", seen), ("what the\nmodel predicts", completed))
    figure = Figure(figsize=(1.5 * len(videos) * len(times) + 1.6, 5.6))
    # One row of subplots throughout, with a gap after each clip, keeps all images the same size
    columns = len(videos) * (len(times) + 1) - 1
    ratios = [0.15 if column % (len(times) + 1) == len(times) else 1 for column in range(columns)]
    axes = figure.subplots(len(rows), columns, gridspec_kw={"width_ratios": ratios, "wspace": 0.04, "hspace": 0.04})
    for i, (name, images) in enumerate(rows):
        for column in range(columns):
            block, j = divmod(column, len(times) + 1)
            image = axes[i, column]
            if j == len(times):
                image.axis("off")
                continue
            image.imshow(images[block, times[j]].permute(1, 2, 0).numpy(), interpolation="nearest")
            image.set(xticks=[], yticks=[])
            image.spines[:].set_visible(False)
            if i == 0:
                image.set_title(f"frame {times[j] + 1}", fontsize=13)
        axes[i, 0].set_ylabel(name, fontsize=13)
    figure.subplots_adjust(left=0.07, right=0.99, top=0.85, bottom=0.02)
    figure.suptitle("Test clips: from the first frames to the next ones, as the plain MAE predicts them", fontsize=18)
    figure.savefig(path, dpi=100)
