"""Shared by all tests: no network, one thread per process, seeded, and a config small enough to train on a CPU."""

import os


# Read when huggingface_hub is imported, hence before the imports below. Subprocesses inherit it.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402

from layerlock_hf import LayerLockViTConfig  # noqa: E402


# pytest-xdist already runs a process per core
torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--write_golden", metavar="REASON", help="Record tests/golden anew; the files keep the reason.")


@pytest.fixture(autouse=True)
def seed():
    """The same random numbers in every test, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_sizes() -> dict[str, int]:
    """Six layers of width 32, the last two of them decoding, for clips of 4 frames of 16 x 16 pixels: 32 tokens."""
    return {
        "hidden_size": 32,
        "num_hidden_layers": 6,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 16,
        "patch_size": 4,
        "num_frames": 4,
        "num_decoder_layers": 2,
    }


@pytest.fixture
def tiny_config(tiny_sizes) -> LayerLockViTConfig:
    """The configuration of `tiny_sizes`."""
    return LayerLockViTConfig.from_preset("tiny", **tiny_sizes)
