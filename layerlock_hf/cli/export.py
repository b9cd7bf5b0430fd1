"""Make a complete repository of the Hub from what a run left, in a folder of its own.

layerlock export RUN OUT [--what encoder] [--checkpoint N|stage-K|best] [--dtype bfloat16] [--repo_id ORG/NAME]

RUN is the folder of `layerlock pretrain` or `layerlock readout`, a checkpoint (also one with one part per process,
written under FSDP with SHARDED_STATE_DICT), a model of `layerlock convert`, or a repository. OUT receives weights in
safetensors, configuration, video processor, card, licence, what is on record of the run, and the code with which the
Auto classes and pipelines of Transformers load it where `layerlock_hf` is not installed (`trust_remote_code=True`).
`layerlock push` sends the same to the Hub.
"""

import argparse
import sys

from ..pretraining.exporting import AUTO_CLASSES, DTYPES, export
from . import programs


def add_source(parser: argparse.ArgumentParser):
    """Which model of a run, and how: what `layerlock push` takes, too."""
    parser.add_argument("run", metavar="RUN", type=programs.folder, help="Folder of a run, a checkpoint or a model.")
    parser.add_argument(
        "--what", choices=list(AUTO_CLASSES), help="Which part of the model (default: all that the run left)."
    )
    parser.add_argument(
        "--checkpoint",
        metavar="N|stage-K|best",
        help="A step, the start of stage K (of runs with --save_stages true), or best: by the readout during "
        "pretraining (default: the end of the run).",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="Of the weights (default: as they are).")
    parser.add_argument(
        "--license",
        metavar="NAME",
        help="Of the weights, as the Hub calls it, such as cc-by-nc-4.0 (default: that of weights released elsewhere, "
        "else apache-2.0).",
    )


def main(arguments: list[str]):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source(parser)
    parser.add_argument("output_dir", metavar="OUT", type=programs.folder, help="Folder to make, empty or not there.")
    parser.add_argument("--repo_id", metavar="ORG/NAME", help="Where the card says that the model is loaded from.")
    args = parser.parse_args(arguments)
    with programs.errors_told():
        folder = export(args.run, args.output_dir, args.what, args.checkpoint, args.dtype, args.repo_id, args.license)
        files = [path for path in folder.iterdir() if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    print(f"{folder}: {len(files)} files, {size / 1e6:.1f} MB. README.md is its card, `layerlock push` sends it")


if __name__ == "__main__":
    main(sys.argv[1:])
