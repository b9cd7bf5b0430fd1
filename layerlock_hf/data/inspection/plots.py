"""The two pictures of `layerlock inspect`: clips with their masks, and the times of the steps."""

import math
import os
import textwrap
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ...data import PretrainingCollator
from .advice import Measured
from .steps import WORKER_STEPS, Look


COLOURS = dict(zip(WORKER_STEPS, ("#b07d00", "#1f77b4", "#2a9d8f", "#7b4fa3", "#a3a9b5"), strict=True))
MODEL_COLOUR = "#d1495b"
# Hidden patches keep this share of their pixels, under a colour that says whether they are to be predicted
KEPT = 0.22
PREDICTED, IGNORED = np.array([46, 72, 130]), np.array([20, 20, 20])
MAX_COLUMNS = 8
GAP = 0.06  # between frames, as a share of their side
FRAME_INCHES = 1.0
CAPTION_INCHES = 0.42


def plot_clips(looks: list[Look], collator: PretrainingCollator, num_frames: int, image_size: int, path: Path):
    """Frames of every clip as the model sees them, and below, for every type of mask, what is hidden."""
    sheets = []
    for look in looks:
        pairs = collator.masks(collator.grid_size, [look.position], collator.seed)
        clip = look.clip(image_size, num_frames)
        sheets.append(_sheet(clip, [_shade(clip, seen[0], hidden[0], collator.grid_size) for seen, hidden in pairs]))
    num_masks = len(pairs)
    num_columns = 2 if len(looks) > 1 else 1
    num_rows = -(-len(looks) // num_columns)
    height, width = sheets[0].shape[0] / sheets[0].shape[1], min(MAX_COLUMNS, num_frames) * FRAME_INCHES
    width = max(width, 5.0)  # captions need some room
    block, margin, legend = width * height + CAPTION_INCHES, 0.25, 0.9
    size = (num_columns * (width + margin) + margin, num_rows * block + legend)
    figure = Figure(figsize=size)
    for number, (look, sheet) in enumerate(zip(looks, sheets, strict=True)):
        row, column = divmod(number, num_columns)
        left = margin + column * (width + margin)
        bottom = size[1] - 0.55 - (row + 1) * block + CAPTION_INCHES / 2
        axes = figure.add_axes((left / size[0], bottom / size[1], width / size[0], width * height / size[1]))
        axes.imshow(sheet, interpolation="antialiased")
        axes.axis("off")
        axes.set_title(_caption(look, num_frames, width), fontsize=8, loc="left", pad=2.5)
    lines = "with hidden patches covered" + f", in each of {num_masks} types of mask" * (num_masks > 1)
    title = f"Clips as the model sees them: whole, and {lines}"
    figure.text(margin / size[0], 1 - 0.3 / size[1], title, fontsize=13)
    handles = [
        Patch(facecolor=tuple(PREDICTED / 255), label="hidden, to be predicted"),
        Patch(facecolor=tuple(IGNORED / 255), label="hidden, not predicted"),
    ]
    figure.legend(handles=handles, loc="lower left", bbox_to_anchor=(margin / size[0], 0), ncols=2, frameon=False)
    figure.savefig(path, dpi=110)


def _caption(look: Look, num_frames: int, inches: float) -> str:
    num_shown, (first, last) = len(look.timestamps), (look.timestamps[0], look.timestamps[-1])
    when = "" if math.isnan(first) else f" from {first:.1f} to {last:.1f} s"
    changes = [f"{look.facts.width}x{look.facts.height}", "crop {3}x{2}".format(*look.augmentation.box)]
    changes += ["flipped"] if look.augmentation.is_flipped else []
    changes += ["recoloured"] if look.augmentation.color is not None else []
    changes += [f"last frame repeated after {num_shown}"] if num_shown < num_frames else []
    told = f"{num_shown} of {look.num_frames} frames{when}; {', '.join(changes)}"
    return f"{_short(look.name, int(inches * 15))}\n{textwrap.shorten(told, int(inches * 17), placeholder=' ...')}"


def _short(name: str, length: int) -> str:
    """The end of a name, which tells more than its beginning; dollars would begin a formula."""
    name = os.path.basename(name).replace("$", r"\$")
    return name if len(name) <= length else f"...{name[3 - length :]}"


def _shade(frames: np.ndarray, context_ids, target_ids, grid_size: tuple[int, int, int]) -> np.ndarray:
    """The clip (T, C, S, S) with its hidden patches dimmed."""
    is_seen, is_target = (_pixels_of(ids, grid_size, frames.shape) for ids in (context_ids, target_ids))
    tint = np.where(is_target[..., None], PREDICTED, IGNORED).transpose(0, 3, 1, 2)
    dimmed = KEPT * frames + (1 - KEPT) * tint
    return np.where(is_seen[:, None], frames, dimmed).round().astype(np.uint8)


def _pixels_of(ids: torch.Tensor, grid_size: tuple[int, int, int], shape: tuple[int, int, int, int]) -> np.ndarray:
    """Whether each pixel of clips of this shape (T, C, S, S) lies in one of these patches: (K,) to (T, S, S)."""
    chosen = torch.zeros(math.prod(grid_size), dtype=torch.bool)
    chosen[ids] = True
    grid = chosen.view(grid_size).numpy()
    for axis, (num_pixels, num_patches) in enumerate(zip((shape[0], *shape[2:]), grid_size, strict=True)):
        grid = grid.repeat(num_pixels // num_patches, axis)
    return grid


def _sheet(frames: np.ndarray, shaded: list[np.ndarray]) -> np.ndarray:
    """Frames side by side, the lines below each other, on white: (H, W, C)."""
    times = np.linspace(0, len(frames) - 1, min(MAX_COLUMNS, len(frames))).round().astype(int)
    side = frames.shape[-1]
    pitch = side + max(1, round(GAP * side))
    num_channels = frames.shape[1]
    sheet = np.full((pitch * (1 + len(shaded)), pitch * len(times), num_channels), 255, np.uint8)
    for line, clip in enumerate([frames, *shaded]):
        for column, time in enumerate(times):
            top, left = line * pitch, column * pitch
            sheet[top : top + side, left : left + side] = clip[time].transpose(1, 2, 0)
    return sheet


def plot_times(measured: Measured, verdict: str, path: Path):
    """The steps of every clip as stacked bars, their means, and the clips per second that workers make."""
    looks, means = measured.looks, measured.means()
    figure = Figure(figsize=(13, 1.9 + 0.32 * max(len(looks) + 1, 5)), layout="constrained")
    times, rates = figure.subplots(1, 2, width_ratios=(3.2, 1))
    rows = [{**look.seconds, **{"collate": means["collate"]}} for look in looks] + [means]
    labels = [f"{_short(look.name, 34)}  {look.facts.width}x{look.facts.height}" for look in looks] + ["MEAN"]
    left = np.zeros(len(rows))
    for step in means:
        widths = np.array([1000 * row.get(step, 0) for row in rows])
        times.barh(range(len(rows)), widths, left=left, color=COLOURS[step], label=step, height=0.75)
        left += widths
    for place, end in enumerate(left):
        times.annotate(f"{end:.1f}", (end, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8)
    times.set_yticks(range(len(rows)), labels, fontsize=8)
    times.get_yticklabels()[-1].set_weight("bold")
    times.axhline(len(rows) - 1.5, color="#888888", linewidth=0.8)
    times.set_ylim(len(rows) - 0.4, -0.6)
    times.set_xlabel("milliseconds of a worker per clip")
    times.set_xlim(0, 1.08 * left.max())
    figure.legend(*times.get_legend_handles_labels(), loc="outside lower center", ncols=len(means), frameon=False)

    names = [f"{number} worker{'s' * (number != 1)}" if number else "none" for number in measured.rates]
    bars = rates.bar(names, list(measured.rates.values()), color="#4c566a", width=0.6)
    rates.bar_label(bars, fmt="%.1f", padding=2)
    rates.set_ylabel("clips per second")
    rates.margins(x=0.15, y=0.12)
    if measured.step_seconds is not None:
        wanted = measured.clips_per_step / measured.step_seconds
        rates.axhline(wanted, color=MODEL_COLOUR, linestyle="--", label="the model takes")
        rates.legend(frameon=False, fontsize=8)
    for axes in (times, rates):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(verdict, fontsize=13)
    figure.savefig(path, dpi=110)
