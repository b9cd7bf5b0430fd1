"""The log of a run as charts: lines in SVG that need no script, and the numbers that a script tells on hovering."""

import math
import re
from dataclasses import dataclass, field

from .spreading import spread


SMALL, LARGE = (340, 170), (520, 250)  # width and height of a chart, about the pixels that it has on a page
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 18, 22  # margins
MAX_POINTS = 400  # of a line; a bin of several steps keeps its lowest and its highest value
MAX_BORDER_LABELS = 14


@dataclass(frozen=True)
class Kind:
    """What a chart shows.

    Args:
        title: above it.
        pattern: of the names of its numbers in the log, which may have a prefix such as `layer_2/`.
        help: how to read it.
        is_log: whether its axis is logarithmic.
        floor: lowest value of its axis; what lies below is drawn there.
        ceiling: highest value of its axis, if that is known.
        size: `SMALL` or `LARGE`.
        breaks: whether lines end with a stage, as values before and after do not compare.
    """

    title: str
    pattern: str
    help: str
    is_log: bool = False
    floor: float | None = None
    ceiling: float | None = None
    size: tuple[int, int] = SMALL
    breaks: bool = True

    def shows(self, name: str) -> bool:
        """Whether a number of the log belongs here."""
        return re.fullmatch(f"(.*/)?({self.pattern})", name) is not None


KINDS = (
    Kind(
        "Explained variance of each target",
        "explained_variance",
        "The share of the target that is predicted: 1 is all, 0 no better than its mean. It compares across stages, "
        "falls at a switch, where a fresh head starts, and should recover within the stage. Below −0.5 it is cut off.",
        floor=-0.5,
        ceiling=1.0,
        size=LARGE,
    ),
    Kind(
        "Loss of each target",
        "loss",
        "Losses of different targets do not compare: those of latents are as large as the latents.",
        is_log=True,
        size=LARGE,
    ),
    Kind(
        "Readouts during pretraining: accuracy",
        r"\w+_accuracy_layer_\d+",
        "How many of the readout's videos are classified correctly from the features, by depth.",
        floor=0.0,
        size=LARGE,
        breaks=False,
    ),
    Kind(
        "Learning rate",
        "learning_rate",
        "With a short warm-up after every switch, if switch_warmup_steps asks for one.",
    ),
    Kind(
        "Gradient norm",
        "grad_norm",
        "Before clipping, over what learns. It should fall or stay, not grow.",
        is_log=True,
    ),
    Kind(
        "Effective rank of the features",
        "effective_rank",
        "How many directions the features of a batch use. A fall towards 1 is collapse.",
        floor=0.0,
    ),
    Kind(
        "Standard deviation of the features",
        "feature_std",
        "Between clips, at the same position. A fall towards 0 is collapse.",
        floor=0.0,
    ),
    Kind(
        "Share of content in the features",
        "content_fraction",
        "How much of what tokens differ by is the clip, not the position in it. A fall towards 0 is collapse.",
        floor=0.0,
        ceiling=1.0,
    ),
    Kind("Norm of the weights of each layer", r"weight_norm_layer_\d+", "Flat once a layer is frozen.", breaks=False),
    Kind(
        "Variance of each target",
        "target_variance",
        "If it falls within a stage, the target becomes trivial to predict.",
        is_log=True,
    ),
    Kind("Throughput, clips per second", "clips_per_second", "Of all processes; steps count as logged.", floor=0.0),
    Kind("Share of time waiting for data", "data_wait_fraction", "Above 30%, the run is starved of data.", floor=0.0),
    Kind("Peak memory, GiB", "peak_memory_gib", "The highest so far, of the first process.", floor=0.0, breaks=False),
)


