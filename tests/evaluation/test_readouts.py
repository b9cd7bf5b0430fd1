import pytest
import torch
import torch.nn.functional as F
from transformers import VideoMAEConfig

from layerlock_hf.evaluation.metrics import measure
from layerlock_hf.evaluation.protocol import SweepArguments, sweep_points
from layerlock_hf.evaluation.readouts import READOUTS
from layerlock_hf.evaluation.sweep import Sweep
from layerlock_hf.evaluation.tasks import Classification, Depth
from layerlock_hf.models import LayerLockViTConfig, LayerLockViTForVideoClassification, TransformersEncoderConfig


B, STEPS, S, D, CLASSES = 3, 2, 4, 32, 5
OTHERS = [name for name in READOUTS if name != "attention"]


@pytest.fixture
def config():
    return LayerLockViTConfig(
        image_size=16,
        num_frames=4,
        patch_size=8,
        tubelet_size=2,
        hidden_size=D,
        num_hidden_layers=6,
        num_attention_heads=2,
        intermediate_size=64,
        num_decoder_layers=1,
        readout_hidden_size=24,
        readout_num_attention_heads=4,
        decoding_patch_size=[2, 4, 4],
    )


def linear(weights, name, states):
    return F.linear(states, weights[f"{name}.weight"], weights[f"{name}.bias"])


def norm(weights, name, states):
    return F.layer_norm(states, (D,), weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6)


