"""Several results.json of readouts as one table and one picture, in sections by data set."""

import re
from dataclasses import dataclass
from pathlib import Path

import matplotlib

from ..utils.outputs import check_output
from .metrics import MEASURES
from .plots import BEST_COLOUR, PROBES, SHOWN
from .results import FIXED_DEPTH_FRACTION, read_results


matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


FIXED_COLOUR, BASELINE_COLOUR, PAPER_COLOUR = "#4c566a", "#b07d00", "#8a8f99"
SECOND_METRIC = {"classification": "top5", "depth": "delta1"}
MAX_DIFFERENCES = 6  # that a note lists
CLIP = ("num_frames", "image_size")  # settings that an encoder is made for
# Settings that rows may be about, and what rows say of them where they differ
VARIANTS = {
    "readout": lambda name: name.replace("_", " "),
    "is_still": lambda is_still: "single frame" if is_still else "",
    "seed": lambda seed: f"seed {seed}",
    "bf16": lambda is_bf16: "bfloat16" if is_bf16 else "",
}
READOUT_SIZES = ("readout_hidden_size", "readout_num_attention_heads")  # not all readouts have them
# Settings by which readers recognise a protocol
PROTOCOL = ("readout", *READOUT_SIZES, "num_examples", "batch_size", "frame_stride", "num_test_clips")
PROTOCOL += ("augment", "ignores_aspect", "is_still")
PROBE_MARK = "‡"
PROBE_NOTE = (
    f"{PROBE_MARK} Without readouts: mean features of clips without augmentation, best depth (in parentheses). No "
    "intervals."
)
PAPER_MARK = "†"
PAPER_NOTE = (
    f"{PAPER_MARK} As printed in the LayerLock paper (Table 1), **not measured here**: best of 18 readouts trained on "
    "1.28M examples, sizes in millions of parameters."
)
# Table 1 of the paper: model, millions of parameters as printed, and results in the units of our metrics
PAPER = (
    ("4DS-G (MAE)", "1,848", {"ssv2": 0.631, "kinetics700": 0.521, "scannet": 0.102}),
    ("4DS-G + LayerLock", "1,868", {"ssv2": 0.661, "kinetics700": 0.563, "scannet": 0.100}),
    ("4DS-e (MAE)", "3,811", {"ssv2": 0.646, "kinetics700": 0.544, "scannet": 0.094}),
    ("4DS-e + LayerLock", "3,818", {"ssv2": 0.671, "kinetics700": 0.579, "scannet": 0.098}),
    ("V-JEPA-L", "235", {"ssv2": 0.521, "kinetics700": 0.425, "scannet": 0.157}),
    ("V-JEPA-L + LayerLock", "303", {"ssv2": 0.570, "kinetics700": 0.435, "scannet": 0.151}),
)
PAPER_TASKS = {"ssv2": "classification", "kinetics700": "classification", "scannet": "depth"}
# Other names of the datasets, without what is no letter or digit
ALIASES = {
    "somethingsomethingv2": "ssv2",
    "sthsthv2": "ssv2",
    "k700": "kinetics700",
    "k7002020": "kinetics700",
    "kinetics7002020": "kinetics700",
}


@dataclass(frozen=True)
class Section:
    """The results on one dataset.

    Args:
        task, dataset: of all of them.
        labels: what each is called (`_labels`).
        results: contents of the files.
        notes: of each, why it is not comparable with the first; empty if it is.
    """

    task: str
    dataset: str
    labels: list[str]
    results: list[dict]
    notes: list[list[str]]

    @property
    def metric(self) -> str:
        return MEASURES[self.task].main_metric

    @property
    def anchors(self) -> list[tuple[str, float]]:
        """What the paper prints for this dataset: labels and values."""
        name = re.sub("[^a-z0-9]", "", self.dataset.lower())
        name = ALIASES.get(name, name)
        if PAPER_TASKS.get(name) != self.task:
            return []
        return [(f"{model}, {size}M {PAPER_MARK}", values[name]) for model, size, values in PAPER]


