"""The results of a sweep of readouts: built from scores per sample, checked, written and read as `results.json`."""

import json
import math
import os
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch

from ..models import readout_depth_from_fraction
from ..utils.files import write_aside
from .metrics import (
    CONFIDENCE,
    MEASURES,
    NUM_RESAMPLES,
    SampleScores,
    confusion_matrix,
    intervals,
    measure,
    resampling_units,
)
from .protocol import SweepPoint


FIXED_DEPTH_FRACTION = 0.95  # (LayerLock, sec. 4)
NOT_MEASURABLE = "nothing is known of it to compare a prediction with"

# What `results.json` holds: types by key, `...` for every key, and lists of one type
NUMBER = (int, float)
NUMBER_OR_NULL = (int, float, type(None))  # null where a point diverged, or where there is nothing to count
ABOUT = {
    "dataset": str,
    "model": str,
    "command": str,
    "settings": dict,
    "versions": dict,
    "seconds": NUMBER,
    "num_train": int,
}
MEMBER = {"depth": int, "depth_fraction": NUMBER, "learning_rate": NUMBER}
INTERVALS = {...: dict.fromkeys(("value", "low", "high"), NUMBER_OR_NULL)}
SHOWN = {**MEMBER, "metrics": INTERVALS, "is_chosen_on": str}
CONTENT = {
    "task": str,
    **ABOUT,
    "num_test": int,
    "failed": [{"name": str, "error": str}],
    "intervals": {"confidence": NUMBER, "num_resamples": int, "seed": int, "units": str, "num_units": int},
    "members": [{**MEMBER, "metrics": {...: NUMBER_OR_NULL}}],
    "best": SHOWN,
    "fixed_depth": (dict, type(None)),
    "per_depth": [SHOWN],
    "baselines": {...: INTERVALS},
}
PROBES = [{"depth": int, "knn_top1": NUMBER, "ridge_top1": NUMBER}]  # may be absent
CLASSES = {"per_class": [{"name": str, "num": int, "accuracy": NUMBER_OR_NULL}], "confusion": [[int]]}


@dataclass(frozen=True)
class TestSet:
    """The test items, whether or not they could be read.

    Args:
        names: one per item.
        failed: the errors of items that could not be read, by their place.
        groups: what items belong together, one name per item, or None.
        class_names: in the order of the classes; empty where there are none.
    """

    names: list[str]
    failed: dict[int, str]
    groups: list[str] | None
    class_names: list[str]

    __test__ = False  # no test of pytest's


