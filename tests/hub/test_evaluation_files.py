"""What becomes of a results.json on the Hub, and in a card."""

import copy

import pytest
import yaml
from hub_folders import CLASSES, DEPTH
from huggingface_hub import ModelCard, ModelCardData, parse_eval_result_entries

from layerlock_hf.evaluation.metrics import MEASURES
from layerlock_hf.evaluation.results import check_results
from layerlock_hf.hub.evaluation_files import TASKS, eval_results_name, eval_results_yaml, model_index
from layerlock_hf.hub.results_table import results_table


BOTH = pytest.mark.parametrize("results", [CLASSES, DEPTH], ids=["classification", "depth"])
BENCHMARK = {"dataset_id": "org/motions", "task_id": "motion_8"}


@BOTH
def test_the_results_of_these_tests_are_such(results):
    check_results(results)


def test_all_tasks_of_readouts_are_known():
    assert {name: task.metrics[0].key for name, task in TASKS.items()} == {
        name: measure.main_metric for name, measure in MEASURES.items()
    }


@BOTH
def test_model_index_survives_the_card(results):
    entries = model_index(results)
    data = ModelCardData(model_name="mine", eval_results=entries)
    assert ModelCard(f"---\n{data.to_yaml()}\n---\n").data.eval_results == entries
    assert {(entry.dataset_name, entry.dataset_type) for entry in entries} == {
        ("motions, tested on test.csv", "motions-tested-on-test-csv")
    }
    best = results["best"]["metrics"]
    values = [(entry.metric_value, entry.metric_args["low"], entry.metric_args["high"]) for entry in entries]
    assert values == [tuple(best[metric.key].values()) for metric in TASKS[results["task"]].metrics]
    assert all("best of 4 readouts, chosen on the test items" in entry.metric_name for entry in entries)


def test_metrics_that_are_not_known_are_left_out():
    results = copy.deepcopy(CLASSES)
    results["best"]["metrics"]["top5"]["value"] = None
    del results["best"]["metrics"]["mean_class_accuracy"]
    assert [entry.metric_name.split(",")[0] for entry in model_index(results)] == ["top-1 accuracy"]
    assert results_table(results).rows[0][2:] == ["–", "–"]


@BOTH
def test_eval_results_can_be_read(results):
    text = eval_results_yaml(results, **BENCHMARK, date="2026-01-02", source_url="https://example.org/run")
    (entry,) = parse_eval_result_entries(yaml.safe_load(text))
    metric = TASKS[results["task"]].metrics[0]
    assert (entry.dataset_id, entry.task_id, entry.date) == ("org/motions", "motion_8", "2026-01-02")
    assert entry.value == results["best"]["metrics"][metric.key]["value"]
    assert entry.source_url == "https://example.org/run"
    for told in (metric.name, "chosen on the test items", "depth 3", "learning rate 0.001", "95% interval"):
        assert told in entry.notes
    assert eval_results_name(**BENCHMARK) == ".eval_results/org-motions-motion-8.yaml"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dataset_id": None}, "dataset_id must be given.*'motions"),
        ({"task_id": ""}, "task_id must be given"),
        ({"dataset_id": "no such/name"}, "no such/name"),
        ({"source_name": "logs"}, "source_url"),
    ],
)
def test_a_benchmark_must_be_named(given, message):
    with pytest.raises(ValueError, match=message):
        eval_results_yaml(CLASSES, **(BENCHMARK | given))


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="classification, depth, got 'flow'"):
        model_index(CLASSES | {"task": "flow"})


def test_the_table_shows_intervals_baselines_and_probes():
    rows = {row[0]: row[1:] for row in results_table(CLASSES).rows}
    assert rows["best of 4 readouts: layer 3, learning rate 0.001"][0] == "40.0% (30.0% to 50.0%)"
    assert rows["best at 95% of the depth: layer 5"][0] == "35.0% (25.0% to 45.0%)"
    assert rows["without pixels: always the commonest class"][0] == "12.5% (12.5% to 12.5%)"
    assert rows["without pixels: clock\\_time"] == ["10.0% (10.0% to 10.0%)", "20.0%", "–"]  # a baseline to come
    assert rows["ridge regression on the mean features, best layer: 4"] == ["42.0%", "–", "–"]
    assert [row[1] for row in results_table(DEPTH).rows] == ["0.150 (0.140 to 0.160)", "0.300 (0.290 to 0.310)"]


def test_five_guesses_among_four_classes_are_no_result():
    few = CLASSES | {"per_class": CLASSES["per_class"][:4]}
    assert results_table(few).header == ["", "top-1 accuracy", "mean accuracy per class"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, "learned from 400 videos of “motions, tested on test.csv” and were tested on 80 videos."),
        ({}, "Layer and learning rate were chosen on the test items, which flatters"),
        ({"model": "mine (random weights)"}, "**This is a control**: the encoder has random weights"),
        ({"settings": {"is_still": True}}, "**This is a control**: every clip repeats one frame"),
        ({"failed": [{"name": "a", "error": "b"}]}, "1 test item could not be measured"),
    ],
)
def test_what_is_told_before_the_table(change, told):
    assert told in results_table(CLASSES | change).text
    assert not change or told not in results_table(CLASSES).text
