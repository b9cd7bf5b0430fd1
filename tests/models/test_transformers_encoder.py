import json

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForDepthEstimation, AutoModelForVideoClassification, pipeline

from layerlock_hf.models import (
    LayerLockVideoProcessor,
    TransformersEncoder,
    TransformersEncoderConfig,
    TransformersEncoderForDepthEstimation,
    TransformersEncoderForVideoClassification,
)
from layerlock_hf.models.modeling_transformers_encoder import grid_of


ATTENTION = {"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 2}
SIZES = {**ATTENTION, "intermediate_size": 64, "image_size": 16, "num_frames": 4}
IMAGE_SIZES = {**ATTENTION, "image_size": 16, "patch_size": 4}
# Name of the configuration, fields, grid of 4 frames of 16 x 16 pixels, class and register tokens
MODELS = {
    "videomae": ("VideoMAEConfig", {**SIZES, "patch_size": 4, "tubelet_size": 2}, (2, 4, 4), 0),
    "vjepa2": (
        "VJEPA2Config",
        {
            **ATTENTION,
            **{"crop_size": 16, "patch_size": 4, "frames_per_clip": 4},
            **{"pred_hidden_size": 32, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 3},
        },
        (2, 4, 4),
        0,
    ),
    "timesformer": ("TimesformerConfig", {**SIZES, "patch_size": 4}, (4, 4, 4), 1),
    "vivit": ("VivitConfig", {**SIZES, "tubelet_size": [2, 4, 4]}, (2, 4, 4), 1),
    "dinov2": ("Dinov2Config", IMAGE_SIZES, (4, 4, 4), 1),
    "dinov2_with_registers": ("Dinov2WithRegistersConfig", IMAGE_SIZES, (4, 4, 4), 5),
    "dinov3": ("DINOv3ViTConfig", {**IMAGE_SIZES, "num_register_tokens": 2}, (4, 4, 4), 3),
    "clip": ("CLIPVisionConfig", IMAGE_SIZES, (4, 4, 4), 1),
}
IMAGE_MODELS = ("dinov2", "dinov2_with_registers", "dinov3", "clip")


def make_config(kind, **fields):
    name, sizes, *_ = MODELS[kind]
    readout = {"readout_hidden_size": 16, "readout_num_attention_heads": 2, "decoding_patch_size": [2, 4, 4]}
    model_config = getattr(transformers, name)(**sizes, initializer_range=0.2)
    statistics = {"pixel_mean": [0.5, 0.4, 0.3], "pixel_std": [0.2, 0.3, 0.4]}
    return TransformersEncoderConfig(
        encoder_config=model_config, image_size=16, num_frames=4, **statistics, **{**readout, **fields}
    )


@pytest.fixture
def encoder(kind):
    encoder = TransformersEncoder(make_config(kind)).eval().requires_grad_(False)
    with torch.no_grad():  # tables of positions start at zero in some
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


@pytest.fixture
def video():
    return torch.rand(2, 4, 3, 16, 16)


def hidden_states(kind, model, video):
    """What Transformers itself gives, put in order by what is known of each model."""
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    _, _, (t, h, w), num_extra = MODELS[kind]
    pixels = (video - mean) / std
    if kind in IMAGE_MODELS:
        states = model(pixels.flatten(0, 1), output_hidden_states=True).hidden_states
        return [state[:, num_extra:].reshape(2, t * h * w, -1) for state in states]
    states = [state[:, num_extra:] for state in model(pixels, output_hidden_states=True).hidden_states]
    if kind == "timesformer":  # ordered by place, then time
        states = [state.unflatten(1, (h * w, t)).transpose(1, 2).flatten(1, 2) for state in states]
    return states


@pytest.mark.parametrize("kind", MODELS)
def test_tokens_are_those_of_the_hidden_states(kind, encoder, video):
    assert encoder.grid_size(video) == MODELS[kind][2]
    expected = hidden_states(kind, encoder.model, video)
    taps = encoder.tap(video, [2, 0, 1])
    for depth, tokens in zip((2, 0, 1), taps, strict=True):
        torch.testing.assert_close(tokens, expected[depth], atol=1e-5, rtol=1e-5)
        assert not tokens.requires_grad
    assert not torch.allclose(expected[1], expected[2])
    (last,) = encoder.tap(video, [3])
    if kind in ("timesformer", "clip", "vjepa2"):  # the others give the last entry after the final norm
        torch.testing.assert_close(last, expected[3], atol=1e-5, rtol=1e-5)
    assert torch.equal(encoder(video).last_hidden_state, last)


@pytest.mark.parametrize("kind", MODELS)
def test_a_box_of_pixels_reaches_its_token_alone(kind, encoder, video):
    t, h, w = encoder.grid_size(video)
    (before,) = encoder.tap(video, [0])
    for place in ((0, 0, 1), (t - 1, 2, 0), (1, 3, 3)):
        changed = video.clone()
        time, row, column = place
        frames = 4 // t
        changed[1, time * frames : (time + 1) * frames, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1
        (after,) = encoder.tap(changed, [0])
        differs = (after != before).any(dim=-1)
        assert differs.nonzero().tolist() == [[1, (time * h + row) * w + column]]


@pytest.mark.parametrize("kind", MODELS)
def test_nothing_beyond_the_deepest_is_run(kind, encoder, video):
    ran = []
    for name, module in encoder.model.named_modules():
        module.register_forward_hook(lambda module, args, output, name=name: ran.append(name))
    encoder.grid_size(video)
    assert not [name for name in ran if encoder.layers[0] in encoder.model.get_submodule(name).modules()]
    ran.clear()
    encoder.tap(video, [1, 2])
    layers = [layer for layer in encoder.layers if any(encoder.model.get_submodule(name) is layer for name in ran)]
    assert layers == list(encoder.layers[:2])
    read = set(encoder.parameters_up_to(2))
    ran_beyond = {f"{name}.{own}" for name in ran for own, _ in encoder.model.get_submodule(name).named_parameters()}
    assert ran_beyond <= read
    # and the hooks are gone
    assert not any(layer._forward_pre_hooks for layer in encoder.layers)
    assert all(len(layer._forward_hooks) == 1 for layer in encoder.layers)


@pytest.mark.parametrize("kind", ["dinov3"])
def test_hooks_are_gone_after_an_error(kind, encoder, video):
    with pytest.raises(ValueError, match="depths must be between 0 and the 3 layers of the encoder, got .4."):
        encoder.tap(video, [4])
    encoder.grid_size(video)
    encoder.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        encoder.tap(video, [0, 1, 2, 3])
    assert not any(layer._forward_hooks for layer in encoder.layers)
    assert not encoder.layers[0]._forward_pre_hooks


@pytest.mark.parametrize("kind", ["timesformer", "clip"])
def test_reading_changes_and_draws_nothing(kind, video):
    torch.manual_seed(0)
    encoder = TransformersEncoder(make_config(kind))
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    state = torch.get_rng_state()
    with torch.inference_mode():
        encoder.eval().tap(video, [0, 3])
    with torch.autocast("cpu", torch.bfloat16):
        encoder.tap(video[:, :2], [1]) if kind == "clip" else None
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in encoder.parameters())


@pytest.mark.parametrize("kind", MODELS)
def test_the_layout_is_found_in_bf16(kind, encoder, video):
    expected = encoder.layout(video)
    encoder.to(torch.bfloat16)
    encoder._layouts.clear()
    layout = encoder.layout(video)
    assert torch.equal(layout.ids, expected.ids) and layout.grid_size == expected.grid_size
    assert encoder.tap(video, [1])[0].dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["dinov2", "clip", "vjepa2"])
