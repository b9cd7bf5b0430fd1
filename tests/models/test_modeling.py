import json
import os

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

from layerlock_hf.models import (
    Latents,
    LayerLockViTConfig,
    LayerLockViTForPretraining,
    LayerLockViTModel,
    Objective,
    Stage,
    patchify,
    unpatchify,
)
from layerlock_hf.models.positions_layerlock import resample_positions, rotary_embedding, rotate, take_tokens


@pytest.fixture
def video():
    return torch.rand(2, 4, 3, 16, 16)


@pytest.fixture
def model(tiny_config):
    return LayerLockViTModel(tiny_config).eval()


@pytest.fixture
def context_ids():
    return torch.rand(2, 32).argsort(dim=1)[:, :8]


def test_output_shapes(model, video, tiny_config, context_ids):
    assert model(video).last_hidden_state.shape == (2, 32, 32)
    outputs = LayerLockViTForPretraining(tiny_config)(video, context_ids)
    assert outputs.loss.shape == ()
    assert [p.shape for p in outputs.predictions] == [(2, 32, 96)]


@pytest.mark.parametrize("use_final_norm", [False, True])
def test_hidden_states_are_the_taps(tiny_config, video, use_final_norm):
    tiny_config.use_final_norm = use_final_norm
    model = LayerLockViTModel(tiny_config).eval()
    outputs = model(video, output_hidden_states=True)
    assert len(outputs.hidden_states) == 7
    for depth, tap in enumerate(model.tap(video, list(range(7)))):
        assert torch.equal(outputs.hidden_states[depth], tap), depth
        assert torch.equal(model.tap(video, [depth])[0], tap)
    assert torch.equal(outputs.last_hidden_state, tap)
    late, early = model.tap(video, [5, 2])  # in the order asked for
    assert torch.equal(late, outputs.hidden_states[5]) and torch.equal(early, outputs.hidden_states[2])


def test_attentions_are_given_by_eager(tiny_config, video):
    tiny_config._attn_implementation = "eager"
    attentions = LayerLockViTModel(tiny_config)(video, output_attentions=True).attentions
    assert len(attentions) == 6
    torch.testing.assert_close(attentions[0].sum(-1), torch.ones(2, 2, 32))


@pytest.mark.parametrize("depth", range(7))
def test_tap_runs_no_deeper_layer(model, video, depth):
    ran = []
    for number, layer in enumerate(model.layers, start=1):
        layer.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
    model.tap(video, [depth])
    assert ran == list(range(1, depth + 1))


@pytest.mark.parametrize("depths", [[7], [-1], [2, 9]])
def test_tap_refuses_depths(model, video, depths):
    with pytest.raises(ValueError, match="depths"):
        model.tap(video, depths)


