"""What encoders represent at each depth, several of them side by side, or the stages of one run.

layerlock analyze representations --models mae=runs/mae videomae=MCG-NJU/videomae-base --data VIDEOS --output_dir OUT
layerlock analyze representations --run runs/layerlock --data videos.csv --output_dir OUT

An encoder is NAME=PATH, a folder or an id on the Hub; NAME=RUN@stage-K, as it was when stage K of a run began, if the
run kept its stages; or NAME=PATH@random, the same architecture with random weights, a control. Without --measures,
those of tokens, CKA and, of videos with labels, retrieval and accuracy of logistic probes are taken.

Writes to OUT representations.json, representations.csv (a row per model, depth and measure), depths.png (a panel per
measure) and cka_linear.png and cka_rbf.png (every depth beside every depth).
"""

import argparse
import sys

from transformers.utils import logging

from ..analysis.measures import ALL, FAMILIES, MEASURES
from ..analysis.representations import RESULTS, analyze
from ..analysis.study import MAX_DEPTHS, MIN_GRATINGS, Settings
from ..evaluation.adapters import LABELLED
from . import programs


def make_parser() -> argparse.ArgumentParser:
    parser = programs.Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add, usual = parser.add_argument, Settings()
    add("--models", nargs="+", default=[], metavar="NAME=PATH", help="Encoders to look at.")
    add("--run", type=programs.folder, help="Run all stages of which, and the end, are looked at.")
    add("--data", required=True, help="Videos, as of `layerlock pretrain`; a column label is the class.")
    add("--dataset", choices=list(LABELLED), help="Kind of labelled dataset that data is, as of `layerlock readout`.")
    add("--train_data", help="Labelled videos to fit probes of classes to (default: cross-validate in data).")
    add("--output_dir", type=programs.folder, required=True, help="Folder to write to.")
    add(
        "--depths",
        type=programs.whole(0),
        nargs="+",
        help=f"Layers passed before features are read (default: all, at most {MAX_DEPTHS} of them).",
    )
    add(
        "--measures",
        nargs="+",
        metavar="NAME",
        help=f"{ALL}, families ({', '.join(FAMILIES)}) or measures ({', '.join(MEASURES)}).",
    )
    add("--max_videos", type=programs.whole(1), default=1000, help="At most so many videos (default 1000).")
    add("--num_clips", type=programs.whole(1), default=usual.num_clips, help="Clips of every video (default 1).")
    add("--frame_stride", type=programs.whole(1), default=usual.frame_stride, help="Distance of frames (default 2).")
    add("--resize_factor", type=float, default=usual.resize_factor, help="Shortest side over image_size.")
    add(
        "--num_gratings",
        type=programs.whole(MIN_GRATINGS),
        default=usual.num_gratings,
        help=f"Gratings of each kind, out of 10800 and 15552 (default {usual.num_gratings}).",
    )
    add("--biased_cka", action="store_true", help="Estimate CKA as the blockwise paper does, which few clips inflate.")
    add("--batch_size", type=programs.whole(1), default=usual.batch_size, help="Videos at once (default 8).")
    add("--num_workers", type=programs.whole(0), default=usual.num_workers, help="Processes that read videos.")
    add("--decode_timeout", type=float, default=usual.decode_timeout, help="Seconds per video; 0: no limit.")
    return parser


def parse_models(items: list[str]) -> dict[str, str]:
    """From names to places.

    Raises:
        ValueError: for what is no NAME=PATH, or a name that is there already.
    """
    models = {}
    for item in items:
        name, _, path = item.partition("=")
        if not (name and path):
            raise ValueError(f"models must be NAME=PATH, got {item!r}: for instance mae=runs/mae")
        if name in models:
            raise ValueError(f"models must have distinct names, got {name} twice: choose another")
        models[name] = path
    return models


def main(arguments: list[str]):
    args = make_parser().parse_args(arguments)
    with programs.errors_told():
        logging.disable_progress_bar()
        settings = Settings(
            num_clips=args.num_clips,
            frame_stride=args.frame_stride,
            resize_factor=args.resize_factor,
            num_gratings=args.num_gratings,
            biased_cka=args.biased_cka,
            batch_size=args.batch_size,
            num_workers=args.num_workers,
            decode_timeout=args.decode_timeout,
        )
        rows = analyze(
            args.data,
            parse_models(args.models),
            args.run,
            args.output_dir,
            args.depths,
            args.measures,
            args.dataset,
            args.train_data,
            args.max_videos,
            settings,
        )
    print(f"{len(rows)} values in {args.output_dir / RESULTS}")


if __name__ == "__main__":
    main(sys.argv[1:])
