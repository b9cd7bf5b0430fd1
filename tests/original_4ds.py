"""Made-up checkpoints of 4DS, as the original code lays them out."""

import numpy as np
import torch


PREFIXES = ("params/layers_0/", "params/layers_2/")


def checkpoint(
    frames=6,
    side=24,
    patch=(3, 12),
    width=30,
    heads=5,
    layers=3,
    mlp=70,
    channels=3,
    readout=(16, 2, 1, 9),
    steps=None,
    prefixes=PREFIXES,
):
    """Random arrays as the original code lays them out; readout: its width, heads, queries and outputs, or None."""
    rng = np.random.default_rng(0)
    arrays = {}
    encoder, other = prefixes
    tubelet, size = patch

    def add(name, *shape):
        arrays[name] = torch.from_numpy(rng.normal(0, 0.1, shape).astype(np.float32))

    def dense(name, inputs, outputs):
        add(f"{name}/kernel", *inputs, *outputs)
        add(f"{name}/bias", *outputs)

    def norm(name, size):
        add(f"{name}/scale", size)
        add(f"{name}/bias", size)

    dense(f"{encoder}encoder/patch_embedding/Conv_0", (tubelet, size, size, channels), (width,))
    add(f"{encoder}encoder/posenc/embeddings", frames // tubelet, side // size, side // size, width)
    for layer in range(layers):
        name = f"{encoder}processor/layers_{layer}"
        norm(f"{name}/attention_norm", width)
        for part in ("query", "key", "value"):
            dense(f"{name}/attention/{part}", (width,), (heads, width // heads))
        dense(f"{name}/attention/out", (heads, width // heads), (width,))
        norm(f"{name}/mlp_norm", width)
        dense(f"{name}/mlp/dense_in", (width,), (mlp,))
        dense(f"{name}/mlp/dense_out", (mlp,), (width,))
    if readout is not None:
        c, a, queries, outputs = readout
        add(f"{other}temporal_posenc/embeddings", steps or frames, 1, width)
        add(f"{other}query", queries, a, c // a)
        norm(f"{other}LayerNorm_0", width)
        dense(f"{other}key_embedding", (width,), (a, c // a))
        dense(f"{other}value_embedding", (width,), (a, c // a))
        dense(f"{other}Dense_0", (c,), (c,))
        norm(f"{other}LayerNorm_1", c)
        dense(f"{other}MLP_0/Dense_0", (c,), (4 * c,))
        dense(f"{other}MLP_0/Dense_1", (4 * c,), (c,))
        dense(f"{other}Dense_1", (c,), (outputs,))
    return arrays