def build_results(
    task: str,
    points: dict[SweepPoint, SampleScores],
    test_set: TestSet,
    num_layers: int,
    baselines: dict[str, SampleScores],
    about: dict,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    probes: list[dict] | None = None,
) -> dict:
    """What `results.json` holds.

    The best point is chosen by the main metric of the task on the test items, as the paper does (LayerLock, sec.
    A.4: "report the best results"), which flatters it. Members whose predictions are not finite have null for metrics,
    and are never the best. Items without any known truth, such as clips without depth, are listed with those that
    failed.

    Args:
        task: a key of `MEASURES`.
        points: of the sweep, each with a row for every item that did not fail (`score_classes`, `score_depth`).
        test_set: the items.
        num_layers: of the encoder; says which depth is at the fraction 0.95.
        baselines: rows of predictions that need no encoder, by name.
        about: "dataset", "model", "command", "settings" (what the numbers depend on: steps, sizes, seed; not paths),
            "versions", "seconds", "num_train".
        num_resamples, seed: of the bootstrap (`intervals`).
        probes: what else was asked of the features (`probes.probe_accuracies`).

    Raises:
        ValueError: if rows are missing or too many, or no point predicts finite values.
    """
    if task not in MEASURES:
        raise ValueError(f"task must be one of {', '.join(MEASURES)}, got {task!r}")
    if not points:
        raise ValueError("points must hold at least one point of the sweep, got none")
    for point, samples in points.items():
        _check_rows(f"depth {point.depth}, learning rate {point.learning_rate:g}", samples, test_set)
    for name, samples in baselines.items():
        _check_rows(f"baseline {name}", samples, test_set)
    any_rows = next(iter(points.values()))  # all have the same items
    is_measurable = any_rows["num"] > 0
    kept = any_rows["index"][is_measurable].tolist()
    if not kept:
        raise ValueError(f"none of {len(test_set.names)} test items could be measured: {_first_error(test_set)}")
    groups = None if test_set.groups is None else [test_set.groups[index] for index in kept]
    units, unit_name = resampling_units(len(kept), groups)

    def with_intervals(samples: SampleScores) -> dict:
        rows = {name: values[is_measurable] for name, values in samples.items()}
        found = intervals(MEASURES[task], rows, groups, num_resamples, seed=seed)
        return {name: {key: _finite(number) for key, number in values.items()} for name, values in found.items()}

    def entry(point: SweepPoint, metrics: dict) -> dict:
        return {
            "depth": point.depth,
            "depth_fraction": point.depth_fraction,
            "learning_rate": point.learning_rate,
            "metrics": metrics,
        }

    ordered = sorted(points, key=lambda point: (point.depth, point.learning_rate))
    scores = _scores(task, points)
    best = min(ordered, key=scores.get)
    if math.isinf(scores[best]):
        raise ValueError("no point of the sweep predicts finite values: use lower learning rates")
    of_depths = [min(group, key=scores.get) for _, group in groupby(ordered, key=lambda point: point.depth)]
    fixed_depth = readout_depth_from_fraction(num_layers, FIXED_DEPTH_FRACTION)
    shown = {point: entry(point, with_intervals(points[point])) | {"is_chosen_on": "test"} for point in of_depths}
    failed = test_set.failed | {index: NOT_MEASURABLE for index in any_rows["index"][~is_measurable].tolist()}
    results = {
        "task": task,
        **{key: about[key] for key in ABOUT},
        "num_test": len(kept),
        "failed": [{"name": test_set.names[index], "error": failed[index]} for index in sorted(failed)],
        "intervals": {
            "confidence": CONFIDENCE,
            "num_resamples": num_resamples,
            "seed": seed,
            "units": unit_name,
            "num_units": int(units.max()) + 1,
        },
        "members": [
            entry(point, {name: _finite(value) for name, value in measure(MEASURES[task], points[point]).items()})
            for point in ordered
        ],
        "best": shown[best],
        "fixed_depth": next((shown[point] for point in of_depths if point.depth == fixed_depth), None),
        "per_depth": [shown[point] for point in of_depths],
        **_per_class(points[best], test_set.class_names),
        "baselines": {name: with_intervals(samples) for name, samples in baselines.items()},
        **({} if probes is None else {"probes": probes}),
    }
    check_results(results)
    return results


def _check_rows(whose: str, samples: SampleScores, test_set: TestSet):
    """Every test item is scored once, or failed."""
    expected = [index for index in range(len(test_set.names)) if index not in test_set.failed]
    found = samples["index"].tolist()
    if found != expected:
        wrong = sorted(set(found) ^ set(expected))
        names = ", ".join(test_set.names[index] if index < len(test_set.names) else str(index) for index in wrong[:3])
        raise ValueError(
            f"{whose}: {len(found)} test items are scored, {len(expected)} of {len(test_set.names)} could be read"
            + (f"; these differ: {names}" if wrong else "; they must come in order, each once")
        )


def _first_error(test_set: TestSet) -> str:
    index = min(test_set.failed, default=None)
    return NOT_MEASURABLE if index is None else f"{test_set.names[index]}: {test_set.failed[index]}"


def _scores(task: str, points: dict[SweepPoint, SampleScores]) -> dict[SweepPoint, float]:
    """Least for the best point, infinite for those that do not predict finite values."""
    metric, sign = MEASURES[task].main_metric, -1 if MEASURES[task].is_higher_better else 1
    scores = {}
    for point, samples in points.items():
        value = measure(MEASURES[task], samples)[metric]
        scores[point] = sign * value if math.isfinite(value) else math.inf
    return scores


