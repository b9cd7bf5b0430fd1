"""Hashes of weights, by hand and as files of earlier versions hold them."""

import hashlib

import torch
from torch import nn

from layerlock_hf.utils.weight_hash import hash_weights


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.arange(6.0).view(2, 3).t())  # not contiguous
        self.register_buffer("count", torch.tensor(3))  # no dimension
        self.register_buffer("forgotten", torch.ones(1), persistent=False)
        self.scale = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))


def test_names_and_values_in_order():
    matrix = torch.arange(6.0).view(2, 3).t().contiguous().numpy().tobytes()
    count, scale = torch.tensor(3).numpy().tobytes(), b"\x80\x3f" * 2
    fed = b"matrix" + matrix + b"scale" + scale + b"count" + count
    assert hash_weights(Network()) == hashlib.sha256(fed).hexdigest()
    hasher = hashlib.blake2b(b"configuration", digest_size=16)
    assert hash_weights(Network(), hasher) == hashlib.blake2b(b"configuration" + fed, digest_size=16).hexdigest()


def test_any_bit_counts():
    network = Network()
    before = hash_weights(network)
    assert before == hash_weights(Network())
    with torch.no_grad():
        network.scale[0] += 2**-7
    assert hash_weights(network) != before


def test_it_stays_what_checkpoints_hold():
    """Written by version 0.1.0.dev0, before there was this module."""
    network = nn.Linear(2, 2)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        network.bias.zero_()
    assert hash_weights(network) == "15162ff2bae71dd31714ed605fb9bcabf2e5f69b9708cd24ecf5f30234e04563"
