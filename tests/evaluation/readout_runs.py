"""Short runs of `layerlock readout` in this process."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from layerlock_hf.cli import readout
from layerlock_hf.data.procedural import read_depth, write_procedural_dataset
from layerlock_hf.evaluation.results import read_results
from layerlock_hf.models import LayerLockViTConfig, LayerLockViTForPretraining


NUM_VIDEOS, NUM_TEST = 13, 5
SETTINGS = {
    "frame_stride": 1,
    "learning_rates": [1e-3, 1e-2],
    "depth_fractions": [0.5, 1.0],
    "num_examples": 32,
    "batch_size": 8,
    "warmup_steps": 1,
    "logging_steps": 2,
    "num_workers": 0,
    "decode_timeout": 0,
}


def write_inputs(folder: Path):
    """Data in data/ and an encoder in model/: 13 videos of 10 frames of 16 x 16 pixels, of whose depth ever less is
    known.
    """
    write_procedural_dataset(folder / "data", NUM_VIDEOS, 0, 10, 16, with_depth=True, progress=False)
    for number in range(NUM_VIDEOS):
        path = folder / "data" / "depth" / f"{number:06d}.npz"
        metres = read_depth(path)
        metres[:, :number] = 0
        np.savez_compressed(path, depth=metres.numpy())
    torch.manual_seed(1)
    LayerLockViTForPretraining(
        LayerLockViTConfig(
            image_size=16,
            num_frames=4,
            patch_size=4,
            tubelet_size=2,
            hidden_size=32,
            num_hidden_layers=6,
            num_attention_heads=2,
            intermediate_size=64,
            num_decoder_layers=2,
            decoder_hidden_size=32,
            readout_hidden_size=24,
            readout_num_attention_heads=3,
            decoding_patch_size=[2, 4, 4],
        )
    ).save_pretrained(folder / "model")


def flags(root, output, task="classification", **settings) -> list[str]:
    settings = {
        "model": root / "model",
        "task": task,
        "dataset": "procedural",
        "data": f"{root / 'data'}?train=0-7&test=8-12",
        "output_dir": output,
        **SETTINGS,
        **settings,
    }
    given = []
    for name, value in settings.items():
        given += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return given


def run(root, output, task="classification", **settings) -> dict:
    readout.main(flags(root, output, task, **settings))
    return read_results(output / "results.json")


def error_of(capsys, *arguments, **settings) -> str:
    with pytest.raises(SystemExit) as caught:
        readout.main(flags(*arguments, **settings))
    if caught.value.code == 2:  # of argparse
        return capsys.readouterr().err
    assert caught.value.code.startswith("error: ") and "Traceback" not in caught.value.code
    return caught.value.code


def assert_close(results, others, tolerance):
    """Everything that is measured, of every member."""
    assert len(results["members"]) == len(others["members"])
    for one, other in zip(results["members"], others["members"], strict=True):
        assert one["metrics"] == pytest.approx(other["metrics"], rel=tolerance)
    assert results["baselines"] == others["baselines"]


def damage(root, folder, rows):
    """A copy of the data with videos that cannot be read."""
    shutil.copytree(root / "data", folder)
    for row in rows:
        (folder / "videos" / f"{row:06d}.mp4").write_bytes(b"no video")
    return {"data": f"{folder}?train=0-7&test=8-12"}