def _per_class(samples: SampleScores, class_names: list[str]) -> dict:
    if not class_names:
        return {}
    matrix = confusion_matrix(samples, len(class_names))
    nums = torch.bincount(samples["label"], minlength=len(class_names)).tolist()
    right = matrix.diagonal().tolist()
    return {
        "per_class": [
            {"name": name, "num": num, "accuracy": correct / num if num else None}
            for name, num, correct in zip(class_names, nums, right, strict=True)
        ],
        "confusion": matrix.tolist(),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def check_results(results) -> None:
    """Refuse anything that is not the content of a `results.json`.

    Raises:
        ValueError: naming the first thing that is wrong.
    """
    _check(results, CONTENT, "")
    if results["task"] not in MEASURES:
        raise ValueError(f"task must be one of {', '.join(MEASURES)}, got {results['task']!r}")
    if not results["members"]:
        raise ValueError("members must hold at least one member, got none")
    if results["fixed_depth"] is not None:
        _check(results["fixed_depth"], SHOWN, "fixed_depth")
    if "probes" in results:
        _check(results["probes"], PROBES, "probes")
    if results["task"] == "classification":
        _check(results, CLASSES, "")
        size = len(results["per_class"])
        if [len(row) for row in results["confusion"]] != [size] * size:
            raise ValueError(f"confusion must be {size} lists of {size} counts, as per_class has {size} classes")
    main_metric = MEASURES[results["task"]].main_metric
    measured = {f"members[{place}]": row["metrics"] for place, row in enumerate(results["members"])}
    measured |= {f"per_depth[{place}]": row["metrics"] for place, row in enumerate(results["per_depth"])}
    measured |= {name: results[name]["metrics"] for name in ("best", "fixed_depth") if results[name] is not None}
    measured |= {f"baselines.{name}": metrics for name, metrics in results["baselines"].items()}
    for where, metrics in measured.items():
        if main_metric not in metrics:
            raise ValueError(f"{where} has no {main_metric}")
    certain = {"best": results["best"]["metrics"], **results["baselines"]}
    for name, metrics in certain.items():
        if None in metrics[main_metric].values():
            raise ValueError(f"{main_metric} of {name} is null")


def _check(value, kind, where: str):
    """Whether a value is of a kind: a type or several, [kind] or {key: kind}."""
    if isinstance(kind, dict):
        _check_type(value, dict, where)
        kinds = dict.fromkeys(value, kind[...]) if ... in kind else kind
        for key, inner in kinds.items():
            name = f"{where}.{key}" if where else key
            if key not in value:
                raise ValueError(f"{name} is missing")
            _check(value[key], inner, name)
    elif isinstance(kind, list):
        _check_type(value, list, where)
        for place, element in enumerate(value):
            _check(element, kind[0], f"{where}[{place}]")
    else:
        _check_type(value, kind, where)


def _check_type(value, kinds, where: str):
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise ValueError(f"{where or 'the content'} is of the wrong type: {json.dumps(value)[:60]}")


def write_results(results: dict, path: str | os.PathLike):
    """Write `results.json`, strict JSON, whole or not at all.

    Raises:
        ValueError: as `check_results`, or for values that JSON does not have (NaN).
    """
    check_results(results)
    with write_aside(path) as aside:
        aside.write_text(_text(results), encoding="utf-8")


def _text(results: dict) -> str:
    """JSON with a line per key, and per element of a list: a confusion matrix takes a line per class."""

    def dump(value) -> str:
        return json.dumps(value, allow_nan=False, ensure_ascii=False)

    lines = [
        f" {dump(key)}: [\n  " + ",\n  ".join(map(dump, value)) + "\n ]"
        if isinstance(value, list) and value
        else f" {dump(key)}: {dump(value)}"
        for key, value in results.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read_results(path: str | os.PathLike) -> dict:
    """The content of a `results.json`.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refuse)
        check_results(results)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # of JSON and of its encoding too
        raise ValueError(f"{path} holds no results: {error}") from error
    return results


def _refuse(constant: str):
    raise ValueError(f"{constant} is not JSON")
