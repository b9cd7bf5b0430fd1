"""Shared by the tests of readouts."""

import pytest
import torch


@pytest.fixture
def config(tiny_config):
    """Read after 3 of 6 layers; 5 classes; 2 x 4 x 4 boxes of 2 x 4 x 4 pixels."""
    tiny_config.update(
        {
            "readout_depth": 3,
            "readout_hidden_size": 24,
            "readout_num_attention_heads": 3,
            "decoding_patch_size": [2, 4, 4],
            "num_labels": 5,
        }
    )
    return tiny_config


@pytest.fixture
def video():
    return torch.rand(2, 4, 3, 16, 16)
