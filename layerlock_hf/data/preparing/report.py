"""The report on prepared videos: text and a picture."""

from collections import Counter
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ...utils.files import write_aside


COLOUR, BAD_COLOUR = "#1f77b4", "#d1495b"
NUM_BINS = 30
NUM_NAMES = 12  # codecs, reasons and files that are named
# Title, unit, what of the facts, whether the scale is logarithmic
QUANTITIES = (
    ("duration", "seconds", lambda facts: facts["duration"], True),
    ("shorter side", "pixels", lambda facts: min(facts["height"], facts["width"]), False),
    ("frame rate", "frames per second", lambda facts: facts["fps"], False),
)


def write_report(videos: list[dict], folder: Path) -> str:
    """Write `report.md` and `report.png` about all videos of `read_report` into a folder; returns a summary."""
    packed = [video for video in videos if video["is_packed"]]
    facts = [packed_facts(video) for video in packed if packed_facts(video) is not None]
    summary = f"{len(packed)} of {len(videos)} videos are packed"
    hours = sum(fact["duration"] for fact in facts) / 3600
    lines = [
        "# Prepared videos",
        "",
        f"{summary}: {sum(fact['num_frames'] for fact in facts)} frames, {hours:.2f} hours. "
        f"{sum(video['prepared'] is not None for video in packed)} were re-encoded. What became of each file is in "
        "`report-*.jsonl`.",
        "",
        "![durations, sizes, frame rates and failures](report.png)",
        "",
        *table(("status", "files", "packed"), status_rows(videos)),
        *table(("what is wrong", "files", "for example"), reason_rows(videos)),
        *table(("packed videos", "least", "median", "mean", "most"), quantity_rows(facts)),
        *table(("codec", "videos"), Counter(fact["codec"] for fact in facts).most_common(NUM_NAMES)),
    ]
    plot(videos, facts, folder / "report.png")
    with write_aside(folder / "report.md") as aside:
        aside.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return f"{summary}; see {folder / 'report.md'}"


def packed_facts(video: dict) -> dict | None:
    """Facts of a video as it is packed; None of one that does not decode."""
    return video["prepared"]["facts"] if video["prepared"] else video["facts"]


def table(head: tuple, rows: list[tuple]) -> list[str]:
    if not rows:
        return []
    lines = [f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows)]
    return [*lines, ""]


def status_rows(videos: list[dict]) -> list[tuple]:
    files = Counter(video["status"] for video in videos)
    packed = Counter(video["status"] for video in videos if video["is_packed"])
    return [(status, number, packed[status]) for status, number in files.most_common()]


def reason_rows(videos: list[dict]) -> list[tuple]:
    examples = {video["kind"]: video for video in reversed(videos) if video["kind"]}
    kinds = Counter(video["kind"] for video in videos if video["kind"])
    return [
        (kind, number, f"`{examples[kind]['name']}`: {examples[kind]['reason']}".replace("|", "\\|"))
        for kind, number in kinds.most_common()
    ]


def quantity_rows(facts: list[dict]) -> list[tuple]:
    rows = []
    for title, unit, quantity, _ in QUANTITIES if facts else ():
        values = np.array([quantity(fact) for fact in facts])
        numbers = (values.min(), np.median(values), values.mean(), values.max())
        rows.append((f"{title} ({unit})", *(f"{number:.4g}" for number in numbers)))
    return rows


@matplotlib.rc_context({"font.size": 13, "axes.spines.top": False, "axes.spines.right": False})
def plot(videos: list[dict], facts: list[dict], path: Path):
    """Durations, sizes and frame rates of what is packed, and what is wrong with the rest."""
    figure = Figure(figsize=(14, 9), layout="constrained")
    panels = figure.subplots(2, 2)
    for axes, (title, unit, quantity, is_logarithmic) in zip(panels.flat, QUANTITIES, strict=False):
        values = np.array([quantity(fact) for fact in facts])
        axes.set_title(f"{title} of {len(values)} packed videos")
        if not len(values):
            axes.set_axis_off()
            continue
        bins = NUM_BINS
        if is_logarithmic:
            # A little wider, so that a single value has a bin too
            bins = np.geomspace(values.min() / 1.05, values.max() * 1.05, NUM_BINS + 1)
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
        axes.hist(values, bins=bins, color=COLOUR)
        axes.set(xlabel=unit, ylabel="videos")
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.set_axisbelow(True)
        axes.grid(axis="y", alpha=0.3)
    kinds = Counter(video["kind"] for video in videos if video["kind"]).most_common(NUM_NAMES)[::-1]
    axes = panels[1, 1]
    if kinds:
        bars = axes.barh([kind for kind, _ in kinds], [number for _, number in kinds], color=BAD_COLOUR)
        axes.bar_label(bars, padding=3)
        number = sum(number for _, number in kinds)
        axes.set(title=f"what is wrong with {number} of {len(videos)} files", xlabel="files")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.margins(x=0.1)
    else:
        axes.set_title(f"nothing is wrong with {len(videos)} files")
        axes.set_axis_off()
    with write_aside(path) as aside:
        figure.savefig(aside, dpi=90, format="png")