def attend(weights, block, queries, tokens, num_heads):
    query, key, value = (
        linear(weights, f"{block}.{name}_proj", states)
        for name, states in (("q", queries), ("k", tokens), ("v", tokens))
    )
    heads = []
    for head in range(num_heads):
        part = slice(head * D // num_heads, (head + 1) * D // num_heads)
        scores = query[..., part] @ key[..., part].mT / (D // num_heads) ** 0.5
        heads.append(scores.softmax(dim=-1) @ value[..., part])
    return torch.cat(heads, dim=-1)


def mlp(weights, layer, states):
    hidden = F.gelu(linear(weights, f"{layer}.mlp.fc1", norm(weights, f"{layer}.layer_norm2", states)))
    return states + linear(weights, f"{layer}.mlp.fc2", hidden)


@pytest.mark.parametrize(
    ("name", "num_heads", "num_blocks"), [("attentive_probe", 2, 0), ("attentive_probe_v2", 4, 3)]
)
def test_attentive_probes_by_hand(config, name, num_heads, num_blocks):
    """The heads are the encoder's or the readout's, and the query's block has no output projection."""
    probe = READOUTS[name](config, 1, CLASSES)
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter.copy_(torch.randn(parameter.shape) / 4)  # as if trained: biases and norms matter
    weights = dict(probe.named_parameters())
    features = 3 * torch.randn(B, STEPS, S, D) + 1
    tokens = features.flatten(1, 2)
    tokens = (tokens - tokens.mean(dim=-1, keepdim=True)) / tokens.std(dim=-1, correction=0, keepdim=True)
    for layer in (f"pooler.self_attention_layers.{number}" for number in range(num_blocks)):
        known = norm(weights, f"{layer}.layer_norm1", tokens)
        attended = attend(weights, f"{layer}.self_attn", known, known, num_heads)
        tokens = mlp(weights, layer, tokens + linear(weights, f"{layer}.self_attn.out_proj", attended))
    layer = "pooler.cross_attention_layer"
    query = weights["pooler.query_tokens"].expand(B, -1, -1)
    known = norm(weights, f"{layer}.layer_norm1", tokens)
    query = query + attend(weights, f"{layer}.cross_attn", query, known, num_heads)
    expected = linear(weights, "classifier", mlp(weights, layer, query))
    torch.testing.assert_close(probe(features), expected, rtol=1e-4, atol=1e-4)
    per_block = 2 * 2 * D + 3 * (D * D + D) + 8 * D * D + 5 * D
    num_weights = (num_blocks + 1) * per_block + num_blocks * (D * D + D) + D + CLASSES * (D + 1)
    assert sum(parameter.numel() for parameter in weights.values()) == num_weights


def test_the_start_is_that_of_v_jepa(config):
    probe = READOUTS["attentive_probe_v2"](config, 1, CLASSES)
    for name, parameter in probe.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif "norm" not in name:
            assert 0 < parameter.abs().max() < 0.2  # the linear layers of PyTorch start at up to 0.18 for this width
            assert parameter.std() < 0.03


@pytest.mark.parametrize("initializer_range", [None, 0.03])
def test_readouts_of_a_sweep_start_as_those_of_models(config, initializer_range):
    config.update({"initializer_range": initializer_range, "readout_hidden_size": 256, "num_labels": CLASSES})
    ours = Classification(config, CLASSES).build_readout()
    theirs = LayerLockViTForVideoClassification(config).classification_readout
    for (name, one), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        if name.endswith("bias"):
            assert not one.any() and not other.any(), name
        elif one.numel() > 2000:  # of which the deviation is known well enough
            assert one.std().item() == pytest.approx(other.std().item(), rel=0.05), name
            assert one.abs().max().item() == pytest.approx(other.abs().max().item(), rel=0.2), name


def test_heads_of_other_encoders():
    encoder = VideoMAEConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=3)
    config = TransformersEncoderConfig(encoder_config=encoder, readout_hidden_size=24, readout_num_attention_heads=4)
    assert READOUTS["attentive_probe"](config, 1, 2).config.num_attention_heads == 3
    assert READOUTS["attentive_probe_v2"](config, 1, 2).config.num_attention_heads == 4


def test_linear_by_hand(config):
    readout = READOUTS["linear"](config, 1, CLASSES)
    features = 3 * torch.randn(B, STEPS, S, D) + 1
    mean = features.flatten(1, 2).mean(dim=1)
    scaled = (mean - mean.mean(dim=1, keepdim=True)) / mean.std(dim=1, correction=0, keepdim=True)
    expected = scaled @ readout.head.weight.T + readout.head.bias
    torch.testing.assert_close(readout(features), expected.unsqueeze(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", OTHERS)
def test_depth_is_refused(config, name):
    with pytest.raises(ValueError, match=f"readout={name} gives one answer .* needs 32: choose readout=attention"):
        Depth(config, readout=READOUTS[name]).build_readout()


class Clusters(torch.utils.data.Dataset):
    """Features of 3 classes, told apart by the direction of the mean."""

    def __init__(self, num_items, is_test):
        self.num_items, self.is_test = num_items, is_test

    def __len__(self):
        return self.num_items

    def __getitem__(self, index):
        noise = torch.randn(STEPS, S, D, generator=torch.Generator().manual_seed(index + 1000 * self.is_test))
        features = noise + 2 * torch.eye(3, D)[index % 3]
        item = {"features": features[None] if self.is_test else features, "labels": index % 3}
        return item | ({"index": index} if self.is_test else {})


@pytest.mark.parametrize("name", OTHERS)
def test_readouts_learn_together_as_alone(config, tmp_path, name):
    args = SweepArguments(
        learning_rates=[3e-3, 1e-2], depth_fractions=[1.0], num_examples=640, batch_size=16, warmup_steps=5
    )
    task = Classification(config, 3, readout=READOUTS[name])
    points = sweep_points(args, 6)

    def run(points, folder):
        folder.mkdir()
        sweep = Sweep(
            task,
            lambda batch, depths: [batch["features"] for _ in depths],
            points,
            args,
            Clusters(640, False),
            Clusters(30, True),
            folder,
            {},
        )
        return sweep, sweep.run()

    together, results = run(points, tmp_path / "together")
    _, alone = run(points[1:], tmp_path / "alone")
    for key, values in alone[points[1]].items():
        assert torch.equal(values, results[points[1]][key])
    assert measure(task.metrics, results[points[1]])["top1"] > 0.9
    batch = task.collate_test([together.test[index] for index in range(30)])
    samples = task.test(together.load_readout(points[1])(batch["features"]), batch)
    assert measure(task.metrics, samples) == pytest.approx(measure(task.metrics, results[points[1]]), rel=1e-4)