def test_sdpa_equals_eager(tiny_config, video, context_ids):
    outputs = []
    for implementation in ("sdpa", "eager"):
        torch.manual_seed(0)
        config = LayerLockViTConfig(**tiny_config.to_dict())
        config._attn_implementation = implementation
        model = LayerLockViTForPretraining(config)
        assert model.encoder.layers[0].attention.config._attn_implementation == implementation
        outputs.append((model.encoder(video).last_hidden_state, model(video, context_ids).predictions[0]))
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_frozen", [0, 1, 5])
def test_gradient_checkpointing_changes_nothing(tiny_config, video, context_ids, num_frozen):
    model = LayerLockViTForPretraining(tiny_config).train()
    stage = Stage(1, num_frozen, (Objective(6, Latents(num_frozen)),)) if num_frozen else model.pixel_stage
    model.freeze_for(stage)
    results, calls = [], []
    model.encoder.layers[-1].norm2.register_forward_hook(lambda *_: calls.append(1))
    for checkpoint in (False, True):
        if checkpoint:
            # The name of Transformers' older versions warns in later ones
            name = "activation_checkpointing_enable"
            getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")()
        model.zero_grad()
        calls.clear()
        loss = model(video, context_ids, stage=stage).loss
        loss.backward()
        assert len(calls) == 1 + checkpoint  # recomputed
        results.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)])
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("positions", ["rope", "learned", "none"])
@pytest.mark.parametrize("tokens", ["rope", "learned"])
def test_save_and_load(tiny_config, video, context_ids, tmp_path, positions, tokens):
    tiny_config.update({"position_embedding": positions, "decoding_tokens": tokens})
    model = LayerLockViTForPretraining(tiny_config).eval()
    with torch.no_grad():  # nothing at its initial value
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), LayerLockViTConfig)
    whole, info = AutoModelForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert type(whole) is LayerLockViTForPretraining and not info["missing_keys"] and not info["unexpected_keys"]
    encoder, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(encoder) is LayerLockViTModel and not info["missing_keys"]
    for loaded, original in ((whole, model), (encoder, model.encoder)):
        weights = loaded.state_dict()
        assert weights.keys() == original.state_dict().keys()
        assert all(torch.equal(weights[name], tensor) for name, tensor in original.state_dict().items())
    assert torch.equal(whole(video, context_ids).loss, model(video, context_ids).loss)
    assert torch.equal(encoder(video).last_hidden_state, model.encoder(video).last_hidden_state)
    encoder.save_pretrained(tmp_path / "encoder")
    again = LayerLockViTModel.from_pretrained(tmp_path / "encoder")
    assert torch.equal(again(video).last_hidden_state, encoder(video).last_hidden_state)


@pytest.mark.parametrize("positions", ["rope", "learned", "none"])
@pytest.mark.parametrize("size", [(8, 16, 16), (4, 24, 8), (2, 8, 32)])
def test_other_clip_sizes(tiny_config, positions, size):
    tiny_config.position_embedding = positions
    num_frames, height, width = size
    video = torch.rand(1, num_frames, 3, height, width)
    num_tokens = num_frames // 2 * (height // 4) * (width // 4)
    assert LayerLockViTModel(tiny_config)(video).last_hidden_state.shape == (1, num_tokens, 32)
    model = LayerLockViTForPretraining(tiny_config)
    assert model(video, torch.tensor([[0, num_tokens - 1]])).predictions[0].shape == (1, num_tokens, 96)


def test_learned_decoding_tokens_have_one_size(tiny_config):
    tiny_config.decoding_tokens = "learned"
    model = LayerLockViTForPretraining(tiny_config)
    with pytest.raises(ValueError, match="grid_size must be .* learned decoding tokens"):
        model(torch.rand(1, 8, 3, 16, 16), torch.tensor([[0, 1]]))


def test_resampled_positions():
    table = torch.randn(1, 32, 8)
    assert torch.equal(resample_positions(table, (2, 4, 4), (2, 4, 4)), table)
    ramp = torch.arange(4.0).view(1, 1, 1, 4, 1).expand(1, 2, 4, 4, 8).reshape(1, 32, 8)  # rises along the width
    wide = resample_positions(ramp, (2, 4, 4), (3, 2, 8))
    assert wide.shape == (1, 48, 8)
    rows = wide.view(3, 2, 8, 8)
    torch.testing.assert_close(rows, rows[:1, :1].expand_as(rows))
    torch.testing.assert_close(rows[0, 0, 1:7, 0], torch.arange(6) / 2 + 0.25)


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_freeze_is_idempotent_both_ways(tiny_config, positions):
    tiny_config.update({"position_embedding": positions, "use_final_norm": True})
    model = LayerLockViTModel(tiny_config)
    for num_layers in (3, 3, 0, 6, 1, 6, 0, 0):
        model.freeze(num_layers)
        assert model.config.num_frozen_layers == num_layers
        for name, parameter in model.named_parameters():
            if name.startswith("embeddings."):
                expected = num_layers == 0
            elif name.startswith("layers."):
                expected = int(name.split(".")[1]) >= num_layers
            else:
                expected = num_layers < 6
            assert parameter.requires_grad == expected, (name, num_layers)


