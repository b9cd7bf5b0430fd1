import copy

import pytest
import torch
import torch.nn.functional as F
from accelerate import cpu_offload
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForDepthEstimation,
    AutoModelForVideoClassification,
    Trainer,
    TrainingArguments,
)

from layerlock_hf import post_process_depth_estimation, readout_depth_from_fraction
from layerlock_hf.models import (
    AttentionReadout,
    LayerLockViTConfig,
    LayerLockViTForDepthEstimation,
    LayerLockViTForPretraining,
    LayerLockViTForVideoClassification,
    LayerLockViTModel,
)
from layerlock_hf.models.modeling_layerlock_readout import cubic_weights, depth_loss, depth_of_boxes


TASKS = {
    "classification": (AutoModelForVideoClassification, LayerLockViTForVideoClassification),
    "depth": (AutoModelForDepthEstimation, LayerLockViTForDepthEstimation),
}


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


def labels_of(task, batch_size=2):
    if task == "classification":
        return torch.arange(batch_size) % 5
    return torch.rand(batch_size, 4, 16, 16) * 9 + 0.5


def prediction(outputs):
    return outputs.logits if "logits" in outputs else outputs.predicted_depth


def trainable(module):
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


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


class Quantized(nn.Module):
    """A linear layer of 8-bit weights, which it tells by a method, as those of torch.ao do."""

    def __init__(self, layer):
        super().__init__()
        self.scale, self.bias = layer.weight.abs().max() / 127, layer.bias
        self._packed = (layer.weight / self.scale).round().to(torch.int8)

    def weight(self):
        return self._packed * self.scale

    def forward(self, states):
        return F.linear(states, self.weight(), self.bias)


