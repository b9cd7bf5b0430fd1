"""Train readouts on a frozen encoder, at all depths and learning rates in one pass, and test them.

layerlock readout --model PATH_OR_HUB_ID --task classification|depth --data DATA --output_dir OUT
                  [--config ssv2] [--SETTING VALUE ...]

DATA names a dataset, with options; docs/evaluation_data.md of the repository has the layouts. Under `accelerate
launch -m layerlock_hf.cli.readout` or `torchrun`, all processes share each batch. If it is stopped, the same command
resumes.

OUT receives `results.json`, pictures (`sweep.png`, `curves.png`, and `confusion.png` or `depth.png`), the losses in
`metrics.jsonl`, videos that cannot be read in `bad_videos.jsonl`, the weights of all readouts, and in `model/` the
encoder with the best of them, which `AutoModelForVideoClassification` or `AutoModelForDepthEstimation` loads (for
attention readouts, the default of `--readout`).
"""

import sys

from ..evaluation.metrics import MEASURES, MIN_GROUPS
from ..evaluation.plots import SHOWN
from ..evaluation.run import run
from ..utils.processes import run_and_exit
from . import programs  # noqa: F401  (how programs end)
from .run_errors import run_errors_told, settings_errors_told


def summarize(results: dict):
    """Print the best, the one at a fixed depth, and what they must beat."""
    measure = MEASURES[results["task"]]
    metric = measure.main_metric
    shown = SHOWN[metric]
    for name, entry in (("best", results["best"]), ("at depth 0.95", results["fixed_depth"])):
        value = None if entry is None else entry["metrics"][metric]
        if value is not None and value["value"] is not None:
            low, high = shown.text(value["low"]), shown.text(value["high"])
            print(
                f"{name:14} {shown.name} {shown.text(value['value'])} [{low}, {high}]  "
                f"depth {entry['depth']}, learning rate {entry['learning_rate']:g}"
            )
    for name, metrics in results["baselines"].items():
        print(f"{name:14} {shown.name} {shown.text(metrics[metric]['value'])}")
    sign = 1 if measure.is_higher_better else -1
    best = sign * results["best"]["metrics"][metric]["value"]
    unbeaten = [name for name, row in results["baselines"].items() if best <= sign * row[metric]["value"]]
    if unbeaten:
        print(f"The best does not beat {' or '.join(unbeaten)}, without any features: it has shown nothing.")
    drawn = results["intervals"]
    if drawn["units"] == "groups" and drawn["num_units"] < MIN_GROUPS:
        print(
            f"The test items are of {drawn['num_units']} groups only: intervals over so few are wide, and rest on "
            "Student's t"
        )
    for name in ("knn_top1", "ridge_top1"):
        if "probes" in results:
            row = max(results["probes"], key=lambda row: row[name])
            print(f"{name:14} {shown.name} {shown.text(row[name])}  depth {row['depth']}")
    if results["failed"]:
        print(f"{len(results['failed'])} test items could not be read: results.json lists them as failed")


def readout(arguments: list[str]):
    with settings_errors_told(), run_errors_told("num_workers"):
        results = run(arguments)
    if results is not None:  # which only the main process has
        summarize(results)


def main(arguments: list[str]):
    run_and_exit(lambda: readout(arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