def sections_of(files: list[tuple[Path, dict]]) -> list[Section]:
    """Results by task and dataset, in the order in which they come."""
    grouped: dict[tuple[str, str], list[tuple[Path, dict]]] = {}
    for path, results in files:
        grouped.setdefault((results["task"], results["dataset"]), []).append((path, results))
    sections = []
    for (task, dataset), members in grouped.items():
        results = [results for _, results in members]
        notes = [differences(results[0], other) for other in results]
        sections.append(Section(task, dataset, _labels(members), results, notes))
    return sections


def _labels(members: list[tuple[Path, dict]]) -> list[str]:
    """Names of models with the variants in which they differ, and with folders where that does not tell them apart."""
    settings = [results["settings"] for _, results in members]
    varied = [name for name in VARIANTS if len({str(one.get(name)) for one in settings}) > 1]
    labels = []
    for _, results in members:
        variants = [VARIANTS[name](results["settings"][name]) for name in varied if name in results["settings"]]
        labels.append(", ".join([results["model"], *filter(None, variants)]))
    return [
        label if labels.count(label) == 1 else f"{label} ({path.resolve().parent.name})"
        for label, (path, _) in zip(labels, members, strict=True)
    ]


def differences(first: dict, other: dict) -> list[str]:
    """What lets the numbers of two files not be compared: "max_steps is 100, not 2000".

    What the rows themselves tell does not: the size of the clips, and variants.
    """
    pairs = {
        "the number of test items": [one["num_test"] + len(one["failed"]) for one in (first, other)],
        "the number of training items": [one["num_train"] for one in (first, other)],
        "the number of classes": [len(one.get("per_class", [])) for one in (first, other)],
        "the data that chose the best": [one["best"]["is_chosen_on"] for one in (first, other)],
    }
    told = [*CLIP, *VARIANTS]
    if first["settings"].get("readout") != other["settings"].get("readout"):
        told += READOUT_SIZES
    for name in [*first["settings"], *other["settings"]]:
        if name not in told:
            pairs[name] = [one["settings"].get(name) for one in (first, other)]
    found = [
        f"{name} is {_plain(theirs)}, not {_plain(ours)}" for name, (ours, theirs) in pairs.items() if ours != theirs
    ]
    failed = [{row["name"] for row in one["failed"]} for one in (first, other)]
    if failed[0] != failed[1]:
        found.insert(0, f"other test items failed ({len(failed[1])}, not {len(failed[0])})")
    rest = len(found) - MAX_DIFFERENCES
    return found if rest <= 0 else [*found[:MAX_DIFFERENCES], f"{rest} more settings differ"]


def _plain(value) -> str:
    return "absent" if value is None else str(value)


def markdown(sections: list[Section]) -> str:
    """The page: a table per section, with its notes."""
    return "# Results\n\n" + "\n".join(_section_text(section) for section in sections)


def _section_text(section: Section) -> str:
    metric, second = SHOWN[section.metric], SHOWN[SECOND_METRIC[section.task]]
    has_probes = any(results.get("probes") for results in section.results)
    header = (
        "Model",
        "Frames, pixels",
        f"{metric.name}, best",
        "at depth, learning rate",
        f"at {FIXED_DEPTH_FRACTION} depth",
        f"{second.name} of the best",
        *(f"{name} {PROBE_MARK}" for _, name, _, _ in PROBES * has_probes),
        "Baselines",
        "Test items",
        "Failed",
    )
    lines = [header, ["---"] * len(header)]
    notes = []
    for label, results, reasons in zip(section.labels, section.results, section.notes, strict=True):
        if reasons:
            notes.append(_escaped(f"[{len(notes) + 1}] Not comparable with the first row: {'; '.join(reasons)}."))
            label = f"{label} [{len(notes)}]"
        lines.append(_row(section, label, results, has_probes))
    for label, value in section.anchors:
        lines.append([label, "–", metric.text(value), *["–"] * (len(header) - 3)])
    first = section.results[0]["intervals"]
    notes.append(
        f"In brackets: {100 * first['confidence']:g}% bootstrap intervals over {_units(section)}. They contain "
        "neither the seed of the training nor, where the best was chosen on the test items, that choice."
    )
    notes += [PROBE_NOTE] * has_probes + [PAPER_NOTE] * bool(section.anchors)
    direction = "higher" if MEASURES[section.task].is_higher_better else "lower"
    table = "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)
    title = f"## {_escaped(section.dataset)}: {metric.name}, {direction} is better"
    return "\n\n".join([title, *_protocol(section.results[0]["settings"]), table, *notes]) + "\n"


