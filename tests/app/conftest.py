"""A short run of pretraining, readouts on it, and videos to drop."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import pretrain, write_recipe

from layerlock_hf import (
    LayerLockVideoProcessor,
    LayerLockViTForDepthEstimation,
    LayerLockViTForVideoClassification,
)
from layerlock_hf.app import Subject, find_kept


@pytest.fixture(scope="session")
def finished(tiny_sizes, tmp_path_factory) -> Path:
    """The folder of a finished run that has kept the models at the start of its three stages. Tests leave it as it
    is; its videos are in `data/videos` beside it."""
    folder = tmp_path_factory.mktemp("tried")
    return pretrain(write_recipe(folder, tiny_sizes), folder / "run")


@pytest.fixture(scope="session")
def readouts(finished, tmp_path_factory) -> dict[str, Path]:
    """Folders of readouts that have learned nothing, by the arguments of `Subject`."""
    folder = tmp_path_factory.mktemp("readouts")
    kinds = {"classes": LayerLockViTForVideoClassification, "depth": LayerLockViTForDepthEstimation}
    for name, kind in kinds.items():
        torch.manual_seed(0)
        settings = {"id2label": {0: "left", 1: "right"}} if name == "classes" else {}
        kind.from_pretrained(finished, **settings).save_pretrained(folder / name)
        LayerLockVideoProcessor.from_pretrained(finished).save_pretrained(folder / name)
    return {name: folder / name for name in kinds}


@pytest.fixture
def subject(finished, readouts) -> Subject:
    return Subject(find_kept(finished), **readouts)


@pytest.fixture
def video(finished) -> str:
    """One of 8 frames of 16 x 16 pixels."""
    return str(min((finished.parent / "data" / "videos").glob("*.mp4")))


@pytest.fixture
def broken(tmp_path) -> str:
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"no video at all")
    return str(path)


@pytest.fixture
def counting(tmp_path) -> str:
    """A video of 60 grey frames at 10 per second, each a little brighter than the one before."""
    frames = [Image.fromarray(np.full((16, 16, 3), 4 * number, np.uint8)) for number in range(60)]
    path = tmp_path / "counting.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    return str(path)
