"""Make a folder that the Auto classes load of a sharded checkpoint of `pretrain.py`.

python scripts/export.py OUT/checkpoint-1000 MODEL

Needed for checkpoints that were written under FSDP with SHARDED_STATE_DICT alone; the model at the end of a run is
complete in any case. The processor that `pretrain.py` put into OUT comes along.
"""

import argparse
import shutil
from pathlib import Path

from transformers.utils import VIDEO_PROCESSOR_NAME

from layerlock_hf.training.export import load_sharded


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="Folder with a part per process.")
    parser.add_argument("output_dir", type=Path, help="Folder for the model.")
    args = parser.parse_args()
    try:
        model = load_sharded(args.checkpoint)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    model.save_pretrained(args.output_dir)
    processor = args.checkpoint.parent / VIDEO_PROCESSOR_NAME
    if processor.is_file():
        shutil.copy(processor, args.output_dir)
    print(f"{args.output_dir}: {model.num_parameters() / 1e6:.1f} M parameters")


if __name__ == "__main__":
    main()
