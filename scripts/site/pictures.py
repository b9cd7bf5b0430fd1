"""Draws the pictures of docs/methods.md, one per method: what is seen, what is frozen, and what is predicted, from the
stages and the masks of the recipes.

python scripts/site/pictures.py [FOLDER]
"""

import sys
from dataclasses import fields
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from layerlock_hf import Stage
from layerlock_hf.analysis import PlannedRun
from layerlock_hf.data import MaskArguments
from layerlock_hf.pretraining.planning import given_settings, planned_run


FOLDER = Path(__file__).resolve().parents[2] / "docs" / "assets"
# Picture -> recipes and their stages, a panel each
PICTURES = {
    "mae": [("demo-mae-random", 0), ("demo-mae-tube", 0), ("demo-mae", 0)],
    "layerlock": [("demo", 0), ("demo", 1), ("demo", 4)],
    "freezing_only": [("demo-freezing-only", 0), ("demo-freezing-only", 1), ("demo-freezing-only", 4)],
    "collapse": [("demo-collapse", 0)],
    "vjepa": [("demo-vjepa", 0)],
    "vjepa_layerlock": [("demo-vjepa-layerlock", 0), ("demo-vjepa-layerlock", 2), ("demo-vjepa-layerlock", 8)],
    "salt": [("demo-salt-teacher", 0), ("demo-salt", 0)],
    "blockwise": [("demo-blockwise", 0)],
    "blockwise_in_sequence": [("ucf101-tiny-4-blocks-in-sequence", stage) for stage in (0, 1, 3)],
}
LEARNS, FROZEN, TEACHER, HEAD, SEEN, HIDDEN = "#f4b266", "#a9bfdc", "#a8d5a2", "#e9e2f5", "#3b6ea5", "#dddddd"
INK = "#333333"
WIDTH, HEIGHT = 10.0, 9.8  # of a panel, in its own units
LEFT, RIGHT, COLUMN = 0.2, 5.9, 3.9  # where the columns of the student and of the target begin, and how wide they are
CLIP_Y, STACK_Y, STACK_HEIGHT = 0.7, 2.2, 6.6


def draw_clip(axes: Axes, x: float, grid_size: tuple[int, int, int], seen: list[int] | None):
    """The time steps of a clip, side by side, and the tokens that are seen; None: all of them."""
    times, rows, columns = grid_size
    step = COLUMN / times
    size = 0.94 * min(step, 1.3) / columns
    for time in range(times):
        corner = (x + time * step, CLIP_Y)
        axes.add_patch(Rectangle(corner, columns * size, rows * size, facecolor=SEEN if seen is None else HIDDEN))
    for index in seen or ():
        time, row, column = index // (rows * columns), index // columns % rows, index % columns
        corner = (x + time * step + column * size, CLIP_Y + (rows - 1 - row) * size)
        axes.add_patch(Rectangle(corner, size, size, facecolor=SEEN, edgecolor="white", lw=0.3))


def draw_stack(axes: Axes, x: float, depth: int, num_layers: int, look):
    """Layers 1 to `depth`; `look` gives the colour and the text of a layer."""
    height = STACK_HEIGHT / num_layers
    for layer in range(1, depth + 1):
        colour, text = look(layer)
        corner = (x, STACK_Y + (layer - 1) * height)
        axes.add_patch(Rectangle(corner, COLUMN, 0.82 * height, facecolor=colour, edgecolor=INK, lw=0.6))
        axes.text(x + COLUMN / 2, corner[1] + 0.38 * height, text, ha="center", va="center", fontsize=8, color=INK)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]):
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": INK, "lw": 1.1})


def name_of(target) -> str:
    return f"$h_{{{target.depth}}}$" if target.depth else "pixels"


