"""Probe frozen encoders on procedural clips: where an object is, how it moves and where it will be, which of eight
motions the objects share, and how far everything is.

layerlock probe --models layerlock=RUN mae=RUN --data FOLDER --output probes.json

FOLDER holds `train` and `test`, each a procedural dataset with depth, and for the first rungs of the ladder
`easy_train` and `easy_test`: one object in front of a static camera. Every model is read at a quarter, half,
three quarters and all of its layers, by ridge regression and by a small attention readout. A held-out fifth of
the training videos chooses the layer. The controls are: the same ViT with random weights (`random`),
the models seeing only the middle frame of every clip (`NAME_one_frame`), differences of frames without an encoder
(`differences`), the mean of all answers (`constant`) and, with `--ceiling STEPS`, the ViT trained with the labels
(`ceiling`).

Writes the scores with 95% intervals over videos, and a picture of them next to the file.
"""

import argparse
import sys

from transformers.utils import logging

from ..evaluation.probe_models import probe_models
from ..evaluation.probe_plots import CONTROLS, ONE_FRAME, is_control, plot_probes, print_probes
from ..utils.outputs import check_output
from ..utils.records import write_record
from . import programs


def parse(arguments: list[str]) -> argparse.Namespace:
    """The arguments; `models` is from names to folders.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    parser = programs.Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=FOLDER", help="Models to probe.")
    parser.add_argument("--data", type=programs.folder, required=True, help="Folder with the datasets train and test.")
    parser.add_argument(
        "--resize_factor",
        type=float,
        default=1.15,
        help="Shortest side before cropping over image_size, as in pretraining.",
    )
    parser.add_argument("--output", type=programs.folder, required=True, help="JSON file for the scores.")
    parser.add_argument(
        "--ceiling", type=int, metavar="STEPS", help="Also train the ViT with labels, for this many steps."
    )
    parser.add_argument(
        "--ceiling_data",
        type=programs.folder,
        nargs="*",
        default=[],
        help="More datasets to train that ViT on; depth is optional.",
    )
    parser.add_argument(
        "--bf16", action="store_true", help="Encode in bfloat16, which is faster on processors that support it."
    )
    args = parser.parse_args(arguments)
    models = {}
    for item in args.models:
        name, _, folder = item.partition("=")
        if not (name and folder):
            raise ValueError(f"models must be NAME=FOLDER, got {item!r}: for instance mae=runs/mae")
        if name in models or is_control(name):
            raise ValueError(
                f"models must have distinct names, none of them a control ({', '.join(CONTROLS)}, NAME{ONE_FRAME}), "
                f"got {name}: choose another name"
            )
        models[name] = folder
    args.models = models
    if args.output.suffix != ".json" or args.output.is_dir():
        raise ValueError(f"output must be a .json file, got {args.output}: the picture goes beside it")
    check_output(args.output.parent, [args.output.name, args.output.with_suffix(".png").name], "output")
    if args.ceiling is not None and args.ceiling < 1:
        raise ValueError(f"ceiling must be at least 1 step, got {args.ceiling}")
    if args.ceiling_data and args.ceiling is None:
        raise ValueError("ceiling_data is set but ceiling is not: set it to train the ViT, or leave ceiling_data out")
    return args


def main(arguments: list[str]):
    with programs.errors_told():
        args = parse(arguments)
        logging.disable_progress_bar()
        scores = probe_models(args.models, args.data, args.resize_factor, args.ceiling, args.ceiling_data, args.bf16)
    write_record(args.output, scores)
    plot_probes(scores, args.output.with_suffix(".png"))
    print_probes(scores)


if __name__ == "__main__":
    main(sys.argv[1:])