def test_other_sizes(kind, encoder):
    assert encoder.grid_size(torch.rand(1, 4, 3, 24, 32)) == (MODELS[kind][2][0], 6, 8)
    assert encoder.tap(torch.rand(3, 4, 3, 24, 32), [3])[0].shape == (3, MODELS[kind][2][0] * 48, 32)


@pytest.mark.parametrize("kind", ["dinov2"])
def test_pixels_at_the_end_that_no_token_sees(kind, encoder, video):
    larger = torch.rand(2, 4, 3, 18, 16)
    assert encoder.grid_size(larger) == (4, 4, 4)
    cut = larger[..., :16, :].contiguous()
    torch.testing.assert_close(encoder.tap(larger, [0]), encoder.tap(cut, [0]))


@pytest.mark.parametrize("kind", ["videomae"])
def test_clips_that_a_model_does_not_take(kind, encoder, video):
    with pytest.raises(ValueError, match=r"videomae.*\(4, 3, 24, 16\).*as a clip: .*as frames: "):
        encoder.tap(torch.rand(1, 4, 3, 24, 16), [1])
    for wrong in (video[0], video[:, :, :2], (video * 255).byte()):
        with pytest.raises(ValueError, match="float clip"):
            encoder.tap(wrong, [1])


@pytest.mark.parametrize(
    ("model_config", "message"),
    [
        (
            transformers.SwinConfig(
                image_size=16, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=2
            ),
            "swin.*width 8.*hidden_size=16.*[Hh]ierarchical",
        ),
        (transformers.ConvNextConfig(), "convnext.*has no hidden_size"),
        (transformers.BertConfig(**ATTENTION, intermediate_size=32, vocab_size=20), "bert.*as a clip.*as frames"),
        (transformers.PvtV2Config(), "pvt_v2.*has no num_hidden_layers"),
    ],
)
def test_models_that_cannot_be_read(model_config, message, video):
    with pytest.raises(ValueError, match=message):
        TransformersEncoder(TransformersEncoderConfig(encoder_config=model_config)).tap(video, [1])


