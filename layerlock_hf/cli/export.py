"""Make a folder that the Auto classes load of a sharded checkpoint of `layerlock pretrain`.

layerlock export OUT/checkpoint-1000 MODEL

Needed for checkpoints that were written under FSDP with SHARDED_STATE_DICT alone; the model at the end of a run is
complete in any case. The processor that `layerlock pretrain` put into OUT comes along.
"""

import argparse
import sys

from ..training.export import export_checkpoint
from . import programs


def main(arguments: list[str]):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=programs.folder, help="Folder with a part per process.")
    parser.add_argument("output_dir", type=programs.folder, help="Folder for the model, outside of the checkpoint.")
    args = parser.parse_args(arguments)
    with programs.errors_told():
        model = export_checkpoint(args.checkpoint, args.output_dir)
    print(f"{args.output_dir}: {model.num_parameters() / 1e6:.1f} M parameters")


if __name__ == "__main__":
    main(sys.argv[1:])