def _protocol(settings: dict) -> list[str]:
    """A line, if anything is known: "Protocol of the first row: readout attention, batch_size 32, augment."."""
    known = [name for name in PROTOCOL if settings.get(name) not in (None, False)]
    texts = [name if settings[name] is True else f"{name} {settings[name]}" for name in known]
    return [f"Protocol of the first row: {', '.join(texts)}."] if texts else []


def _row(section: Section, label: str, results: dict, has_probes: bool) -> list[str]:
    best, fixed = results["best"], results["fixed_depth"]
    second = SECOND_METRIC[section.task]
    has_second = second in best["metrics"]
    baselines = [
        f"{_escaped(name.replace('_', ' '))} {SHOWN[section.metric].text(metrics[section.metric]['value'])}"
        for name, metrics in results["baselines"].items()
    ]
    return [
        _escaped(label),
        ", ".join(str(results["settings"][name]) for name in CLIP if results["settings"].get(name)) or "–",
        _interval_text(section.metric, best),
        f"{best['depth']} ({best['depth_fraction']:.2g}), {best['learning_rate']:g}",
        "–" if fixed is None else _interval_text(section.metric, fixed),
        _interval_text(second, best) if has_second else "–",
        *(_probe_text(results, name) for name, _, _, _ in PROBES * has_probes),
        ", ".join(baselines) or "–",
        str(results["num_test"]),
        str(len(results["failed"])),
    ]


