"""The predictor, the fixed positions, and the encoder against the V-JEPA 2 of Transformers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import VJEPA2Config, VJEPA2Model
from transformers.models.vjepa2 import modeling_vjepa2

from layerlock_hf.models import LayerLockViTConfig, LayerLockViTForPretraining, LayerLockViTModel, patchify
from layerlock_hf.models.modeling_layerlock import LayerLockViTAttention
from layerlock_hf.models.positions_layerlock import SinCosPositions, grid_ids, sincos_embedding


POSITIONS = ("sincos", "rope", "rope_attention", "learned")


def predictor_config(tiny_sizes, **kwargs):
    sizes = {
        "decoder": "predictor",
        "predictor_hidden_size": 24,
        "predictor_num_attention_heads": 2,
        "num_mask_tokens": 2,
        "position_embedding": "sincos",
        "use_final_norm": True,
    }
    return LayerLockViTConfig.from_preset("tiny", **tiny_sizes, **{**sizes, **kwargs})


@pytest.fixture
def model(tiny_sizes):
    return LayerLockViTForPretraining(predictor_config(tiny_sizes))


@pytest.fixture
def ids():
    order = torch.rand(2, 32).argsort(dim=1)
    return order[:, :8], order[:, 8:20]


# ---- V-JEPA's numbers (facebookresearch/jepa, src/models/predictor.py and vision_transformer.py)


def test_predictor_of_vjepa_l_by_numbers():
    with torch.device("meta"):
        model = LayerLockViTForPretraining(LayerLockViTConfig.from_preset("vjepa-l"))
    predictor = model.decoders["24"]
    assert (predictor.projection.in_features, predictor.projection.out_features) == (1024, 384)
    assert predictor.mask_tokens.shape == (2, 1, 384)
    assert len(predictor.layers) == 12
    layer = predictor.layers[0]
    assert (layer.mlp.up.out_features, layer.attention.num_heads) == (4 * 384, 16)
    assert layer.attention.scaling == pytest.approx(24**-0.5)
    assert predictor.norm.normalized_shape == (384,)
    head = predictor.heads["latents"]
    assert (head.in_features, head.out_features) == (384, 1024)
    # projection + 12 layers + norm + mask tokens + projection to the targets
    layer_size = 4 * (384 * 384 + 384) + 384 * 1536 + 1536 + 1536 * 384 + 384 + 4 * 384
    expected = 1024 * 384 + 384 + 12 * layer_size + 2 * 384 + 2 * 384 + 384 * 1024 + 1024
    count = sum(p.numel() for p in predictor.parameters()) - sum(
        p.numel() for p in predictor.heads["pixels"].parameters()
    )
    assert count == expected == 22_082_944
    encoder = sum(p.numel() for p in model.encoder.parameters())
    layer_size = 4 * (1024 * 1024 + 1024) + 2 * 1024 * 4096 + 4096 + 1024 + 4 * 1024
    assert encoder == 1536 * 1024 + 1024 + 24 * layer_size + 2 * 1024  # 303.9M; the fixed table is no parameter


def test_initial_values_of_vjepa(tiny_sizes):
    model = LayerLockViTForPretraining(
        predictor_config({**tiny_sizes, "hidden_size": 128}, predictor_hidden_size=96, initializer_range=0.02)
    )
    assert not model.decoders["6"].mask_tokens.any()
    for module in (
        model.encoder.layers[0].mlp.up,
        model.decoders["6"].layers[0].mlp.up,
        model.decoders["6"].projection,
    ):
        assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not module.bias.any()


# ---- positions


def sincos_by_hand(width, grid_depth, grid_size):
    """`get_3d_sincos_pos_embed(..., uniform_power=True)` as it is documented, in numpy and double precision."""
    per_axis = int(np.ceil(width / 6) * 2)
    omega = 1.0 / 10_000 ** (np.arange(per_axis // 2) / (per_axis / 2.0))
    rows = []
    for d in range(grid_depth):
        for h in range(grid_size):
            for w in range(grid_size):
                axes = [np.concatenate([np.sin(place * omega), np.cos(place * omega)]) for place in (d, h, w)]
                rows.append(np.concatenate(axes)[:width])
    return np.stack(rows)


@pytest.mark.parametrize("width", [384, 1024, 32, 6, 10])
def test_sincos_by_hand(width):
    expected = sincos_by_hand(width, 8, 14)
    table = sincos_embedding(grid_ids((8, 14, 14), "cpu"), (8, 14, 14), width)
    assert table.shape == (1, 1568, width)
    np.testing.assert_allclose(table[0].numpy(), expected, atol=1e-5)
    ids = torch.tensor([[5, 0, 1567], [700, 14, 196]])
    found = SinCosPositions((8, 14, 14), width)(torch.zeros(2, 3, width), ids, (8, 14, 14))
    np.testing.assert_allclose(found.numpy(), expected[ids.numpy()], atol=1e-5)
    assert not list(SinCosPositions((8, 14, 14), width).parameters())


# ---- the predictor


def decode(model, context, ids, mask_type=0, context_ids=None):
    return model.decoders["6"](
        model.encoder, context, ids[0] if context_ids is None else context_ids, ids[1], (2, 4, 4), mask_type
    )


def test_predictor_by_hand(model, ids):
    predictor = model.decoders["6"]
    torch.nn.init.normal_(predictor.mask_tokens)
    context = torch.randn(2, 8, 32)
    table = torch.from_numpy(sincos_by_hand(24, 2, 4)).float()
    # Context first, as V-JEPA has it: attention does not know the order
    states = torch.cat(
        [predictor.projection(context) + table[ids[0]], predictor.mask_tokens[1] + table[ids[1]]], dim=1
    )
    for layer in predictor.layers:
        states = layer(states)
    expected = predictor.norm(states)[:, 8:]
    torch.testing.assert_close(decode(model, context, ids, mask_type=1), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", POSITIONS)
def test_predictor_depends_on_the_positions(tiny_sizes, ids, positions):
    model = LayerLockViTForPretraining(predictor_config(tiny_sizes, position_embedding=positions))
    torch.nn.init.normal_(model.decoders["6"].mask_tokens)
    context = torch.randn(2, 8, 32)
    before = decode(model, context, ids)
    other = ids[1].clone()
    other[:, 0] = ids[0][:, 0]  # a position that was not asked for
    after = decode(model, context, (ids[0], other))
    assert not torch.allclose(after[:, 0], before[:, 0], atol=1e-3)
    moved = decode(model, context, ids, context_ids=ids[0].roll(1, dims=1))
    assert not torch.allclose(moved, before, atol=1e-4)


@pytest.mark.parametrize("positions", POSITIONS)
def test_prediction_does_not_know_the_pixels_of_the_targets(tiny_sizes, ids, positions):
    model = LayerLockViTForPretraining(predictor_config(tiny_sizes, position_embedding=positions))
    video = torch.rand(2, 4, 3, 16, 16)
    before = model(video, *ids).predictions[0]
    hidden, seen = ids[1][0, 0].item(), ids[0][0, 0].item()
    for token, changes in ((hidden, False), (seen, True)):
        changed = video.clone()
        t, h, w = token // 16, token // 4 % 4, token % 4
        changed[0, 2 * t : 2 * t + 2, :, 4 * h : 4 * h + 4, 4 * w : 4 * w + 4] += 1
        assert torch.equal(model(changed, *ids).predictions[0], before) != changes


def test_order_of_targets_and_context_does_not_matter(model, ids):
    context = torch.randn(2, 8, 32)
    before = decode(model, context, ids)
    flipped = decode(model, context.flip(1), (ids[0].flip(1), ids[1].flip(1)))
    torch.testing.assert_close(flipped.flip(1), before, atol=1e-5, rtol=1e-5)


def test_no_token_for_a_type_of_mask(model, ids):
    with pytest.raises(ValueError, match="mask type 2 has no mask token, as num_mask_tokens=2"):
        decode(model, torch.randn(2, 8, 32), ids, mask_type=2)


# ---- the encoder against transformers.VJEPA2Model


@pytest.fixture
def vjepa2():
    config = VJEPA2Config(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        mlp_ratio=2,
        crop_size=16,
        patch_size=4,
        frames_per_clip=4,
        tubelet_size=2,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
        initializer_range=0.2,
    )
    model = VJEPA2Model(config).eval()
    for parameter in model.parameters():  # biases and norms too
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
    return model


def head_permutation(num_heads=2, head_width=16, num_pairs=2):
    """V-JEPA 2 rotates neighbouring channels, axis by axis; we rotate the first half with the second half."""
    pairs = [(2 * p, 2 * p + 1) for p in range(3 * num_pairs)]
    order = [a for a, _ in pairs] + [b for _, b in pairs] + list(range(6 * num_pairs, head_width))
    return torch.tensor([head * head_width + channel for head in range(num_heads) for channel in order])


def copy_weights(ours, theirs):
    order = head_permutation()
    with torch.no_grad():
        kernel = theirs.encoder.embeddings.patch_embeddings.proj  # (D, C, T, H, W), a box of ours is T, H, W, C
        ours.embeddings.projection.weight.copy_(kernel.weight.permute(0, 2, 3, 4, 1).flatten(1))
        ours.embeddings.projection.bias.copy_(kernel.bias)
        for layer, source in zip(ours.layers, theirs.encoder.layer, strict=True):
            for name in ("query", "key"):
                linear = getattr(source.attention, name)
                getattr(layer.attention, name).weight.copy_(linear.weight[order])
                getattr(layer.attention, name).bias.copy_(linear.bias[order])
            layer.attention.value.load_state_dict(source.attention.value.state_dict())
            layer.attention.out.load_state_dict(source.attention.proj.state_dict())
            layer.norm1.load_state_dict(source.norm1.state_dict())
            layer.norm2.load_state_dict(source.norm2.state_dict())
            layer.mlp.up.load_state_dict(source.mlp.fc1.state_dict())
            layer.mlp.down.load_state_dict(source.mlp.fc2.state_dict())
        ours.norm.load_state_dict(theirs.encoder.layernorm.state_dict())


def our_encoder(tiny_sizes, vjepa2, position_embedding):
    ours = LayerLockViTModel(
        LayerLockViTConfig.from_preset(
            "tiny",
            **{**tiny_sizes, "num_hidden_layers": 3},
            hidden_act="gelu",
            use_final_norm=True,
            position_embedding=position_embedding,
            rope_axis_fractions=(0.25, 0.25, 0.25),
        )
    )
    copy_weights(ours, vjepa2)
    return ours.eval()


def plain_interleave(x, pos):
    """`rotate_queries_or_keys` without its quirk, the tables tiled although the pairs are neighbours."""
    omega = 10_000 ** -(torch.arange(x.shape[-1] // 2, dtype=x.dtype) / (x.shape[-1] / 2))
    angles = (pos.unsqueeze(-1) * omega).repeat_interleave(2, dim=-1)
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * angles.cos() + torch.stack((-second, first), dim=-1).flatten(-2) * angles.sin()


@pytest.mark.parametrize("positions", ["none", "rope_attention"])
def test_encoder_is_that_of_vjepa2(tiny_sizes, vjepa2, monkeypatch, positions):
    rotation = {"none": lambda x, pos: x, "rope_attention": plain_interleave}[positions]
    monkeypatch.setattr(modeling_vjepa2, "rotate_queries_or_keys", rotation)
    ours, video = our_encoder(tiny_sizes, vjepa2, positions), torch.rand(2, 4, 3, 16, 16)
    theirs = vjepa2(video, skip_predictor=True, output_hidden_states=True)
    taps = ours.tap(video, [0, 1, 2, 3])
    for depth in range(3):
        torch.testing.assert_close(taps[depth], theirs.hidden_states[depth], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(taps[3], theirs.last_hidden_state, atol=1e-4, rtol=1e-4)


def test_rotation_matters_in_that_comparison(tiny_sizes, vjepa2, monkeypatch):
    ours, video = our_encoder(tiny_sizes, vjepa2, "none"), torch.rand(2, 4, 3, 16, 16)
    monkeypatch.setattr(modeling_vjepa2, "rotate_queries_or_keys", plain_interleave)
    theirs = vjepa2(video, skip_predictor=True).last_hidden_state
    assert not torch.allclose(ours(video).last_hidden_state, theirs, atol=1e-2)


def test_boxes_are_the_kernels_order(vjepa2):
    video = torch.rand(1, 4, 3, 16, 16)
    kernel = vjepa2.encoder.embeddings.patch_embeddings.proj
    boxes = patchify(video, 2, 4)
    expected = F.linear(boxes, kernel.weight.permute(0, 2, 3, 4, 1).flatten(1), kernel.bias)
    torch.testing.assert_close(vjepa2.encoder.embeddings(video), expected, atol=1e-5, rtol=1e-5)


def test_predictors_follow_the_attention_of_the_model(tiny_config):
    tiny_config.update({"decoder": "predictor", "predictor_hidden_size": 24, "predictor_num_attention_heads": 2})
    model = LayerLockViTForPretraining(tiny_config)
    model.set_attn_implementation("eager")
    attentions = [module.config for module in model.modules() if isinstance(module, LayerLockViTAttention)]
    assert len(attentions) == 8 and {config._attn_implementation for config in attentions} == {"eager"}
