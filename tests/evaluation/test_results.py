import json
import re

import pytest
import torch

from layerlock_hf.evaluation.metrics import score_classes, score_depth
from layerlock_hf.evaluation.protocol import SweepPoint
from layerlock_hf.evaluation.results import (
    NOT_MEASURABLE,
    TestSet,
    build_results,
    read_results,
    write_results,
)


ABOUT = {
    "dataset": "actions",
    "model": "org/model",
    "command": "train_readout.py",
    "settings": {"max_steps": 10},
    "versions": {"torch": "2"},
    "seconds": 1.5,
    "num_train": 7,
}
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
NUM_LAYERS = 12  # of which 0.95 is depth 10


def rows_with(num_right: int, labels=LABELS, indices=None):
    """Rows of which the first `num_right` are right."""
    indices = torch.arange(len(labels)) if indices is None else torch.tensor(indices)
    probabilities = torch.full((len(labels), 3), 0.1)
    predicted = torch.where(torch.arange(len(labels)) < num_right, labels, (labels + 1) % 3)
    probabilities[range(len(labels)), predicted] = 0.8
    return score_classes(probabilities, labels, indices)


def depth_rows(factor: float, metres):
    return score_depth(factor * metres, metres, torch.arange(len(metres)))


@pytest.fixture
def test_set():
    return TestSet(
        [f"{place}.mp4" for place in range(6)], {}, ["a", "a", "b", "b", "c", "c"], ["hug", "kick", "point"]
    )


@pytest.fixture
def points():
    """Four points; the best is at depth 7."""
    rights = {(10, 1e-3): 3, (10, 1e-4): 4, (7, 1e-3): 5, (7, 1e-4): 2}
    return {SweepPoint(depth, depth / 12, rate): rows_with(right) for (depth, rate), right in rights.items()}


def build(points, test_set, task="classification", **options):
    return build_results(task, points, test_set, NUM_LAYERS, options.pop("baselines", {}), ABOUT, 50, **options)


def test_results_of_a_sweep(points, test_set):
    results = build(points, test_set, baselines={"majority": rows_with(2)})
    assert {key: results[key] for key in ABOUT} == ABOUT
    assert (results["num_test"], results["failed"]) == (6, [])
    assert [(row["depth"], row["learning_rate"]) for row in results["members"]] == [
        (7, 1e-4),
        (7, 1e-3),
        (10, 1e-4),
        (10, 1e-3),
    ]
    best = results["best"]
    assert (best["depth"], best["learning_rate"], best["is_chosen_on"]) == (7, 1e-3, "test")
    top1 = best["metrics"]["top1"]
    assert top1["value"] == 5 / 6
    assert top1["low"] <= top1["value"] <= top1["high"]
    fixed = results["fixed_depth"]
    assert (fixed["depth"], fixed["learning_rate"], fixed["metrics"]["top1"]["value"]) == (10, 1e-4, 4 / 6)
    assert results["per_depth"] == [best, fixed]
    # Of the best: all but the last video, of class 2, which is taken for class 0
    assert results["per_class"] == [
        {"name": "hug", "num": 2, "accuracy": 1},
        {"name": "kick", "num": 2, "accuracy": 1},
        {"name": "point", "num": 2, "accuracy": 0.5},
    ]
    assert results["confusion"] == [[2, 0, 0], [0, 2, 0], [1, 0, 1]]
    assert results["baselines"]["majority"]["top1"]["value"] == 2 / 6
    assert results["intervals"] == {
        "confidence": 0.95,
        "num_resamples": 50,
        "seed": 0,
        "units": "groups",
        "num_units": 3,
    }


def test_probes_are_kept_and_checked(points, test_set):
    probes = [{"depth": 4, "knn_top1": 0.4, "ridge_top1": 0.5}]
    assert build(points, test_set, probes=probes)["probes"] == probes
    with pytest.raises(ValueError, match=r"probes\[0\].ridge_top1 is missing"):
        build(points, test_set, probes=[{"depth": 4, "knn_top1": 0.4}])


def test_the_order_of_members_decides_nothing(points, test_set):
    tie = {SweepPoint(10, 0.95, 3e-4): rows_with(5)}
    expected = build(points | tie, test_set)
    assert build(tie | dict(reversed(points.items())), test_set) == expected
    assert expected["best"]["depth"] == 7


def test_a_sweep_that_leaves_out_the_fixed_depth(points, test_set):
    assert build({m: rows for m, rows in points.items() if m.depth == 7}, test_set)["fixed_depth"] is None


def test_depth_is_better_when_lower_and_unknown_depth_fails(tmp_path):
    metres = 1 + torch.rand(4, 2, 4, 4)
    metres[2] = 0
    test_set = TestSet(["a", "b", "c", "d", "e"], {4: "truncated"}, None, [])
    points = {SweepPoint(10, 0.95, rate): depth_rows(factor, metres) for rate, factor in ((1e-4, 1.5), (1e-3, 0.9))}
    results = build(points, test_set, "depth", baselines={"mean_depth": depth_rows(2, metres)})
    assert results["best"]["learning_rate"] == 1e-3
    assert results["best"]["metrics"]["abs_rel"]["value"] == pytest.approx(0.1, rel=1e-4)
    assert results["fixed_depth"] == results["best"]
    assert results["num_test"] == results["intervals"]["num_units"] == 3
    assert results["intervals"]["units"] == "items"
    assert results["failed"] == [{"name": "c", "error": NOT_MEASURABLE}, {"name": "e", "error": "truncated"}]
    assert "confusion" not in results
    write_results(results, tmp_path / "results.json")
    assert read_results(tmp_path / "results.json") == results