def _interval_text(metric: str, entry: dict) -> str:
    values = entry["metrics"][metric]
    if None in values.values():
        return "diverged"
    value, low, high = (SHOWN[metric].text(values[name]) for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _best_probe(results: dict, name: str) -> dict | None:
    return max(results.get("probes", []), key=lambda row: row[name], default=None)


def _probe_text(results: dict, name: str) -> str:
    best = _best_probe(results, name)
    return "–" if best is None else f"{SHOWN['top1'].text(best[name])} ({best['depth']})"


def _units(section: Section) -> str:
    """What the bootstrap drew, of all files: "9 groups"."""
    drawn = {f"{results['intervals']['num_units']} {results['intervals']['units']}" for results in section.results}
    return " or ".join(sorted(drawn))


def _escaped(text: str) -> str:
    """Markdown tables end a cell at a bar and a row at a line break."""
    return " ".join(text.split()).replace("|", r"\|")


def plot(sections: list[Section], path: Path):
    """A panel per section: the best and the fixed depth of every model with their intervals, baselines, references."""
    num_rows = [len(one.results) + len(one.results[0]["baselines"]) + len(one.anchors) for one in sections]
    heights = [1.15 + 0.44 * num for num in num_rows]
    figure, panels = plt.subplots(
        len(sections),
        1,
        figsize=(10.5, sum(heights) + 0.5),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for section, axes in zip(sections, panels[:, 0], strict=True):
        _panel(section, axes)
    kinds = [("best of the sweep", BEST_COLOUR, "o"), (f"at {FIXED_DEPTH_FRACTION} depth", FIXED_COLOUR, "s")]
    kinds += [("baseline", BASELINE_COLOUR, "v")] * any(section.results[0]["baselines"] for section in sections)
    has_probes = any(results.get("probes") for section in sections for results in section.results)
    kinds += [(f"{name}, best depth", colour, marker) for _, name, colour, marker in PROBES * has_probes]
    has_anchors = any(section.anchors for section in sections)
    kinds += [(f"{PAPER_MARK} of the paper, not measured here", PAPER_COLOUR, "D")] * has_anchors
    handles = [plt.Line2D([], [], color=colour, marker=mark, ls="", label=name) for name, colour, mark in kinds]
    if any(any(section.notes) for section in sections):
        hollow = {"color": FIXED_COLOUR, "marker": "o", "markerfacecolor": "white", "linestyle": ""}
        handles.append(plt.Line2D([], [], **hollow, label="[n] not comparable"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(section: Section, axes):
    shown = SHOWN[section.metric]
    names, number = [], 0
    for label, results, reasons in zip(section.labels, section.results, section.notes, strict=True):
        number += bool(reasons)
        place = len(names)
        _mark(axes, place - 0.11, section.metric, results["best"]["metrics"], BEST_COLOUR, "o", bool(reasons))
        if results["fixed_depth"] is not None:
            fixed = results["fixed_depth"]["metrics"]
            _mark(axes, place + 0.17, section.metric, fixed, FIXED_COLOUR, "s", bool(reasons))
        for name, _, colour, marker in PROBES:
            if (probe := _best_probe(results, name)) is not None:
                axes.plot(shown.factor * probe[name], place + 0.03, marker, color=colour, markersize=8)
        names.append(f"{label} [{number}]" if reasons else label)
    # Those of the first file; the table has all
    for name, metrics in section.results[0]["baselines"].items():
        _mark(axes, len(names), section.metric, metrics, BASELINE_COLOUR, "v", False)
        value = shown.factor * metrics[section.metric]["value"]
        axes.axvline(value, color=BASELINE_COLOUR, linewidth=0.8, linestyle="--", zorder=0, alpha=0.6)
        names.append(name.replace("_", " "))
    for label, value in section.anchors:
        axes.plot(shown.factor * value, len(names), "D", color=PAPER_COLOUR, markersize=6)
        names.append(label)
    axes.set_yticks(range(len(names)), [name.replace("$", r"\$") for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    direction = "right" if MEASURES[section.task].is_higher_better else "left"
    axes.set_xlabel(f"{shown.name}; better to the {direction}")
    axes.set_title(section.dataset.replace("$", r"\$"), loc="left", fontsize=12, weight="bold")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _mark(axes, place: float, metric: str, metrics: dict, colour: str, marker: str, is_hollow: bool):
    """A value and its interval, unless the predictions diverged."""
    if None in metrics[metric].values():
        return
    value, low, high = (SHOWN[metric].factor * metrics[metric][name] for name in ("value", "low", "high"))
    axes.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
    axes.plot(value, place, marker, color=colour, markerfacecolor="white" if is_hollow else colour, markersize=7)


def read_all(paths: list[Path]) -> list[tuple[Path, dict]]:
    """Every file, or all that is wrong with any.

    Raises:
        ValueError: naming every bad file.
    """
    files, errors = [], []
    for path in paths:
        try:
            files.append((path, read_results(path)))
        except ValueError as error:
            errors.append(str(error))
    if errors:
        raise ValueError("; ".join(errors))
    return files


def compare(paths: list[Path], output: Path) -> str:
    """Write `results.md` and `results.png` about several runs into a folder; returns the page.

    Args:
        paths: of `results.json`, or of the folders that hold them.

    Raises:
        ValueError: naming every file that cannot be read, or what cannot be written.
    """
    sections = sections_of(read_all([path / "results.json" if path.is_dir() else path for path in paths]))
    check_output(output, ("results.md", "results.png"), "output")
    page = markdown(sections)
    (output / "results.md").write_text(page, encoding="utf-8")
    plot(sections, output / "results.png")
    return page
