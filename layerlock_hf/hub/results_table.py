"""The results of a readout in a card: what was tested, and a table of the readouts and of what needs no encoder."""

from dataclasses import dataclass

from .evaluation_files import Metric, task_of
from .words import cell, counted, public_text


# What baselines of `results.json` do
BASELINES = {
    "majority": "without pixels: always the commonest class",
    "aspect_ratio": "without pixels: the class by the shape of the frames",
    "frame_size": "without pixels: the class by the size of the frames",
    "mean_depth": "without pixels: the mean depth of the training clips",
    "median_depth": "without pixels: their median depth",
    "mean_depth_map": "without pixels: their mean depth, pixel by pixel",
}
# Of the features themselves, from `probes` of `results.json`
PROBES = {
    "ridge_top1": "ridge regression on the mean features",
    "knn_top1": "nearest neighbours among the mean features",
}
TOP_5 = 5
# What makes a readout a control, to compare others with
RANDOM = "**This is a control**: the encoder has random weights."
STILL = "**This is a control**: every clip repeats one frame, so that nothing moves."


@dataclass(frozen=True)
class Table:
    """A table with the text before it."""

    text: str
    header: list[str]
    rows: list[list[str]]


def results_table(results: dict) -> Table:
    """What a `results.json` says, as a card shows it."""
    task = task_of(results)
    metrics = [metric for metric in task.metrics if _tells(metric, results)]
    best, fixed, points = results["best"], results["fixed_depth"], len(results["members"])
    rows = [[f"best of {counted(points, 'readout')}: layer {best['depth']}, learning rate {best['learning_rate']:g}"]]
    shown = [best["metrics"]]
    if fixed is not None and fixed["depth"] != best["depth"]:
        rows.append([f"best at {fixed['depth_fraction']:.0%} of the depth: layer {fixed['depth']}"])
        shown.append(fixed["metrics"])
    for name, values in results["baselines"].items():
        rows.append([BASELINES.get(name, f"without pixels: {cell(name)}")])
        shown.append(values)
    for row, values in zip(rows, shown, strict=True):
        row += [_text(metric, values.get(metric.key)) for metric in metrics]
    rows += _probe_rows(results, metrics)
    return Table(_about(results, task.item), ["", *(metric.name for metric in metrics)], rows)


def _probe_rows(results: dict, metrics: list[Metric]) -> list[list[str]]:
    rows = []
    for name, text in PROBES.items() if results.get("probes") else ():
        best = max(results["probes"], key=lambda row: row[name])
        value, *others = metrics
        row = [f"{text}, best layer: {best['depth']}", value.form.format(best[name]), *("–" for _ in others)]
        rows.append(row)
    return rows


def _tells(metric: Metric, results: dict) -> bool:
    """Five guesses among five classes are always right."""
    return metric.key != "top5" or len(results["per_class"]) > TOP_5


def _about(results: dict, item: str) -> str:
    intervals, failed = results["intervals"], len(results["failed"])
    drawn = f"{intervals['num_units']:,} {intervals['units']} of the test set"
    settings = results["settings"]
    sentences = [
        RANDOM if results["model"].endswith("(random weights)") else "",
        STILL if settings.get("is_still") else "",
        f"Readouts, small heads on the frozen encoder, learned from {counted(results['num_train'], item)} of "
        f"“{cell(public_text(results['dataset']))}” and were tested on {counted(results['num_test'], item)}.",
        f"{counted(failed, 'test item')} could not be measured." if failed else "",
        f"In brackets: {intervals['confidence']:.0%} intervals of a bootstrap over {drawn}. They say how the numbers "
        "would vary with other test items, not with other seeds.",
        f"Layer and learning rate were chosen on the {results['best']['is_chosen_on']} items"
        + (", which flatters the best readout." if results["best"]["is_chosen_on"] == "test" else "."),
    ]
    return " ".join(filter(None, sentences))


def _text(metric: Metric, values: dict | None) -> str:
    if values is None or values["value"] is None:
        return "–"
    value = metric.form.format(values["value"])
    if None in (values["low"], values["high"]):
        return value
    return f"{value} ({metric.form.format(values['low'])} to {metric.form.format(values['high'])})"
