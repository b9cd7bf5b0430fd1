"""Convert released 4DS weights ("Scaling 4D Representations") to a folder that the Auto classes load.

python scripts/convert_4ds.py --checkpoint scaling4d_dist_b_depth.npz --output_dir 4ds-b-depth

Sizes, heads, frames and task are deduced from the arrays. Load the result with `AutoModel` (the encoder alone),
`AutoModelForDepthEstimation` or `AutoModelForVideoClassification`; a readout that the checkpoint does not hold starts
at random, and Transformers says so.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError

from layerlock_hf import LayerLockVideoProcessor
from layerlock_hf.models.conversion_4ds import convert_4ds


def to_tensor(name: str, array: np.ndarray) -> torch.Tensor:
    """An array of the checkpoint. NumPy has no bfloat16 and reads its bytes as they are."""
    if array.dtype == np.dtype("V2"):
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} is of type {array.dtype}, not of numbers")
    return torch.from_numpy(array)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="NumPy archive (.npz) as released.")
    parser.add_argument("--output_dir", type=Path, required=True, help="Folder for the converted model.")
    parser.add_argument(
        "--readout_depth_fraction",
        type=float,
        default=0.95,
        help="The readout_depth that the original code was given; checkpoints do not record it.",
    )
    parser.add_argument(
        "--decoding_patch_size",
        type=int,
        nargs=3,
        metavar=("FRAMES", "ROWS", "COLUMNS"),
        help="Box of pixels that a query of a depth readout predicts, where the arrays leave it open.",
    )
    args = parser.parse_args()
    try:
        with np.load(args.checkpoint) as archive:
            arrays = {name: to_tensor(name, archive[name]) for name in archive.files}
        model = convert_4ds(arrays, args.readout_depth_fraction, args.decoding_patch_size)
    except (OSError, ValueError, StrictDataclassError) as error:
        raise SystemExit(f"error: {error}") from None
    model.save_pretrained(args.output_dir, max_shard_size="5GB")
    config = model.config
    # 1.15: what the shortest side is resized to before the crop (LayerLock, Table 8)
    processor = LayerLockVideoProcessor.from_config(config, size=1.15 * config.image_size, frame_stride=2)
    processor.save_pretrained(args.output_dir)
    print(
        f"{args.output_dir}: {type(model).__name__}, {model.num_parameters() / 1e6:.1f} M parameters, "
        f"{config.num_hidden_layers} layers of width {config.hidden_size}, read after {config.readout_depth}, "
        f"clips of {config.num_frames} frames of {config.image_size}x{config.image_size} pixels, depth in boxes of "
        f"{'x'.join(map(str, config.decoding_patch_size))}"
    )


if __name__ == "__main__":
    main()
