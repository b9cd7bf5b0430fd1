"""A demonstration: pretrain LayerLock and MAE on procedural clips, and measure what the two encoders have learned.

layerlock demo --output_dir runs/demo

Takes ten minutes on two idle CPU cores; `--max_steps 40 --num_videos 32` is a quick test of all parts.
"""

import argparse
import sys
from pathlib import Path

from ..pretraining.demo import run_demo
from ..pretraining.jobs import RunFailed, exit_when_terminated
from ..utils.bounds import MAX_SEED
from . import programs


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = programs.Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output_dir", type=programs.folder, default=Path("runs/demo"), help="Folder to write to.")
    parser.add_argument(
        "--max_steps", type=programs.whole(1), help="Steps of each run (default: those of the recipe)."
    )
    parser.add_argument(
        "--seed",
        type=programs.whole(0, MAX_SEED),
        default=0,
        help="Seed of weights, clips and masks; the videos stay the same.",
    )
    parser.add_argument("--num_videos", type=programs.whole(1), default=1500, help="Number of videos to pretrain on.")
    return parser.parse_args(arguments)


def main(arguments: list[str]):
    args = parse(arguments)
    exit_when_terminated()
    try:
        with programs.errors_told():
            run_demo(args.output_dir, args.max_steps, args.seed, args.num_videos)
    except RunFailed as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