def test_a_member_that_diverged_is_never_the_best(tmp_path):
    metres = 1 + torch.rand(3, 2, 4, 4)
    test_set = TestSet(["a", "b", "c"], {}, None, [])
    diverged = {SweepPoint(10, 0.95, 1.0): depth_rows(torch.nan, metres)}
    results = build(diverged | {SweepPoint(7, 0.75, 1e-3): depth_rows(2, metres)}, test_set, "depth")
    assert results["best"]["depth"] == 7
    assert results["members"][1]["metrics"]["abs_rel"] is None
    assert results["fixed_depth"]["metrics"]["abs_rel"] == {"value": None, "low": None, "high": None}
    write_results(results, tmp_path / "results.json")
    assert read_results(tmp_path / "results.json") == results
    with pytest.raises(ValueError, match="no point of the sweep predicts finite values"):
        build(diverged, test_set, "depth")


def test_failed_videos_are_listed_and_no_other_is_lost(points, test_set):
    few = rows_with(4, LABELS[[0, 1, 3, 4, 5]], [0, 1, 3, 4, 5])
    without_one = TestSet(test_set.names, {2: "missing"}, test_set.groups, test_set.class_names)
    results = build({SweepPoint(10, 0.95, 1e-3): few}, without_one)
    assert (results["num_test"], results["failed"]) == (5, [{"name": "2.mp4", "error": "missing"}])
    with pytest.raises(ValueError, match=r"depth 10, learning rate 0\.001: 5 test items .* differ: 2\.mp4"):
        build({SweepPoint(10, 0.95, 1e-3): few}, test_set)
    with pytest.raises(ValueError, match=r"baseline majority: 5 test items"):
        build(points, test_set, baselines={"majority": few})
    twice = {name: torch.cat([values, values]) for name, values in rows_with(3).items()}
    with pytest.raises(ValueError, match="12 test items are scored.* in order, each once"):
        build({SweepPoint(10, 0.95, 1e-3): twice}, test_set)


def test_tasks_that_do_not_exist(points, test_set):
    with pytest.raises(ValueError, match="task must be one of classification, depth, got 'pose'"):
        build(points, test_set, "pose")


def test_nothing_to_build_from(test_set):
    with pytest.raises(ValueError, match="points must hold at least one point of the sweep, got none"):
        build({}, test_set)
    all_failed = TestSet(["a", "b"], {0: "missing", 1: "empty"}, None, ["hug"])
    with pytest.raises(ValueError, match="none of 2 test items could be measured: a: missing"):
        build({SweepPoint(10, 0.95, 1e-3): rows_with(0, LABELS[:0], [])}, all_failed)


def test_a_file_of_results(points, test_set, tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    results = build(points, test_set)
    write_results(results, path)
    assert read_results(path) == results
    assert list(read_results(path)) == list(results)
    assert "\n  [2, 0, 0],\n" in path.read_text()
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_json_replaces_no_file(points, test_set, tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    with pytest.raises(ValueError):
        write_results(build(points, test_set) | {"seconds": float("nan")}, path)
    with pytest.raises(ValueError, match="num_train is missing"):
        write_results({"task": "depth"} | {key: value for key, value in ABOUT.items() if key != "num_train"}, path)
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"task": "pose"}, "task must be one of classification, depth, got 'pose'"),
        ({"members": []}, "members must hold at least one member, got none"),
        ({"num_test": "6"}, 'num_test is of the wrong type: "6"'),
        ({"num_test": True}, "num_test is of the wrong type: true"),
        ({"best": {"depth": 1}}, "best.depth_fraction is missing"),
        ({"confusion": [[1]]}, "confusion must be 3 lists of 3 counts"),
        ({"confusion": [1, 2, 3]}, r"confusion\[0\] is of the wrong type: 1"),
        ({"per_depth": [3]}, r"per_depth\[0\] is of the wrong type: 3"),
        ({"fixed_depth": {}}, "fixed_depth.depth is missing"),
        ({"intervals": {}}, "intervals.confidence is missing"),
        ({"failed": ["a.mp4"]}, r'failed\[0\] is of the wrong type: "a.mp4"'),
        ({"baselines": {"majority": {"top1": 0.5}}}, "baselines.majority.top1 is of the wrong type: 0.5"),
        ({"baselines": {"majority": {}}}, "baselines.majority has no top1"),
    ],
)
def test_a_damaged_file(points, test_set, tmp_path, change, message):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(build(points, test_set) | change))
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} holds no results: .*{message}"):
        read_results(path)


def test_the_best_has_a_value(points, test_set, tmp_path):
    results = build(points, test_set)
    results["best"]["metrics"]["top1"]["low"] = None
    with pytest.raises(ValueError, match="top1 of best is null"):
        write_results(results, tmp_path / "results.json")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"{", "holds no results"),
        (b"[]", r"the content is of the wrong type: \[\]"),
        (b'{"a": NaN}', "NaN is not JSON"),
    ]
    + [(b"\xff\xfe", "holds no results"), (None, "cannot be read: No such file")],
)
def test_no_file_of_results(tmp_path, content, message):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_results(path)
