"""Make a folder that the Auto classes load of a sharded checkpoint of `pretrain.py`.

python scripts/export.py OUT/checkpoint-1000 MODEL

Needed for checkpoints that were written under FSDP with SHARDED_STATE_DICT alone; the model at the end of a run is
complete in any case. The processor that `pretrain.py` put into OUT comes along.
"""

import argparse
import shutil

from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME, VIDEO_PROCESSOR_NAME

from ..training.export import load_sharded
from ..utils.outputs import check_output


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=programs.folder, help="Folder with a part per process.")
    parser.add_argument("output_dir", type=programs.folder, help="Folder for the model, outside of the checkpoint.")
    args = parser.parse_args()
    processor = args.checkpoint.parent / VIDEO_PROCESSOR_NAME
    with programs.errors_told():
        if args.output_dir.resolve().is_relative_to(args.checkpoint.resolve()):
            raise ValueError(
                f"output_dir must lie outside of the checkpoint, got {args.output_dir}: choose another folder"
            )
        check_output(args.output_dir, (CONFIG_NAME, SAFE_WEIGHTS_NAME, VIDEO_PROCESSOR_NAME))
        model = load_sharded(args.checkpoint)
        model.save_pretrained(args.output_dir)
        if processor.is_file() and processor.parent.resolve() != args.output_dir.resolve():
            shutil.copy(processor, args.output_dir)
    print(f"{args.output_dir}: {model.num_parameters() / 1e6:.1f} M parameters")


if __name__ == "__main__":
    main()