def test_states_that_shrink_are_refused(video):
    encoder = TransformersEncoder(make_config("videomae")).eval()
    encoder.layers[1].register_forward_hook(lambda module, args, output: output[:, ::2])
    with pytest.raises(ValueError, match="after 2 layers.*(2, 16, 32).*[Hh]ierarchical"):
        encoder.tap(video, [2])


def test_maps_that_are_no_grid():
    seen_by = torch.arange(4).view(1, 2, 2).repeat_interleave(2, 1).repeat_interleave(2, 2)
    grid_size, ids = grid_of(seen_by)
    assert grid_size == (1, 2, 2) and ids.tolist() == [0, 1, 2, 3]
    holes = seen_by.clone()
    holes[0, 1, 1] = -1
    uneven = torch.tensor([0, 0, 0, 1]).expand(1, 4, 4)
    twice = torch.tensor([0, 1, 0, 1]).expand(1, 1, 4)
    for wrong in (holes, uneven, twice, -torch.ones(1, 4, 4, dtype=torch.long)):
        with pytest.raises(ValueError):
            grid_of(wrong)


def test_overlapping_patches_are_refused(video):
    encoder = TransformersEncoder(make_config("clip"))
    projection = encoder.model.embeddings.patch_embedding
    projection.kernel_size, projection.padding = (6, 6), (1, 1)
    projection.weight = torch.nn.Parameter(torch.randn(32, 3, 6, 6))
    with pytest.raises(ValueError, match="several tokens"):
        encoder.tap(video, [1])


TASKS = {
    "classification": (AutoModelForVideoClassification, TransformersEncoderForVideoClassification),
    "depth": (AutoModelForDepthEstimation, TransformersEncoderForDepthEstimation),
}


def predict(model, video):
    outputs = model(video)
    return outputs.logits if "logits" in outputs else outputs.predicted_depth


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", MODELS)
def test_readouts_round_trip(kind, task, video, tmp_path):
    auto_class, model_class = TASKS[task]
    model = auto_class.from_config(make_config(kind, readout_depth=2, num_labels=5))
    assert type(model) is model_class
    model.eval().save_pretrained(tmp_path)
    loaded, info = auto_class.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is model_class and not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(predict(loaded, video), predict(model, video))
    assert predict(loaded, video).shape == ((2, 5) if task == "classification" else (2, 4, 16, 16))
    assert not any(parameter.requires_grad for parameter in loaded.encoder.parameters())
    encoder, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(encoder) is TransformersEncoder and not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(encoder.tap(video, [2])[0], model.encoder.tap(video, [2])[0])
    assert encoder.config.pixel_mean == [0.5, 0.4, 0.3]


