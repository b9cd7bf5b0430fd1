"""When the layers of a run have settled, and the freeze schedule that follows.

layerlock analyze plateau RUN --data VIDEOS [--output_dir OUT]

RUN is a run of pretraining with checkpoints, best one that freezes nothing, such as the baseline of a recipe: train it
with a save_steps of 5% of max_steps, or less. A layer has settled once, at its pace over two intervals of 5% of the
run, neither what it represents (CKA) nor the norm of its weights will change much until the end. Prints for each layer
when that was, or what it still waits for, and the settings of a schedule; `schedule: auto` decides by the same rule
while a run trains.

Writes to OUT, by default RUN/plateau, plateau.json and plateau.png.
"""

import argparse
import sys

from transformers.utils import logging

from ..pretraining.plateau import PICTURE, RESULTS, find_plateau
from ..training.settling import MAX_DRIFT, MAX_GROWTH, SettlingRule
from ..utils.records import json_text
from . import programs


def make_parser() -> argparse.ArgumentParser:
    parser = programs.Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("run", type=programs.folder, metavar="RUN", help="Folder of the run.")
    add("--data", required=True, help="Videos to look at, as of `layerlock pretrain`.")
    add("--output_dir", type=programs.folder, help="Folder to write to (default: RUN/plateau).")
    add("--max_frozen", type=programs.whole(1), help="Layers to freeze at most (default: three quarters).")
    add("--settled_drift", type=float, default=MAX_DRIFT, help=f"Limit of the drift (default {MAX_DRIFT}).")
    add("--settled_growth", type=float, default=MAX_GROWTH, help=f"Limit of the growth (default {MAX_GROWTH}).")
    add("--json", action="store_true", help="Print one JSON object instead.")
    return parser


def print_plateau(summary: dict):
    for one in summary["settled"]:
        if one["step"] is not None:
            share = one["step"] / summary["max_steps"]
            print(f"layer {one['layer']}: settled by step {one['step']}, {share:.0%} of the run")
        else:
            print(f"layer {one['layer']}: wait: {one['waits']}")
    if summary["schedule"] is None:
        print("No layer should freeze in this run: wait, train longer, or lower the learning rate sooner.")
        return
    print("A schedule that freezes no layer before it has settled, for the recipe:")
    for name, value in summary["schedule"].items():
        print(f"  {name}: {value}")


def main(arguments: list[str]):
    args = make_parser().parse_args(arguments)
    with programs.errors_told():
        logging.disable_progress_bar()
        folder = args.output_dir or args.run / "plateau"
        rule = SettlingRule(args.settled_drift, args.settled_growth)
        summary = find_plateau(args.run, args.data, folder, rule, args.max_frozen)
    if args.json:
        return print(json_text(summary))
    print_plateau(summary)
    print(f"{folder / PICTURE} shows it, {folder / RESULTS} has the numbers")


if __name__ == "__main__":
    main(sys.argv[1:])