def draw_student(axes: Axes, run: PlannedRun, stage: Stage, seen: list[int]):
    """What the encoder sees, its layers, and what decodes."""
    config = run.config
    num_layers, in_trunk = config.num_hidden_layers, config.decoder == "trunk"
    first_decoding = num_layers - config.num_decoder_layers + 1 if in_trunk else num_layers + 1

    def look(layer):
        text = f"layer {layer}" + (", decodes" if layer >= first_decoding else "")
        return (FROZEN, f"{text}, frozen") if layer <= stage.num_frozen else (LEARNS, text)

    draw_clip(axes, LEFT, config.grid_size, seen)
    depth = max(stage.read_depths)
    draw_stack(axes, LEFT, depth, num_layers, look)
    height = STACK_HEIGHT / num_layers
    for objective in stage.objectives:
        top = STACK_Y + objective.read_at * height
        if stage.local and objective.read_at < num_layers:
            axes.plot([LEFT - 0.1, LEFT + COLUMN + 0.1], [top - 0.09 * height] * 2, color="#c0392b", lw=1.6)
        if not in_trunk and not stage.local:
            corner = (LEFT, top + 0.1)
            axes.add_patch(Rectangle(corner, COLUMN, 0.5, facecolor=HEAD, edgecolor=INK, lw=0.6))
            axes.text(LEFT + COLUMN / 2, top + 0.34, "predictor", ha="center", va="center", fontsize=8, color=INK)


def draw_target(axes: Axes, run: PlannedRun, stage: Stage, teacher: str):
    """What is predicted, and where it comes from."""
    num_layers, grid = run.config.num_hidden_layers, run.config.grid_size
    height = STACK_HEIGHT / num_layers
    latents = [objective.target for objective in stage.objectives if objective.target.depth]
    draw_clip(axes, RIGHT, grid, None)
    axes.text(RIGHT, 0.15, "the whole clip", fontsize=9, color=INK)
    if latents:

        def look(layer):
            if latents[0].of == "teacher":
                return TEACHER, f"{teacher}, layer {layer}"
            return (FROZEN if layer <= stage.num_frozen else LEARNS), f"the same layer {layer}"

        draw_stack(axes, RIGHT, max(one.depth for one in latents), num_layers, look)
    for objective in stage.objectives:
        has_predictor = run.config.decoder == "predictor" and not stage.local
        start_y = STACK_Y + (objective.read_at - 0.6) * height
        if has_predictor:
            start_y = STACK_Y + objective.read_at * height + 0.34
        end_y = STACK_Y + (objective.target.depth - 0.6) * height if objective.target.depth else CLIP_Y + 0.7
        if stage.local:
            axes.text(LEFT + COLUMN + 0.25, start_y - 0.1, "predictor", fontsize=8, color=INK)
            arrow(axes, (LEFT + COLUMN + 1.75, start_y), (RIGHT + COLUMN / 2, CLIP_Y + 1.15))
        else:
            arrow(axes, (LEFT + COLUMN + 0.08, start_y), (RIGHT - 0.1, end_y))


def draw_panel(axes: Axes, run: PlannedRun, settings: dict, number: int):
    """A stage of a run."""
    known = {field.name for field in fields(MaskArguments)}
    masks = MaskArguments(**{name: value for name, value in settings.items() if name in known})
    seen = masks.build()(run.config.grid_size, [0], 0)[0][0][0].tolist()
    stage = run.stages[number]
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.set_axis_off()
    draw_student(axes, run, stage, seen)
    draw_target(axes, run, stage, "given encoder" if settings.get("teacher_momentum") == 1 else "EMA teacher")
    axes.text(LEFT, 0.15, f"seen ({masks.mask})", fontsize=9, color=INK)
    predicted = " + ".join(dict.fromkeys(name_of(objective.target) for objective in stage.objectives))
    since = f"from step {stage.start:,} on: " if len(run.stages) > 1 else ""
    axes.set_title(f"{run.name}\n{since}predicts {predicted}", fontsize=10, color=INK, loc="left")


@matplotlib.rc_context({"svg.hashsalt": "layerlock_hf", "svg.fonttype": "none"})
def draw(name: str, folder: Path):
    """One picture, as SVG, with what it says as its title."""
    panels = PICTURES[name]
    figure = Figure(figsize=(3.7 * len(panels), 4.2), layout="constrained")
    for axes, (recipe, number) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        settings = given_settings(["--config", recipe])
        draw_panel(axes, planned_run(settings, recipe), settings, number)
    figure.savefig(folder / f"method_{name}.svg", metadata={"Date": None})


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name in PICTURES:
        draw(name, folder)


if __name__ == "__main__":
    main()
