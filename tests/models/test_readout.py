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

from layerlock_hf import post_process_depth_estimation
from layerlock_hf.models import (
    LayerLockViTConfig,
    LayerLockViTForDepthEstimation,
    LayerLockViTForPretraining,
    LayerLockViTForVideoClassification,
    LayerLockViTModel,
)
from layerlock_hf.models.modeling_layerlock_readout import depth_loss, depth_of_boxes


TASKS = {
    "classification": (AutoModelForVideoClassification, LayerLockViTForVideoClassification),
    "depth": (AutoModelForDepthEstimation, LayerLockViTForDepthEstimation),
}


def labels_of(task, batch_size=2):
    if task == "classification":
        return torch.arange(batch_size) % 5
    return torch.rand(batch_size, 4, 16, 16) * 9 + 0.5


def prediction(outputs):
    return outputs.logits if "logits" in outputs else outputs.predicted_depth


def trainable(module):
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


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


@pytest.mark.parametrize("task", TASKS)
def test_exported_readouts_take_batches_of_any_size(config, task):
    model = TASKS[task][1](config).eval()
    with torch.no_grad():
        sizes = ({0: torch.export.Dim("batch", min=1)},)
        program = torch.export.export(model, (torch.rand(2, 4, 3, 16, 16),), dynamic_shapes=sizes).module()
        for clips in (torch.rand(1, 4, 3, 16, 16), torch.rand(3, 4, 3, 16, 16)):
            torch.testing.assert_close(prediction(program(clips)), prediction(model(clips)))


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
