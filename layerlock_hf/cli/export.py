"""Turn a sharded checkpoint of `layerlock pretrain` into a folder that the Auto classes can load.

layerlock export OUT/checkpoint-1000 MODEL

Only needed for checkpoints written under FSDP with SHARDED_STATE_DICT; the model at the end of a run is always
complete. The processor that `layerlock pretrain` saved in OUT is copied, too.
"""

import argparse
import sys

from ..training.export import export_checkpoint
from . import programs


def main(arguments: list[str]):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoint", type=programs.folder, help="Folder of the sharded checkpoint, with one part per process."
    )
    parser.add_argument("output_dir", type=programs.folder, help="Folder for the model, outside the checkpoint.")
    args = parser.parse_args(arguments)
    with programs.errors_told():
        model = export_checkpoint(args.checkpoint, args.output_dir)
    print(f"{args.output_dir}: {model.num_parameters() / 1e6:.1f} M parameters")


if __name__ == "__main__":
    main(sys.argv[1:])