@pytest.mark.parametrize("kind", ["vjepa2", "dinov3"])
def test_frozen_encoders_stay_in_eval_mode(kind, video):
    model = TransformersEncoderForVideoClassification(make_config(kind, readout_depth=2, num_labels=5)).train()
    assert model.training and not model.encoder.training and not model.encoder.model.training
    model(video, labels=torch.tensor([0, 1])).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith("encoder."), name


@pytest.mark.parametrize("kind", ["vjepa2", "clip"])
@pytest.mark.parametrize("depth", [0, 2])
def test_training_the_encoder_reaches_what_is_read(kind, depth, video):
    config = make_config(kind, readout_depth=depth, num_labels=5, train_encoder=True)
    model = TransformersEncoderForVideoClassification(config).train()
    assert model.encoder.training
    model(video, labels=torch.tensor([0, 1])).loss.backward()
    learn = {name for name, parameter in model.encoder.model.named_parameters() if parameter.requires_grad}
    assert learn == set(model.encoder.parameters_up_to(depth))
    grads = {name for name, parameter in model.encoder.model.named_parameters() if parameter.grad is not None}
    assert grads == learn


@pytest.mark.parametrize("kind", ["timesformer", "vivit", "dinov2", "vjepa2"])
def test_tokens_are_picked_after_the_pass(kind, encoder, video):
    ids = torch.tensor([[5, 31, 0], [7, 7, 2]])
    expected = [torch.stack([clip[i] for clip, i in zip(tap, ids, strict=True)]) for tap in encoder.tap(video, [0, 3])]
    found = encoder.tap(video, [0, 3], ids)
    assert all(map(torch.equal, found, expected)) and found[0].shape == (2, 3, 32)


@pytest.mark.parametrize("kind", ["vivit", "vjepa2", "dinov2"])
def test_the_last_layer_can_be_read_after_its_norm(kind, encoder, video):
    """As `last_hidden_state` of the model itself; the other depths are as they were."""
    normed = TransformersEncoder(make_config(kind, use_final_norm=True), encoder.model).eval()
    ran = []
    for name, module in normed.model.named_modules():
        module.register_forward_hook(lambda module, args, output, name=name: ran.append(name))
    taps = normed.tap(video, [3, 1, 2])
    assert not [name for name in ran if name.startswith("predictor")]
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    pixels = (video - mean) / std
    expected = encoder.model(pixels.flatten(0, 1) if kind in IMAGE_MODELS else pixels).last_hidden_state
    expected = expected[:, MODELS[kind][3] :].reshape(2, -1, 32)
    assert torch.equal(taps[0], expected)
    assert torch.equal(normed(video).last_hidden_state, expected)
    before, *others = encoder.tap(video, [3, 1, 2])
    assert all(map(torch.equal, taps[1:], others)) and not torch.allclose(taps[0], before)
    assert len(normed.model._forward_hooks) == 1  # this test's own


def test_whether_the_norm_is_read_is_saved_where_it_is(tmp_path):
    """Files without it are as they were before there was the field."""
    for reads_norm in (True, False):
        config = make_config("vivit", use_final_norm=reads_norm)
        assert ("use_final_norm" in config.to_dict()) == reads_norm
        config.save_pretrained(tmp_path)
        assert ("use_final_norm" in (tmp_path / "config.json").read_text()) == reads_norm
        assert AutoConfig.from_pretrained(tmp_path).use_final_norm == reads_norm
    normed = TransformersEncoder(make_config("vivit", use_final_norm=True))
    assert "layernorm.weight" in normed.parameters_up_to(3) and "layernorm.weight" not in normed.parameters_up_to(2)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_model_keeps_its_attention(attention, video):
    model = AutoModel.from_config(make_config("videomae").encoder_config, attn_implementation=attention).eval()
    encoder = TransformersEncoder(TransformersEncoderConfig(encoder_config=model.config, image_size=16), model)
    assert model.config._attn_implementation == attention
    assert torch.equal(encoder.tap(video, [2])[0], model(video, output_hidden_states=True).hidden_states[2])


