"""The results of a readout in the forms that the Hub reads: `model-index` of a card, and `.eval_results/*.yaml`.

`results` is the content of a `results.json`, as `layerlock readout` writes it.
"""

import re
from dataclasses import dataclass

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.utils import validate_repo_id

from .words import public_text


@dataclass(frozen=True)
class Metric:
    """A metric of `results.json`.

    Args:
        key: in `results.json`.
        type: what the Hub calls it.
        name: in words.
        form: of a value in a table.
    """

    key: str
    type: str
    name: str
    form: str


@dataclass(frozen=True)
class Task:
    """A task of readouts.

    Args:
        type: what the Hub calls it.
        metrics: that cards show, the main one first.
        item: what is tested.
    """

    type: str
    metrics: tuple[Metric, ...]
    item: str


TASKS = {
    "classification": Task(
        "video-classification",
        (
            Metric("top1", "accuracy", "top-1 accuracy", "{:.1%}"),
            Metric("top5", "accuracy", "top-5 accuracy", "{:.1%}"),
            Metric("mean_class_accuracy", "accuracy", "mean accuracy per class", "{:.1%}"),
        ),
        "video",
    ),
    "depth": Task(
        "depth-estimation",
        (
            Metric("abs_rel", "abs_rel", "mean relative error (AbsRel)", "{:.3f}"),
            Metric("delta1", "delta1", "pixels within a factor of 1.25", "{:.1%}"),
            Metric("rmse", "rmse", "root mean squared error in metres", "{:.3f}"),
        ),
        "clip",
    ),
}


def task_of(results: dict) -> Task:
    """What was tested.

    Raises:
        ValueError: if it is no task of ours.
    """
    if results.get("task") not in TASKS:
        raise ValueError(f"task of the results must be one of {', '.join(TASKS)}, got {results.get('task')!r}")
    return TASKS[results["task"]]


def choice(results: dict) -> str:
    """How the best readout was chosen: "best of 18 readouts, chosen on the test items"."""
    return f"best of {len(results['members'])} readouts, chosen on the {results['best']['is_chosen_on']} items"


def model_index(results: dict) -> list[EvalResult]:
    """The best readout, for `eval_results` of `ModelCardData`: one entry per metric, each with its interval."""
    task, best, dataset = task_of(results), results["best"], public_text(results["dataset"])
    return [
        EvalResult(
            task_type=task.type,
            dataset_type=slug(dataset),
            dataset_name=dataset,
            dataset_split="test",
            metric_type=metric.type,
            metric_value=best["metrics"][metric.key]["value"],
            metric_name=f"{metric.name}, {choice(results)}",
            metric_args={
                "depth": best["depth"],
                "learning_rate": best["learning_rate"],
                "confidence": results["intervals"]["confidence"],
                "low": best["metrics"][metric.key]["low"],
                "high": best["metrics"][metric.key]["high"],
            },
        )
        for metric in task.metrics
        if best["metrics"].get(metric.key, {}).get("value") is not None
    ]


def eval_results_name(dataset_id: str, task_id: str) -> str:
    """Where in a repository the results on a benchmark go."""
    return f".eval_results/{slug(dataset_id)}-{slug(task_id)}.yaml"


def eval_results_yaml(
    results: dict,
    dataset_id: str | None,
    task_id: str | None,
    dataset_revision: str | None = None,
    date: str | None = None,
    source_url: str | None = None,
    source_name: str | None = None,
) -> bytes:
    """The best readout's main metric as an entry of `.eval_results/*.yaml`, which the benchmark's leaderboard shows.

    Args:
        dataset_id: data set on the Hub that is registered there as a benchmark. `results.json` has only a name that
            the user chose.
        task_id: the task, as `eval.yaml` of that data set calls it.
        dataset_revision: its commit.
        date: of the evaluation, ISO 8601; that of the commit if None.
        source_url, source_name: where more is told about the evaluation.

    Raises:
        ValueError: if the benchmark is not named, or the source has a name and no address.
    """
    for name, value in (("dataset_id", dataset_id), ("task_id", task_id)):
        if not value:
            raise ValueError(
                f"{name} must be given, as .eval_results names a benchmark of the Hub and results.json has only the "
                f"name {results['dataset']!r}: give both dataset_id and task_id, or leave the results to model-index"
            )
    validate_repo_id(dataset_id)
    best, task = results["best"], task_of(results)
    values = best["metrics"][task.metrics[0].key]
    confidence = results["intervals"]["confidence"]
    entry = EvalResultEntry(
        dataset_id=dataset_id,
        task_id=task_id,
        value=values["value"],
        dataset_revision=dataset_revision,
        date=date,
        source_url=source_url,
        source_name=source_name,
        notes=(
            f"{task.metrics[0].name} of a readout on a frozen encoder; {choice(results)}; depth {best['depth']}, "
            f"learning rate {best['learning_rate']:g}; {confidence:.0%} interval {values['low']:.4g} to "
            f"{values['high']:.4g}"
        ),
    )
    return yaml.safe_dump(
        eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True, width=1000
    ).encode()


def slug(name: str) -> str:
    """A name in small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unnamed"
