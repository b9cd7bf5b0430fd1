"""The attention readout as a module: its depth, its attention, what it shares."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layerlock_hf import readout_depth_from_fraction
from layerlock_hf.models import (
    AttentionReadout,
)
from layerlock_hf.models.modeling_layerlock_readout import cubic_weights


@pytest.mark.parametrize(
    "num_layers, fraction, depth",
    [(48, 0.95, 44), (48, 1.0, 47), (48, 0.25, 10), (12, 0.95, 10), (12, 0.5, 4), (6, 0.95, 4), (6, 0.2, 0)],
)
def test_readout_depth_from_fraction(num_layers, fraction, depth):
    # What the original code does, on a list of the depths themselves
    features = [0, *range(num_layers)]
    assert features[int(len(features) * fraction) - 1] == depth
    assert readout_depth_from_fraction(num_layers, fraction) == depth


@pytest.mark.parametrize("fraction", [0.0, 0.05, 1.2, -0.5])
def test_fractions_without_a_depth_are_refused(fraction):
    with pytest.raises(ValueError, match="fraction"):
        readout_depth_from_fraction(12, fraction)


def test_cubic_weights():
    assert torch.equal(cubic_weights(4, 4), torch.eye(4))
    weights = cubic_weights(4, 8)
    # Keys' kernel with a = -0.5 at distances 1.25, 0.25, 0.75, 1.75
    kernel = torch.tensor([-0.0703125, 0.8671875, 0.2265625, -0.0234375])
    torch.testing.assert_close(weights[3], kernel)
    torch.testing.assert_close(weights[4], kernel.flip(0))
    # The first sample lies before the first cell's centre; two of its four weights fall outside
    torch.testing.assert_close(weights[0], torch.tensor([0.8671875, -0.0703125, 0, 0]) / 0.796875)
    for sizes in ((4, 8), (8, 3), (1, 5), (5, 16), (2, 1)):
        torch.testing.assert_close(cubic_weights(*sizes).sum(dim=1), torch.ones(sizes[1]))
    # Shortening widens the kernel, so that every frame counts
    assert (cubic_weights(8, 2) != 0).all()
    ramp = torch.arange(16.0)
    torch.testing.assert_close((cubic_weights(16, 32) @ ramp)[4:-4], (torch.arange(4, 28) + 0.5) / 2 - 0.5)


def perturbed(config, num_queries):
    """A readout with nothing at its initial value."""
    readout = AttentionReadout(config, num_queries, num_outputs=5)
    with torch.no_grad():
        for parameter in readout.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return readout


@pytest.mark.parametrize("num_queries", [1, 7, 9])
def test_readout_by_hand(config, num_queries):
    readout = perturbed(config, num_queries)
    features = torch.randn(2, 2, 16, 32)
    resized = torch.einsum("rt,btsd->brsd", cubic_weights(2, 4), features)
    normed = F.layer_norm(resized, (32,), readout.norm1.weight, readout.norm1.bias, eps=1e-6)
    states = (normed + readout.temporal_embeddings).flatten(1, 2)
    query = readout.queries.expand(2, -1, -1)
    heads = []
    for head in range(3):
        part = slice(8 * head, 8 * head + 8)
        weights = (query[..., part] @ readout.key(states)[..., part].transpose(1, 2) / 8**0.5).softmax(dim=-1)
        heads.append(weights @ readout.value(states)[..., part])
    hidden = query + readout.out(torch.cat(heads, dim=-1))
    hidden = hidden + readout.down(F.gelu(readout.up(readout.norm2(hidden)), approximate="tanh"))
    torch.testing.assert_close(readout(features), readout.head(hidden), atol=1e-5, rtol=1e-5)
    assert readout.up.out_features == 4 * 24


def attended(readout, attend, normalized, dtype=torch.float32):
    """What a way of attention gives, and the gradients of all that it has a part in."""
    readout.zero_grad()
    normalized = normalized.detach().to(dtype, copy=True).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        outputs = attend(normalized)
    outputs.float().pow(3).sum().backward()
    gradients = {name: p.grad.clone() for name, p in readout.named_parameters() if p.grad is not None}
    return {"outputs": outputs.detach().float(), "normalized": normalized.grad.float(), **gradients}


@pytest.mark.parametrize("num_queries", [1, 3, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folded_attention_is_the_plain_one(config, num_queries, dtype):
    readout = perturbed(config, num_queries)
    normalized = readout.normalize(torch.randn(2, 2, 16, 32) * 3 + 1)

    def attend_plainly(normalized):
        return readout._attend(normalized * readout.norm1.weight + readout.norm1.bias)

    expected = attended(readout, attend_plainly, normalized)
    folded = attended(readout, readout._attend_folded, normalized, dtype)
    assert folded.keys() == expected.keys() and len(expected) == 10
    del expected["key.bias"]  # changes nothing: its gradient is rounding
    if dtype == torch.float32:
        torch.testing.assert_close(folded, expected | {"key.bias": folded["key.bias"]}, rtol=1e-4, atol=1e-5)
        return
    plain = attended(readout, attend_plainly, normalized, dtype)
    for name, exact in expected.items():
        error, usual = ((values[name] - exact).norm() / exact.norm() for values in (folded, plain))
        assert error < 0.03 and error < 2 * usual + 2**-8, name


@pytest.mark.parametrize(("num_queries", "is_folded"), [(1, True), (7, True), (8, False), (32, False)])
def test_attention_is_folded_where_that_is_less_work(config, monkeypatch, num_queries, is_folded):
    """Pairs of queries and heads against the width of keys: 3 heads, 24 wide."""
    calls = []
    readout = perturbed(config, num_queries)
    for name in ("_attend", "_attend_folded"):
        attend = getattr(readout, name)
        monkeypatch.setattr(readout, name, lambda x, name=name, attend=attend: (calls.append(name), attend(x))[1])
    assert readout(torch.randn(2, 2, 16, 32)).shape == (2, num_queries, 5)
    assert calls == ["_attend_folded" if is_folded else "_attend"]


class Adapted(nn.Module):
    """What LoRA makes of a linear layer."""

    def __init__(self, layer, rank=2):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)

    def forward(self, states):
        return self.layer(states) + self.up(self.down(states))

    def merged(self):
        layer = copy.deepcopy(self.layer)
        layer.weight.data += self.up.weight @ self.down.weight
        return layer


@pytest.mark.parametrize("num_queries", [1, 9])
def test_adapters_of_a_readout_learn_and_can_be_merged(config, num_queries):
    readout, features = perturbed(config, num_queries), torch.randn(2, 2, 16, 32)
    for name in ("key", "value"):
        setattr(readout, name, Adapted(getattr(readout, name)))
    outputs = readout(features)
    outputs.pow(3).sum().backward()
    for name in ("key", "value"):
        adapter = getattr(readout, name)
        assert adapter.down.weight.grad.abs().sum() > 0 and adapter.up.weight.grad.abs().sum() > 0
        setattr(readout, name, adapter.merged())
    torch.testing.assert_close(readout(features), outputs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_queries", [1, 9])
def test_what_watches_a_layer_of_a_readout_sees_it_run(config, num_queries):
    readout, features, seen = perturbed(config, num_queries), torch.randn(2, 2, 16, 32), []
    outputs = readout(features)
    for name in ("norm1", "key", "value"):
        getattr(readout, name).register_forward_hook(lambda module, *_, name=name: seen.append(name))
    torch.testing.assert_close(readout(features), outputs, rtol=1e-4, atol=1e-5)
    assert seen == ["norm1", "key", "value"]


def test_normalize_has_no_parameters(config):
    """Readouts of one configuration share what it gives."""
    features = torch.randn(2, 2, 16, 32)
    first, second = perturbed(config, 1), perturbed(config, 3)
    normalized = first.normalize(features)
    assert torch.equal(normalized, second.normalize(features)) and not normalized.requires_grad
    assert torch.equal(second.read(normalized), second(features))
    torch.testing.assert_close(normalized.mean(dim=-1), torch.zeros(2, 4, 16), atol=1e-5, rtol=0)