# config.json of a readout as version 0.1.0.dev0 wrote it, when the class was called AnyEncoder
OLD_CONFIG = {
    "architectures": ["AnyEncoderForVideoClassification"],
    "decoding_patch_size": [2, 4, 4],
    "dtype": "float32",
    "encoder_config": {
        "_name_or_path": "",
        "architectures": ["VideoMAEModel"],
        "attention_probs_dropout_prob": 0.0,
        "chunk_size_feed_forward": 0,
        "decoder_hidden_size": 384,
        "decoder_intermediate_size": 1536,
        "decoder_num_attention_heads": 6,
        "decoder_num_hidden_layers": 4,
        "dtype": "float32",
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": 48,
        "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
        "image_size": 16,
        "initializer_range": 0.02,
        "intermediate_size": 96,
        "is_encoder_decoder": False,
        "label2id": {"LABEL_0": 0, "LABEL_1": 1},
        "layer_norm_eps": 1e-12,
        "model_type": "videomae",
        "norm_pix_loss": True,
        "num_attention_heads": 3,
        "num_channels": 3,
        "num_frames": 4,
        "num_hidden_layers": 3,
        "output_attentions": False,
        "output_hidden_states": False,
        "patch_size": 4,
        "problem_type": None,
        "qv_bias": True,
        "return_dict": True,
        "tubelet_size": 2,
        "use_mean_pooling": False,
    },
    "hidden_act": "gelu_pytorch_tanh",
    "id2label": {str(label): f"LABEL_{label}" for label in range(5)},
    "image_size": 16,
    "initializer_range": None,
    "label2id": {f"LABEL_{label}": label for label in range(5)},
    "layer_norm_eps": 1e-06,
    "model_type": "layerlock_any_encoder",
    "num_frames": 4,
    "pixel_mean": [0.5, 0.4, 0.3],
    "pixel_std": [0.2, 0.3, 0.4],
    "readout_depth": 2,
    "readout_hidden_size": 16,
    "readout_intermediate_size": None,
    "readout_num_attention_heads": 2,
    "readout_num_frames": None,
    "train_encoder": False,
    "transformers_version": "5.23.0",
}


PIPELINES = {"classification": "video-classification", "depth": "video-depth-estimation"}


@pytest.mark.parametrize("task", TASKS)
def test_folders_of_older_versions_load(task, video, tmp_path):
    auto_class, model_class = TASKS[task]
    name = model_class.__name__.replace("Transformers", "Any")
    (tmp_path / "config.json").write_text(json.dumps(OLD_CONFIG | {"architectures": [name]}))
    model = auto_class.from_config(AutoConfig.from_pretrained(tmp_path)).eval()
    state = model.state_dict()
    named = ("encoder.model.encoder.layer.2.output.dense.bias", f"{task}_readout.temporal_embeddings")
    assert all(any(key == full for key in state) for full in named)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    loaded, info = auto_class.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is model_class and not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(predict(loaded, video), predict(model, video))
    encoder, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(encoder) is TransformersEncoder and not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(encoder.tap(video, [2])[0], model.encoder.tap(video, [2])[0])
    LayerLockVideoProcessor.from_config(loaded.config).save_pretrained(tmp_path)
    assert type(pipeline(PIPELINES[task], model=str(tmp_path)).model) is model_class
    # What it is saved as is the same but for the name of the class
    loaded.save_pretrained(tmp_path / "again")
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert written.pop("architectures") == [model_class.__name__]
    assert written.pop("auto_map") == TransformersEncoderConfig.auto_classes
    assert ("custom_pipelines" in written) == (task == "depth")
    written.pop("custom_pipelines", None)
    known = {name: value for name, value in OLD_CONFIG.items() if name != "architectures"}
    assert written == known | {"transformers_version": written["transformers_version"]}
