"""Inspect the data of a run before it starts: what the model sees, what each loading step costs, what to change.

layerlock inspect --config RECIPE --train_data VIDEOS --output_dir OUT [--SETTING VALUE ...]

Takes the settings of `layerlock pretrain` and makes the first clips of that run step by step. Writes to OUT
`clips.png` (clips with their masks, video and time) and `times.png`. Prints the times, the clips per second that data
workers make, advice, and the bad videos encountered. Nothing is trained, and no file of a run in OUT is changed.
"""

import argparse
import math
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import torch

from ..data.inspection.advice import advice
from ..data.inspection.plots import plot_times
from ..pretraining.arguments import RunSettings, parse
from ..pretraining.inspection import CLIPS, TIMES, inspect_run
from ..utils.outputs import print_table
from . import programs  # noqa: F401  (how programs end)
from .run_errors import run_errors_told, settings_errors_told


def parser_of_this_program() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--num_clips", type=int, default=16, help="Number of clips to time (default 16).")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="Seconds for which to time the data workers (default 5)."
    )
    parser.add_argument(
        "--step_seconds",
        type=float,
        help="Seconds per training step of this recipe on one process, as `pretrain --rehearse true` prints.",
    )
    return parser


def read_settings(arguments: list[str]) -> tuple[argparse.Namespace, RunSettings]:
    """The settings of this program and those of the run.

    Raises:
        ValueError: naming the setting that is wrong.
    """
    own, rest = parser_of_this_program().parse_known_args(arguments)
    for name, value in vars(own).items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be above 0, got {value}")
    # Recipes in bf16 ask for a GPU, which reading videos does not need
    here = [] if torch.cuda.is_available() else ["--use_cpu", "true"]
    return own, parse([*here, *rest], also=vars(own))


def main(arguments: list[str]):
    with (
        settings_errors_told(),
        run_errors_told("dataloader_num_workers"),
        tempfile.TemporaryDirectory() as scratch,
    ):
        own, settings = read_settings(arguments)
        report = Path(scratch) / "bad_videos.jsonl"
        measured, bad_videos = inspect_run(settings, own.num_clips, own.seconds, own.step_seconds, report)
    output = Path(settings.training.output_dir)
    sentences = advice(measured)
    plot_times(measured, sentences[0], output / TIMES)
    rows = []
    for step, seconds in measured.seconds().items():
        low, median, high = (f"{1000 * value:.3f}" for value in np.percentile(seconds, (25, 50, 75)))
        rows.append(
            {
                "step": step,
                "mean_ms": 1000 * float(np.mean(seconds)),
                "median": median,
                "quartiles": f"{low} to {high}",
            }
        )
    print_table(rows)
    print(f"of {len(measured.looks)} clips\n")
    for number, rate in measured.rates.items():
        print(f"{rate:.1f} clips/s by {number} worker{'s' * (number != 1)}")
    print()
    for sentence in sentences:
        print(textwrap.fill(sentence, 100, subsequent_indent="  "))
    if bad_videos:
        print("\nBad videos among those met (pretraining lists all that it meets in bad_videos.jsonl):")
    for row in bad_videos:
        print(f"  {'used' if row['used'] else 'replaced'}: {row['path']}: {row['reason']}")
    print(f"\nLook at {output / CLIPS} and {output / TIMES}")


if __name__ == "__main__":
    main(sys.argv[1:])
