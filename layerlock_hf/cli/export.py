"""Make of what a run left, in a folder of its own, a complete repository of the Hub, or a graph for other programs.

layerlock export RUN OUT [--what encoder] [--checkpoint N|stage-K|best] [--dtype bfloat16] [--repo_id ORG/NAME]
layerlock export RUN OUT --to onnx [--what encoder] [--checkpoint N|stage-K|best] [--variants float16 int8]

RUN is the folder of `layerlock pretrain` or `layerlock readout`, a checkpoint (also one with one part per process,
written under FSDP with SHARDED_STATE_DICT), a model of `layerlock convert`, or a repository. OUT receives weights in
safetensors, configuration, video processor, card, licence, what is on record of the run, and the code with which the
Auto classes and pipelines of Transformers load it where `layerlock_hf` is not installed (`trust_remote_code=True`).
`layerlock push` sends the same to the Hub.

With `--to onnx` or `--to torch` (torch.export), OUT receives the encoder, classifier or depth model as a graph, which
runs without this package on clips of one size in batches of any number, and a README.md that shows how. The graph is
compared with the model first, and one that differs by more than rounding is not kept.
"""

import argparse
import sys
from pathlib import Path

from ..hub.graph_folder import FORMS, README
from ..hub.graphs import Difference
from ..hub.onnx_graphs import ONNX
from ..pretraining.exporting import AUTO_CLASSES, DTYPES, export
from ..pretraining.graphs import export_graph
from . import programs


HUB = "hub"
OF_HUB, OF_GRAPHS = ("dtype", "license", "repo_id"), ("variants", "image_size", "num_frames")


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
    parser = programs.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source(parser)
    parser.add_argument("output_dir", metavar="OUT", type=programs.folder, help="Folder to make, empty or not there.")
    parser.add_argument("--repo_id", metavar="ORG/NAME", help="Where the card says that the model is loaded from.")
    parser.add_argument("--to", choices=[HUB, *FORMS], default=HUB, help="Form of the export (default: %(default)s).")
    graphs = parser.add_argument_group("graphs (--to onnx, --to torch)")
    graphs.add_argument(
        "--variants", nargs="+", choices=list(ONNX.variants), help="Smaller files beside that of ONNX in float32."
    )
    graphs.add_argument(
        "--image_size", type=programs.whole(1), help="Of the clips, in pixels (default: that of the video processor)."
    )
    graphs.add_argument(
        "--num_frames", type=programs.whole(1), help="Of a clip (default: those of the video processor)."
    )
    args = parser.parse_args(arguments)
    with programs.errors_told():
        check_flags(args)
        if args.to == HUB:
            return tell_repository(
                export(args.run, args.output_dir, args.what, args.checkpoint, args.dtype, args.repo_id, args.license)
            )
        differences = export_graph(
            args.run,
            args.output_dir,
            args.to,
            args.what,
            args.checkpoint,
            args.variants or (),
            args.image_size,
            args.num_frames,
        )
    tell_graphs(args.output_dir, differences)


def check_flags(args: argparse.Namespace):
    """Raise a `ValueError` for a flag that the form of the export does not heed."""
    for name in OF_GRAPHS if args.to == HUB else OF_HUB:
        if getattr(args, name) is not None:
            raise ValueError(f"--{name} must be left out for --to {args.to}, got {getattr(args, name)}")


def tell_repository(folder: Path):
    files = [path for path in folder.iterdir() if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    print(f"{folder}: {len(files)} files, {size / 1e6:.1f} MB. README.md is its card, `layerlock push` sends it")


def tell_graphs(folder: Path, differences: dict[str, Difference]):
    for name, difference in differences.items():
        same = "" if difference.same_class is None else f", the same class for {difference.same_class:.0%} of them"
        print(
            f"{folder / name}: on random clips, at most {difference.largest:.2g} from PyTorch, whose outputs reach "
            f"{difference.scale:.3g} (relative error {difference.relative:.2g}){same}"
        )
    print(f"{folder / README} shows how to run {'it' if len(differences) == 1 else 'them'}")


if __name__ == "__main__":
    main(sys.argv[1:])
