"""Weights as they were released elsewhere, made into folders that the Auto classes load."""

import json
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel

from ..models import LayerLockVideoProcessor
from ..models.conversion_4ds import convert_4ds
from .documents import SETTINGS


def to_tensor(name: str, array: np.ndarray) -> torch.Tensor:
    """An array of the checkpoint. NumPy has no bfloat16 and reads its bytes as they are."""
    if array.dtype == np.dtype("V2"):
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} must hold numbers, got the type {array.dtype}")
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
            raise ValueError("must be a NumPy archive (.npz) as released, got another file or half of one") from error
        for name in archive.files:
            try:
                array = archive[name]
            except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                # NumPy's own message may advise to unpickle, which runs what the file says
                raise ValueError(f"{name} is damaged, or not an array of numbers: download it again") from error
            if not isinstance(array, np.ndarray):
                raise ValueError(f"{name} is not an array: give a NumPy archive (.npz) as released")
            arrays[name] = to_tensor(name, array)
    return arrays


def convert_archive(
    checkpoint: Path,
    output_dir: Path,
    readout_depth_fraction: float = 0.95,
    decoding_patch_size: list[int] | None = None,
) -> PreTrainedModel:
    """Convert released 4DS weights ("Scaling 4D Representations"), and write model and processor into a folder.

    Args:
        checkpoint: NumPy archive (.npz) as released.
        readout_depth_fraction: the `readout_depth` that the original code was given; checkpoints do not record it.
        decoding_patch_size: box of pixels (frames, rows, columns) that a query of a depth readout predicts, where the
            arrays leave it open.

    Raises:
        ValueError: if it is no such archive.
        OSError: if it cannot be read.
    """
    arrays = read_archive(checkpoint)
    try:
        model = convert_4ds(arrays, readout_depth_fraction, decoding_patch_size)
    except StrictDataclassError as error:
        raise ValueError(str(error)) from error
    model.save_pretrained(output_dir)
    # 1.15: what the shortest side is resized to before the crop (LayerLock, Table 8)
    size = 1.15 * model.config.image_size
    LayerLockVideoProcessor.from_config(model.config, size=size, frame_stride=2).save_pretrained(output_dir)
    (output_dir / SETTINGS).write_text(json.dumps({"converted_from": checkpoint.name}, indent=1) + "\n")
    return model
