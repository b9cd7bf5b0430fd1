"""Convert released 4DS weights ("Scaling 4D Representations") to a folder that the Auto classes load.

python scripts/convert_4ds.py --checkpoint scaling4d_dist_b_depth.npz --output_dir 4ds-b-depth

Sizes, heads, frames and task are deduced from the arrays. Load the result with `AutoModel` (the encoder alone),
`AutoModelForDepthEstimation` or `AutoModelForVideoClassification`; a readout that the checkpoint does not hold starts
at random, and Transformers says so.
"""

import argparse
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError

from ..models import LayerLockVideoProcessor
from ..models.conversion_4ds import convert_4ds
from ..utils.outputs import check_output


def to_tensor(name: str, array: np.ndarray) -> torch.Tensor:
    """An array of the checkpoint. NumPy has no bfloat16 and reads its bytes as they are."""
    if array.dtype == np.dtype("V2"):
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} is of type {array.dtype}, not of numbers")
    return torch.from_numpy(array)


def read_archive(path: Path) -> dict[str, torch.Tensor]:
    """The arrays of a checkpoint by their names.

    Raises:
        ValueError: if it is no archive of arrays of numbers.
        OSError: if it cannot be read.
    """
    arrays = {}
    with path.open("rb") as file:
        try:
            archive = np.lib.npyio.NpzFile(file)  # `np.load` would take what is no archive for a pickle
        except zipfile.BadZipFile as error:
            raise ValueError("must be a NumPy archive (.npz) as released, got another or half a file") from error
        for name in archive.files:
            try:
                array = archive[name]
            except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                # NumPy's own message may advise to unpickle, which runs what the file says
                raise ValueError(f"{name} is damaged, or no array of numbers: download it anew") from error
            if not isinstance(array, np.ndarray):
                raise ValueError(f"{name} is no array: give a NumPy archive (.npz) as released")
            arrays[name] = to_tensor(name, array)
    return arrays


def local_file(text: str) -> Path:
    """An argument that is a file of this machine: `Path` would make "https:/" of "https://"."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"must be a file of this machine, got {text!r}: download it first")
    return programs.folder(text)


def fraction(text: str) -> float:
    """An argument that is a share of the layers."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number above 0 and at most 1, got {text!r}")
    return value


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=local_file, required=True, help="NumPy archive (.npz) as released.")
    parser.add_argument("--output_dir", type=programs.folder, required=True, help="Folder for the converted model.")
    parser.add_argument(
        "--readout_depth_fraction",
        type=fraction,
        default=0.95,
        help="The readout_depth that the original code was given; checkpoints do not record it.",
    )
    parser.add_argument(
        "--decoding_patch_size",
        type=programs.whole(1),
        nargs=3,
        metavar=("FRAMES", "ROWS", "COLUMNS"),
        help="Box of pixels that a query of a depth readout predicts, where the arrays leave it open.",
    )
    args = parser.parse_args()
    with programs.errors_told():
        check_output(args.output_dir, ("config.json", "model.safetensors"))
    with programs.errors_told(f"{args.checkpoint}: "):
        arrays = read_archive(args.checkpoint)
        try:
            model = convert_4ds(arrays, args.readout_depth_fraction, args.decoding_patch_size)
        except StrictDataclassError as error:
            raise ValueError(str(error)) from error
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