@pytest.mark.parametrize("task", TASKS)
def test_offloaded_and_quantized_readouts(config, video, task):
    model = TASKS[task][1](config).eval()
    quantized = copy.deepcopy(model)
    for parent in list(quantized.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear:
                setattr(parent, name, Quantized(layer))
    with torch.no_grad():
        expected = model(video)[0]
        assert 0 < (quantized(video)[0] - expected).norm() < 0.1 * expected.norm()
        offloaded = cpu_offload(model, execution_device=torch.device("cpu"))
        assert all(parameter.device.type == "meta" for parameter in offloaded.parameters())
        torch.testing.assert_close(offloaded(video)[0], expected, rtol=1e-4, atol=1e-5)


def test_normalize_has_no_parameters(config):
    """Readouts of one configuration share what it gives."""
    features = torch.randn(2, 2, 16, 32)
    first, second = perturbed(config, 1), perturbed(config, 3)
    normalized = first.normalize(features)
    assert torch.equal(normalized, second.normalize(features)) and not normalized.requires_grad
    assert torch.equal(second.read(normalized), second(features))
    torch.testing.assert_close(normalized.mean(dim=-1), torch.zeros(2, 4, 16), atol=1e-5, rtol=0)


def test_output_shapes(config, video):
    assert LayerLockViTForVideoClassification(config)(video).logits.shape == (2, 5)
    assert LayerLockViTForDepthEstimation(config)(video).predicted_depth.shape == (2, 4, 16, 16)


@pytest.mark.parametrize("task", TASKS)
def test_frozen_encoder_runs_without_autograd_to_the_readout_depth(config, video, task):
    model = TASKS[task][1](config).train()
    ran = []
    for number, layer in enumerate(model.encoder.layers, start=1):
        layer.register_forward_hook(lambda *_, number=number: ran.append((number, torch.is_grad_enabled())))
    model(video, labels=labels_of(task)).loss.backward()
    assert ran == [(1, False), (2, False), (3, False)]
    assert trainable(model) == {name for name, p in model.named_parameters() if not name.startswith("encoder.")}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith("encoder."), name


@pytest.mark.parametrize("depth", [0, 3, 6, None])
@pytest.mark.parametrize("use_final_norm", [False, True])
def test_training_the_encoder_reaches_what_is_read(config, video, depth, use_final_norm):
    config.update({"readout_depth": depth, "use_final_norm": use_final_norm, "train_encoder": True})
    model = LayerLockViTForVideoClassification(config)
    model(video, labels=labels_of("classification")).loss.backward()
    # DDP needs a gradient for everything that is trainable
    assert trainable(model) == {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    read = range(6 if depth is None else depth)
    assert {int(name.split(".")[1]) for name in trainable(model.encoder) if name.startswith("layers.")} == set(read)
    trained = trainable(model)
    for frozen in (True, True, False, False):
        model.freeze_encoder(frozen)
        assert config.train_encoder is not frozen
        assert bool(trainable(model.encoder)) is not frozen
    assert trainable(model) == trained


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("train_encoder", [False, True])
def test_save_and_load(config, video, tmp_path, task, train_encoder):
    auto_class, model_class = TASKS[task]
    config.train_encoder = train_encoder
    config.id2label = {index: f"motion {index}" for index in range(5)}
    model = model_class(config).eval()
    model.save_pretrained(tmp_path)
    loaded, info = auto_class.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is model_class and not info["missing_keys"] and not info["unexpected_keys"]
    assert trainable(loaded) == trainable(model)
    assert torch.equal(prediction(loaded(video)), prediction(model(video)))
    assert loaded.config.id2label[4] == "motion 4" and loaded.config.num_labels == 5
    assert loaded.config.decoding_patch_size == [2, 4, 4]
    encoder, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(encoder) is LayerLockViTModel and not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(encoder(video).last_hidden_state, model.encoder(video).last_hidden_state)
    switched = auto_class.from_pretrained(tmp_path, train_encoder=not train_encoder)
    assert bool(trainable(switched.encoder)) is not train_encoder


@pytest.mark.parametrize("task", TASKS)
def test_pretrained_encoders_and_other_readouts_load(config, tmp_path, task):
    auto_class, model_class = TASKS[task]
    other = TASKS["depth" if task == "classification" else "classification"][1]
    for source in (LayerLockViTForPretraining(config), LayerLockViTModel(config), other(config)):
        source.save_pretrained(tmp_path)
        model, info = auto_class.from_pretrained(tmp_path, output_loading_info=True)
        assert info["missing_keys"] == {
            f"{task}_readout.{name}" for name, _ in getattr(model, f"{task}_readout").named_parameters()
        }
        assert not info["unexpected_keys"]
        weights = getattr(source, "encoder", source).state_dict()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in model.encoder.state_dict().items())


@pytest.mark.parametrize("task", TASKS)
def test_every_part_of_the_readout_learns(config, video, task):
    model = TASKS[task][1](config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    for _ in range(2):
        model(video, labels=labels_of(task)).loss.backward()
        optimizer.step()
    for name, tensor in model.state_dict().items():
        # A bias on all keys alike changes no softmax
        if not name.endswith("readout.key.bias"):
            assert torch.equal(tensor, before[name]) == name.startswith("encoder."), name


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_bf16_stays_close(config, video, task, positions):
    config.position_embedding = positions
    model, labels = TASKS[task][1](config), labels_of(task)
    loss = model(video, labels=labels).loss.item()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(video, labels=labels).loss
    model.to(torch.bfloat16)
    outputs = model(video.bfloat16(), labels=labels)
    assert prediction(outputs).dtype == torch.bfloat16
    for other in (mixed, outputs.loss):
        assert other.dtype == torch.float32 and other.item() == pytest.approx(loss, rel=0.05)


@pytest.mark.parametrize("num_frames", [2, 4, 6, 20])
def test_clips_of_any_length_are_classified(config, num_frames):
    logits = LayerLockViTForVideoClassification(config)(torch.rand(1, num_frames, 3, 16, 24)).logits
    assert logits.shape == (1, 5) and logits.isfinite().all()


@pytest.mark.parametrize("shape", [(1, 6, 3, 16, 16), (1, 4, 3, 16, 24), (1, 4, 3, 32, 32), (4, 3, 16, 16)])
def test_depth_refuses_other_clips(config, shape):
    with pytest.raises(ValueError, match="must have 4 frames of 16x16 pixels.*post_process_depth_estimation"):
        LayerLockViTForDepthEstimation(config)(torch.rand(shape))


def test_depth_refuses_boxes_that_do_not_tile(config):
    config.decoding_patch_size = [2, 5, 4]
    with pytest.raises(ValueError, match="decoding_patch_size"):
        LayerLockViTForDepthEstimation(config)


def test_boxes_are_put_where_their_query_stands(config):
    config.decoding_patch_size = [2, 4, 8]  # a grid of 2 x 4 x 2
    depth = torch.rand(3, 4, 16, 16)
    boxes = [
        depth[:, 2 * t : 2 * t + 2, 4 * h : 4 * h + 4, 8 * w : 8 * w + 8].reshape(3, -1)
        for t in range(2)
        for h in range(4)
        for w in range(2)
    ]
    assert torch.equal(depth_of_boxes(torch.stack(boxes, dim=1), config), depth)


def test_depth_loss_counts_valid_labels_alone():
    labels = torch.rand(2, 4, 8, 8) * 9 + 0.5
    holes = torch.rand(labels.shape) < 0.4
    invalid = torch.tensor([0.0, 0.0009, 10.01, -100.0, float("nan"), float("inf")])
    broken = torch.where(holes, invalid[torch.randint(6, labels.shape)], labels)
    predicted = torch.rand(labels.shape, requires_grad=True)
    loss = depth_loss(predicted, broken)
    torch.testing.assert_close(loss, (predicted - labels)[~holes].square().mean())
    (gradient,) = torch.autograd.grad(loss, predicted)
    assert (gradient[holes] == 0).all() and (gradient[~holes] != 0).all()
    nothing = depth_loss(predicted, torch.zeros_like(labels))
    (gradient,) = torch.autograd.grad(nothing, predicted)
    assert nothing == 0 and (gradient == 0).all()
    for edge in (0.001, 10.0):
        assert depth_loss(torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), edge)) > 0
    with pytest.raises(ValueError, match="labels"):
        depth_loss(predicted, labels[:, 0])