@pytest.mark.parametrize("num_layers", [7, -1])
def test_freeze_refuses(model, num_layers):
    with pytest.raises(ValueError, match="num_layers to freeze must be between 0 and the .* layers of the ViT"):
        model.freeze(num_layers)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_patchify_and_back():
    video = torch.rand(2, 4, 3, 8, 12)
    patches = patchify(video, 2, 4)
    assert patches.shape == (2, 2 * 2 * 3, 96)
    assert torch.equal(unpatchify(patches, (2, 2, 3), 2, 4), video)
    # Token (t, h, w) = (1, 0, 2); its box is ordered frame, row, column, channel
    box = video[1, 2:4, :, 0:4, 8:12].permute(0, 2, 3, 1).reshape(-1)
    assert torch.equal(patches[1, 6 + 2], box)
    ids = torch.rand(2, 12).argsort(dim=1)[:, :5]
    assert torch.equal(patchify(video, 2, 4, ids), take_tokens(patches, ids))


@pytest.mark.parametrize("shape", [(1, 3, 3, 8, 8), (1, 4, 3, 9, 8), (1, 4, 3, 8, 6), (4, 3, 8, 8)])
def test_patchify_refuses(shape):
    with pytest.raises(ValueError):
        patchify(torch.rand(shape), 2, 4)


PIXELS = {"pixel_mean": [0.6, 0.5, 0.4], "pixel_std": [0.2, 0.25, 0.5]}


def with_pixels(model, **pixels):
    """The same weights, in a model that normalises pixels."""
    ours = type(model)(type(model.config)(**{**model.config.to_dict(), **pixels}))
    ours.load_state_dict(model.state_dict())
    return ours


def test_the_encoder_normalizes_pixels_itself(model, video):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in PIXELS.values())
    ours, ids = with_pixels(model, **PIXELS), torch.rand(len(video), 32).argsort(dim=1)[:, :7]
    normalized = (video - mean) / std
    assert torch.equal(ours(video).last_hidden_state, model(normalized).last_hidden_state)
    for arguments in ([0, 3], None), ([2], ids):
        for tap, expected in zip(ours.tap(video, *arguments), model.tap(normalized, *arguments), strict=True):
            assert torch.equal(tap, expected)
    assert ours.state_dict().keys() == model.state_dict().keys()


def test_normalized_pixels_survive_saving_and_old_configurations_load(model, video, tmp_path):
    ours = with_pixels(model, **PIXELS)
    ours.save_pretrained(tmp_path / "new")
    loaded = type(model).from_pretrained(tmp_path / "new")
    assert torch.equal(loaded(video).last_hidden_state, ours(video).last_hidden_state)
    model.save_pretrained(tmp_path / "old")
    file = tmp_path / "old" / "config.json"
    fields = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in fields.items() if not name.startswith("pixel_")}))
    old = type(model).from_pretrained(tmp_path / "old")
    assert torch.equal(old(video).last_hidden_state, model(video).last_hidden_state)


def test_pixels_are_normalized_in_bfloat16(model, video):
    ours = with_pixels(model, **PIXELS)
    expected = ours(video).last_hidden_state
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(ours(video).last_hidden_state.float(), expected, atol=0.1, rtol=0.1)
    whole = ours.to(torch.bfloat16)(video.to(torch.bfloat16)).last_hidden_state
    torch.testing.assert_close(whole.float(), expected, atol=0.15, rtol=0.1)


