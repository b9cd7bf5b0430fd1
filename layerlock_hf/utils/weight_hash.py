"""Hashes that tell networks with different weights apart."""

import hashlib

import torch
from torch import nn


def hash_weights(network: nn.Module, hasher=None) -> str:
    """A hash of the names and values of all weights, in hexadecimal; files keep it.

    Args:
        hasher: of `hashlib`, where something else has been fed in before that counts, too; SHA-256 by default.
    """
    hasher = hashlib.sha256() if hasher is None else hasher
    for name, values in network.state_dict().items():
        hasher.update(name.encode())
        hasher.update(values.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return hasher.hexdigest()