@dataclass(frozen=True)
class Line:
    """One number of the log over the steps.

    Attributes:
        name: of what.
        colour: number of its colour.
        path: as SVG draws it.
        dots: single points, which a path does not show: (x, y).
    """

    name: str
    colour: int
    path: str
    dots: list[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """A chart, laid out.

    Attributes:
        kind: what it shows.
        frame: left, right, top and bottom of what is drawn.
        lines: in it.
        x_ticks, y_ticks: (place, text).
        borders: of stages, (place, number of frozen layers, or "" where labels would touch).
        points: for hovering: the steps, and by name the values, None where there is none.
        last: the newest value of each line, for those who do not see the picture.
    """

    kind: Kind
    frame: tuple[int, int, int, int]
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    borders: list[tuple[float, str]]
    points: dict = field(repr=False)
    last: list[tuple[str, str]] = field(default_factory=list)


def draw_charts(log: list[dict], stages: list[dict], max_steps: int) -> list[Chart]:
    """A chart for each kind of number that the log has.

    Args:
        log: all lines.
        stages: rows of `stages.json`.
        max_steps: of the run.
    """
    charts = (_draw(kind, _shown(kind, log), stages, max_steps) for kind in KINDS)
    return [chart for chart in charts if chart is not None]


def _shown(kind: Kind, log: list[dict]) -> dict[str, dict[int, float | None]]:
    """The numbers that a chart shows, by name: step -> value, None where it is none, such as NaN."""
    found: dict[str, dict[int, float | None]] = {}
    for row in log:
        for name, value in row.items():
            if kind.shows(name) and isinstance(value, int | float):
                found.setdefault(name, {})[row["step"]] = value if math.isfinite(value) else None
    if len(found) > 1:
        found.pop("loss", None)  # the weighted sum of the others
    return {name: values for name, values in found.items() if any(value is not None for value in values.values())}


def _draw(kind: Kind, found: dict, stages: list[dict], max_steps: int) -> Chart | None:
    if not found:
        return None
    thinned = {name: _thinned(values, MAX_POINTS) for name, values in found.items()}
    numbers = [value for values in thinned.values() for value in values.values() if value is not None]
    is_log = kind.is_log and all(number > 0 for number in numbers)
    low, high = _bounds(kind, numbers, is_log)
    width, height = kind.size
    right, bottom = width - RIGHT, height - BOTTOM

    def x_of(step: float) -> float:
        return round(LEFT + (right - LEFT) * step / max(1, max_steps), 1)

    def y_of(value: float) -> float:
        low_, high_, at = (math.log10(one) if is_log else one for one in (low, high, min(high, max(low, value))))
        return round(bottom - (bottom - TOP) * (at - low_) / (high_ - low_), 1)

    starts = [stage["start"] for stage in stages]
    lines = []
    for number, (name, values) in enumerate(thinned.items()):
        path, dots = "", []
        for piece in _pieces(values, starts if kind.breaks else []):
            places = [(x_of(step), y_of(value)) for step, value in piece]
            if len(places) == 1:
                dots += places
            else:
                path += "M" + "L".join(f"{x},{y}" for x, y in places)
        lines.append(Line(_spoken(name, kind), number, path, dots))
    steps = sorted({step for values in thinned.values() for step in values})
    ticks = _log_ticks(low, high) if is_log else _ticks(low, high)
    shown = [place for place, start in enumerate(starts) if 0 < start < max_steps]
    labelled = set(spread(shown, MAX_BORDER_LABELS))
    return Chart(
        kind,
        (LEFT, right, TOP, bottom),
        lines,
        [(x_of(step), f"{step:,.0f}") for step in _ticks(0, max_steps)],
        [(y_of(value), _short(value)) for value in ticks],
        [(x_of(starts[place]), str(stages[place]["num_frozen"]) if place in labelled else "") for place in shown],
        {
            "steps": steps,
            "names": [line.name for line in lines],
            "values": [[_rounded(values.get(step)) for step in steps] for values in thinned.values()],
            "x": [x_of(step) for step in steps],
        },
        [(line.name, _last(values)) for line, values in zip(lines, found.values(), strict=True)],
    )


def _spoken(name: str, kind: Kind) -> str:
    """What a line is called: the target, the layer, or what the chart shows."""
    prefix, _, own = name.rpartition("/")
    layer = re.search(r"layer_\d+$", own)
    if prefix == "readout" and layer:
        return f"{own.partition('_')[0]}, {layer[0]}".replace("_", " ")
    return (prefix or (layer[0] if layer else kind.title)).replace("_", " ")


def _last(values: dict[int, float | None]) -> str:
    step = max(step for step, value in values.items() if value is not None)
    return f"{_short(values[step])} at step {step:,}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _thinned(values: dict[int, float | None], num_kept: int) -> dict[int, float | None]:
    """The lowest and the highest value of every bin, so that no spike is lost; and the first that is none."""
    if len(values) <= num_kept:
        return values
    steps, kept = sorted(values), set()
    size = -(-2 * len(steps) // num_kept)
    for place in range(0, len(steps), size):
        own = steps[place : place + size]
        kept |= {next((step for step in own if values[step] is None), own[0])}
        known = [step for step in own if values[step] is not None]
        kept |= {min(known, key=values.get), max(known, key=values.get)} if known else set()
    kept |= {steps[0], steps[-1]}
    return {step: values[step] for step in sorted(kept)}


def _pieces(values: dict[int, float | None], starts: list[int]):
    """Runs of points without gaps, which end where a stage starts."""
    piece = []
    for step, value in values.items():
        is_new = piece and any(piece[-1][0] <= start < step for start in starts)
        if piece and (is_new or value is None):
            yield piece
            piece = []
        if value is not None:
            piece.append((step, value))
    if piece:
        yield piece


def _bounds(kind: Kind, numbers: list[float], is_log: bool) -> tuple[float, float]:
    low = min(numbers) if kind.floor is None else kind.floor
    high = max(numbers) if kind.ceiling is None else kind.ceiling
    if is_log:
        # Whole decades would leave most of a chart empty; a tenth of one keeps lines off the edges
        return low / 10**0.1, high * 10**0.1
    room = (high - low) or abs(high) or 1.0
    return low - (0.05 * room if kind.floor is None else 0), high + (0.05 * room if kind.ceiling is None else 0)


def _ticks(low: float, high: float, num_wanted: int = 5) -> list[float]:
    """Round numbers within bounds."""
    rough = (high - low) / num_wanted
    unit = 10 ** math.floor(math.log10(rough))
    step = unit * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * unit >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within bounds; of many decades the powers alone."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**power for power in decades for factor in (1, 2, 5)]
    ticks = [tick for tick in ticks if low <= tick <= high]
    if len(ticks) > 6:
        ticks = [tick for tick in ticks if math.log10(tick) % 1 < 1e-9 or math.log10(tick) % 1 > 1 - 1e-9]
    return spread(ticks, 7)


def _short(value: float) -> str:
    """In three digits at most."""
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, _, exponent = f"{value:.3g}".partition("e")
        return f"{mantissa}e{int(exponent)}" if exponent else mantissa
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
