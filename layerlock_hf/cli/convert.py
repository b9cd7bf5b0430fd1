"""Convert released 4DS weights ("Scaling 4D Representations") to a folder that the Auto classes can load.

layerlock convert --checkpoint scaling4d_dist_b_depth.npz --output_dir 4ds-b-depth

Sizes, heads, frames and task are deduced from the arrays. Load the result with `AutoModel` (the encoder alone),
`AutoModelForDepthEstimation` or `AutoModelForVideoClassification`. A readout that is not in the checkpoint is
initialised randomly, and Transformers says so.
"""

import argparse
import sys
from pathlib import Path

from ..hub.converting import convert_archive
from ..utils.outputs import check_output
from . import programs


def local_file(text: str) -> Path:
    """An argument that is a file on this machine. `Path` would turn "https://" into "https:/"."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"must be a file on this machine, got {text!r}: download it first")
    return programs.folder(text)


def fraction(text: str) -> float:
    """An argument that is a fraction of the layers."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number above 0 and at most 1, got {text!r}")
    return value


def main(arguments: list[str]):
    parser = programs.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=local_file, required=True, help="NumPy archive (.npz) as released.")
    parser.add_argument("--output_dir", type=programs.folder, required=True, help="Folder for the converted model.")
    parser.add_argument(
        "--readout_depth_fraction",
        type=fraction,
        default=0.95,
        help="The readout_depth given to the original code, which checkpoints do not record.",
    )
    parser.add_argument(
        "--decoding_patch_size",
        type=programs.whole(1),
        nargs=3,
        metavar=("FRAMES", "ROWS", "COLUMNS"),
        help="Frames, rows and columns that a query of a depth readout predicts, if the arrays leave it open.",
    )
    args = parser.parse_args(arguments)
    with programs.errors_told():
        check_output(args.output_dir, ("config.json", "model.safetensors"))
    with programs.errors_told(f"{args.checkpoint}: "):
        model = convert_archive(
            args.checkpoint, args.output_dir, args.readout_depth_fraction, args.decoding_patch_size
        )
    config = model.config
    print(
        f"{args.output_dir}: {type(model).__name__}, {model.num_parameters() / 1e6:.1f} M parameters, "
        f"{config.num_hidden_layers} layers of width {config.hidden_size}, read after {config.readout_depth}, "
        f"clips of {config.num_frames} frames of {config.image_size}x{config.image_size} pixels, depth in boxes of "
        f"{'x'.join(map(str, config.decoding_patch_size))}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