def test_rotate():
    config = LayerLockViTConfig.from_preset("tiny", hidden_size=40)
    ids = torch.arange(32).unsqueeze(0)
    rotation = rotary_embedding(ids, (2, 4, 4), 40, 10_000, config.rope_axis_fractions)
    states = torch.randn(3, 32, 40)
    rotated = rotate(states, rotation)
    assert torch.equal(rotated[..., 24:], states[..., 24:])  # 40% carry no position
    torch.testing.assert_close(
        rotated[..., :12] ** 2 + rotated[..., 12:24] ** 2, states[..., :12] ** 2 + states[..., 12:24] ** 2
    )
    assert torch.equal(rotated[:, 0], states[:, 0])  # position (0, 0, 0)
    changed = (rotated - states).abs().amax(dim=0) > 1e-6
    # 2 pairs tell the time, 5 the row, 5 the column: token 16 is (1, 0, 0), token 4 (0, 1, 0), token 1 (0, 0, 1)
    for token, pairs in ((16, range(0, 2)), (4, range(2, 7)), (1, range(7, 12))):
        assert {int(channel) for channel in changed[token].nonzero()} <= {*pairs, *(p + 12 for p in pairs)}
        # The first pair of an axis turns by one radian per position
        first = pairs[0]
        expected = (
            states[:, token, first] * torch.tensor(1.0).cos() - states[:, token, first + 12] * torch.tensor(1.0).sin()
        )
        torch.testing.assert_close(rotated[:, token, first], expected)


def test_rotation_reaches_the_values(tiny_config):
    # A token that attends to itself alone returns its value, whatever q and k are
    video = torch.full((1, 4, 3, 16, 16), 0.3)
    for positions, equal in (("rope", False), ("none", True)):
        tiny_config.position_embedding = positions
        model = LayerLockViTModel(tiny_config)
        here, there = (model.tap(video, [1], torch.tensor([[position]]))[0] for position in (0, 31))
        assert torch.allclose(here, there, atol=1e-5) == equal


def test_wrong_clips_are_refused(model, tiny_config, context_ids):
    with pytest.raises(ValueError, match="float clip"):
        model(torch.zeros(2, 4, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match="channels"):
        model(torch.rand(2, 4, 1, 16, 16))
    with pytest.raises(ValueError):  # channels last
        model(torch.rand(2, 4, 16, 16, 3))
    with pytest.raises(ValueError, match="channels"):
        LayerLockViTForPretraining(tiny_config)(torch.rand(2, 4, 1, 16, 16), context_ids)


def test_clips_of_a_batch_do_not_mix(model, tiny_config, video, context_ids):
    torch.testing.assert_close(
        model(video).last_hidden_state, torch.cat([model(clip[None]).last_hidden_state for clip in video])
    )
    model = LayerLockViTForPretraining(tiny_config)
    both = model(video, context_ids).predictions[0]
    ones = [model(clip[None], ids[None]).predictions[0] for clip, ids in zip(video, context_ids, strict=True)]
    torch.testing.assert_close(both, torch.cat(ones), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_clips_are_cast_to_the_dtype_of_the_weights(tiny_config, dtype):
    model = LayerLockViTModel(tiny_config).to(dtype)
    video = torch.rand(2, 4, 3, 16, 16)
    features = model(video).last_hidden_state
    assert features.dtype == dtype
    exact = model.float()(video).last_hidden_state
    assert (features.float() - exact).norm() < 0.05 * exact.norm()


def test_an_empty_batch_has_an_empty_result(tiny_config):
    model = LayerLockViTModel(tiny_config)
    assert model(torch.rand(0, 4, 3, 16, 16)).last_hidden_state.shape == (0, 32, 32)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit")  # of what compiles it
def test_flex_attention_is_attention(tiny_config, tmp_path):
    model = LayerLockViTModel(tiny_config).eval()
    model.save_pretrained(tmp_path)
    flexible = LayerLockViTModel.from_pretrained(tmp_path, attn_implementation="flex_attention").eval()
    video = torch.rand(2, 4, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(flexible(video)[0], model(video)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_the_umask_says_who_may_read_a_checkpoint(tiny_config, tmp_path, umask):
    before = os.umask(umask)
    try:
        LayerLockViTModel(tiny_config).save_pretrained(tmp_path)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~umask}
    assert {"config.json", "model.safetensors"} <= {path.name for path in tmp_path.iterdir()}