class Clips(torch.utils.data.Dataset):
    def __init__(self, labels):
        self.labels, self.videos = labels, torch.rand(len(labels), 4, 3, 16, 16)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"pixel_values_videos": self.videos[index], "labels": self.labels[index]}


@pytest.mark.parametrize("case", ["classification", "multi-label", "depth"])
def test_accumulation_changes_nothing(config, tmp_path, case):
    task = "depth" if case == "depth" else "classification"
    labels = labels_of(task, 4)
    if case == "multi-label":
        labels = torch.rand(4, 5).round()
    if case == "depth":  # ever fewer valid pixels
        labels[torch.rand(labels.shape) < torch.linspace(0, 0.9, 4).view(4, 1, 1, 1)] = -100
    clips, results = Clips(labels), []
    for batch_size in (4, 1):
        torch.manual_seed(0)
        config.problem_type = None
        model = TASKS[task][1](LayerLockViTConfig(**config.to_dict()))
        whole = model(clips.videos, labels=labels).loss
        trainer = Trainer(
            model,
            TrainingArguments(
                tmp_path,
                max_steps=1,
                per_device_train_batch_size=batch_size,
                gradient_accumulation_steps=4 // batch_size,
                optim="sgd",
                learning_rate=0.1,
                max_grad_norm=0.0,
                use_cpu=True,
                disable_tqdm=True,
                dataloader_pin_memory=False,
            ),
            train_dataset=clips,
        )
        loss = trainer.train().training_loss
        assert loss == pytest.approx(whole.item(), rel=1e-4)
        results.append([p.detach().clone() for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("task", TASKS)
def test_return_dict(config, video, task):
    model = TASKS[task][1](config)
    loss, predicted = model(video, labels=labels_of(task), return_dict=False)
    assert loss.shape == () and torch.equal(predicted, prediction(model(video)))
    with pytest.raises(TypeError, match="pixel_value"):
        model(video, pixel_value=video)


@pytest.mark.parametrize("sizes", [[(32, 20), (8, 8)], torch.tensor([[32, 20], [8, 8]])])
def test_post_process_depth_estimation(config, video, sizes):
    outputs = LayerLockViTForDepthEstimation(config)(video)
    plain = post_process_depth_estimation(outputs)
    assert len(plain) == 2 and all(
        torch.equal(p["predicted_depth"], d) for p, d in zip(plain, outputs.predicted_depth, strict=True)
    )
    resized = [item["predicted_depth"] for item in post_process_depth_estimation(outputs, sizes)]
    assert [depth.shape for depth in resized] == [(4, 32, 20), (4, 8, 8)]
    expected = F.interpolate(outputs.predicted_depth[0, 1][None, None], size=(32, 20), mode="bicubic")[0, 0]
    torch.testing.assert_close(resized[0][1], expected)
    with pytest.raises(ValueError, match="target_sizes"):
        post_process_depth_estimation(outputs, [(8, 8)])


@pytest.mark.parametrize("task", TASKS)
def test_hidden_states_and_attention(config, video, task):
    config._attn_implementation = "eager"
    model = TASKS[task][1](config).eval()
    assert model(video).hidden_states is None and model(video).attentions is None
    outputs = model(video, output_hidden_states=True, output_attentions=True)
    expected = model.encoder.tap(video, [0, 1, 2, 3])  # up to the readout's depth
    torch.testing.assert_close(outputs.hidden_states, tuple(expected), rtol=0, atol=0)
    assert [weights.shape for weights in outputs.attentions] == 3 * [(2, 2, 32, 32)]
    torch.testing.assert_close(outputs.attentions[0].sum(dim=-1), torch.ones(2, 2, 32))
    torch.testing.assert_close(prediction(outputs), prediction(model(video)), rtol=0, atol=0)
    model.config.output_hidden_states = True
    assert len(model(video).hidden_states) == 4
    assert len(model(video, return_dict=False)) == 2


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_readouts_of_other_dtypes(config, video, task, dtype):
    model = TASKS[task][1](config).eval()
    exact = prediction(model(video))
    found = prediction(model.to(dtype)(video))
    assert found.dtype == dtype and (found.float() - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("task", TASKS)
def test_an_empty_batch_has_an_empty_result(config, video, task):
    assert len(prediction(TASKS[task][1](config)(video[:0]))) == 0


def test_an_exported_classifier_takes_clips_of_any_length(config):
    model = LayerLockViTForVideoClassification(config).eval()
    auto = torch.export.Dim.AUTO
    with torch.no_grad():
        program = torch.export.export(
            model, (torch.rand(2, 4, 3, 16, 16),), dynamic_shapes=({0: auto, 1: auto},)
        ).module()
        for shape in ((2, 4, 3, 16, 16), (3, 8, 3, 16, 16), (2, 16, 3, 16, 16)):
            clip = torch.rand(shape)
            torch.testing.assert_close(program(clip).logits, model(clip).logits, rtol=1e-4, atol=1e-5)
