"""In which order layers converge: what it costs to freeze the first L layers at step T (LayerLock, Fig. 1).

layerlock analyze convergence --config demo-fig1 --train_data VIDEOS --output_dir OUT [--SETTING VALUE ...]

Trains a baseline that is never frozen, and from its checkpoint of every step T goes on to the end with the first L
layers frozen and the same target, for every L. The final loss is the mean over the last steps; layers have converged
at the earliest T from which on it deviates from the baseline's by less than the threshold. Takes the settings of
`layerlock pretrain`. The same command goes on where it was stopped: what is finished is not run again. A branch that
fails is named, does not stop the others, and makes the program exit with 1.

Writes to OUT convergence.json, convergence.csv (a row per branch), convergence.png, and the runs.
"""

import argparse
import sys

from ..analysis.convergence import THRESHOLD
from ..pretraining.convergence import PICTURE, measure_convergence
from ..pretraining.jobs import RunFailed, exit_when_terminated
from ..pretraining.planning import given_settings
from . import programs


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--config", required=True, help="Recipe that freezes nothing: fig1, demo-fig1, or any other of one stage.")
    add("--train_data", nargs="+", required=True, help="Videos, as of `layerlock pretrain`.")
    add("--output_dir", type=programs.folder, required=True, metavar="OUT", help="Folder to write to.")
    add(
        "--layers",
        type=programs.whole(0),
        nargs="+",
        help="Numbers of leading layers to freeze (default: 3, 6, 9 and 12 of every 16); 0 is a control.",
    )
    add("--steps", type=programs.whole(1), nargs="+", help="Steps to freeze them at (default: sevenths of the run).")
    add("--last_steps", type=programs.whole(1), help="Steps of the final loss (default: a fourteenth of the run).")
    add(
        "--threshold",
        type=float,
        default=THRESHOLD,
        help=f"Deviation in per cent below which layers have converged (default {THRESHOLD:g}).",
    )
    add(
        "--jobs",
        type=programs.whole(1),
        default=1,
        help="Branches at the same time, spread over the GPUs (default 1).",
    )
    return parser


def main(arguments: list[str]):
    own, rest = make_parser().parse_known_args(arguments)
    exit_when_terminated()
    try:
        with programs.errors_told():
            settings = given_settings(["--config", own.config, *rest], also=vars(own))
            del settings["config"]
            results = measure_convergence(
                own.config,
                own.train_data,
                own.output_dir,
                own.layers,
                own.steps,
                own.last_steps,
                own.threshold,
                own.jobs,
                settings,
            )
    except RunFailed as error:
        raise SystemExit(f"error: {error}") from None
    for row in results["converged"]:
        step = "not within the grid" if row["step"] is None else f"step {row['step']:,}"
        print(f"layers 1 to {row['layers']} have converged: {step}" if row["layers"] else f"control: {step}")
    for name, what in (("step_correlation", "step of convergence"), ("deviation_correlation", "deviation")):
        value = "not defined" if results[name] is None else f"{results[name]:.2f}"
        print(f"rank correlation of depth and {what}: {value}")
    print(f"look at {own.output_dir / PICTURE}")
    failed = results["failed"]
    if failed:
        told = f"{len(failed)} of {len(failed) + len(results['points'])} branches failed"
        raise SystemExit(f"error: {told}, the first of them {failed[0]}")


if __name__ == "__main__":
    main(sys.argv[1:])
