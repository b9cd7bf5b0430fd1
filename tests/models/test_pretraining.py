import functools

import pytest
import torch
import torch.nn.functional as F

from layerlock_hf.models import (
    Latents,
    LayerLockViTConfig,
    LayerLockViTForPretraining,
    Objective,
    Pixels,
    Stage,
    patchify,
)
from layerlock_hf.models.positions_layerlock import rotary_embedding


def latent_stage(num_frozen, target=None, **kwargs):
    return Stage(10 * num_frozen, num_frozen, (Objective(6, Latents(target or num_frozen), **kwargs),))


@pytest.fixture
def model(tiny_config):
    return LayerLockViTForPretraining(tiny_config)


@pytest.fixture
def batch():
    return {
        "pixel_values_videos": torch.rand(2, 4, 3, 16, 16),
        "context_ids": torch.rand(2, 32).argsort(dim=1)[:, :8],
        "target_ids": torch.rand(2, 32).argsort(dim=1),
    }


def latents_by_hand(encoder, video, depth, ids=None):
    patches = patchify(video, 2, 4)
    if ids is None:
        ids = torch.arange(32).expand(len(video), -1)
    states = encoder.embeddings.projection(torch.stack([clip[i] for clip, i in zip(patches, ids, strict=True)]))
    rotation = rotary_embedding(ids, (2, 4, 4), 32, 10_000, [0.10, 0.25, 0.25])
    for layer in list(encoder.layers)[:depth]:
        states = layer(states, rotation)
    return states


@pytest.mark.parametrize("depth", [1, 3, 6])
def test_latent_target_by_hand(model, batch, depth):
    video, ids = batch["pixel_values_videos"], batch["target_ids"][:, :12]
    whole = Latents(depth).compute({"encoder": model.encoder}, video, None)
    torch.testing.assert_close(whole, latents_by_hand(model.encoder, video, depth))
    subset = Latents(depth).compute({"encoder": model.encoder}, video, ids)
    torch.testing.assert_close(subset, latents_by_hand(model.encoder, video, depth, ids))
    # The pass sees the subset alone: it is not the whole clip's, gathered
    assert not torch.allclose(subset, whole.gather(1, ids.unsqueeze(-1).expand(-1, -1, 32)), atol=1e-3)
    normalized = Latents(depth, normalize=True).compute({"encoder": model.encoder}, video, None)
    torch.testing.assert_close(normalized, F.layer_norm(whole, (32,)))


def test_pixel_target_by_hand(model, batch):
    video, ids = batch["pixel_values_videos"], batch["target_ids"][:, :5]
    boxes = patchify(video, 2, 4)
    assert torch.equal(Pixels().compute({"encoder": model.encoder}, video, None), boxes)
    assert torch.equal(Pixels().compute({"encoder": model.encoder}, video, ids)[1], boxes[1, ids[1]])
    normalized = Pixels(normalize=True).compute({"encoder": model.encoder}, video, None)
    colours = normalized.unflatten(-1, (-1, 3))
    torch.testing.assert_close(colours.mean(-2), torch.zeros(2, 32, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(colours.var(-2), torch.ones(2, 32, 3), atol=1e-4, rtol=0)


def test_targets_of_pixels_are_not_normalized_by_the_encoder(model, batch):
    before = Pixels().compute({"encoder": model.encoder}, batch["pixel_values_videos"], None)
    model.encoder.config.pixel_mean, model.encoder.config.pixel_std = [0.6] * 3, [0.2] * 3
    after = Pixels().compute({"encoder": model.encoder}, batch["pixel_values_videos"], None)
    assert torch.equal(before, after)


def test_target_means_are_the_best_constant_predictions(model, batch):
    objectives = (Objective(6, Pixels(), patch_fraction=0.25), Objective(6, Latents(2)))
    stage = Stage(0, 2, objectives)
    video, ids = batch["pixel_values_videos"], batch["target_ids"]
    pixels, latents = model.target_means(**batch, stage=stage)
    boxes = patchify(video, 2, 4)
    torch.testing.assert_close(pixels, torch.stack([clip[i] for clip, i in zip(boxes, ids[:, :8])]).mean(dim=(0, 1)))  # noqa: B905
    torch.testing.assert_close(latents, latents_by_hand(model.encoder, video, 2).mean(dim=(0, 1)))
    for objective, mean in zip(objectives, (pixels, latents), strict=True):
        model.set_head_bias(6, objective.target.head, mean)
        model.decoders["6"].heads[objective.target.head].weight.data.zero_()
    outputs = model(**batch, stage=stage)
    for loss, variance in zip(outputs.losses, outputs.target_variances, strict=True):
        torch.testing.assert_close(loss, variance)


def test_target_means_of_several_masks_are_averaged(model, batch):
    stage = Stage(0, 0, (Objective(6, Pixels(), patch_fraction=0.25),))
    other = {**batch, "target_ids": batch["target_ids"].flip(1)}
    both = {name: batch[name] if name.startswith("pixel") else [batch[name], other[name]] for name in batch}
    (mean,) = model.target_means(**both, stage=stage)
    ((one,), (two,)) = (model.target_means(**each, stage=stage) for each in (batch, other))
    torch.testing.assert_close(mean, (one + two) / 2)


@pytest.mark.parametrize("fraction", [1.0, 0.25])
@pytest.mark.parametrize("num_frozen", [0, 2])
def test_loss_by_hand(model, batch, num_frozen, fraction):
    target = Latents(2) if num_frozen else Pixels()
    stage = Stage(0, num_frozen, (Objective(6, target, weight=0.5, patch_fraction=fraction),))
    outputs = model(**batch, stage=stage)
    video = batch["pixel_values_videos"]
    ids = batch["target_ids"][:, :8] if fraction < 1 else None
    if num_frozen:
        expected = latents_by_hand(model.encoder, video, 2, ids)
    else:
        expected = patchify(video, 2, 4)
        expected = expected if ids is None else torch.stack([c[i] for c, i in zip(expected, ids, strict=True)])
    assert outputs.predictions[0].shape == expected.shape
    loss = ((outputs.predictions[0] - expected) ** 2).mean()
    torch.testing.assert_close(outputs.losses[0], loss)
    torch.testing.assert_close(outputs.loss, 0.5 * loss)
    variance = expected.reshape(-1, expected.shape[-1]).var(dim=0, unbiased=False).mean()
    torch.testing.assert_close(outputs.target_variances[0], variance)


def test_objectives_are_summed(model, batch):
    pixels, latents = Objective(6, Pixels(), weight=2.0), Objective(6, Latents(1), weight=3.0, patch_fraction=0.5)
    both = model(**batch, stage=Stage(0, 1, (pixels, latents)))
    alone = [model(**batch, stage=Stage(0, 1, (objective,))).losses[0] for objective in (pixels, latents)]
    torch.testing.assert_close(both.loss, 2 * alone[0] + 3 * alone[1])


def test_pixels_are_the_default_stage(model, batch):
    assert torch.equal(model(**batch).loss, model(**batch, stage=Stage(0, 0, (Objective(6, Pixels()),))).loss)


def test_decoder_sees_the_context_alone(model, batch):
    before = model(**batch).predictions[0]
    boxes_seen = batch["context_ids"][0].tolist()
    hidden = next(i for i in range(32) if i not in boxes_seen)
    for token, changes in ((hidden, False), (boxes_seen[0], True)):
        video = batch["pixel_values_videos"].clone()
        t, h, w = token // 16, token // 4 % 4, token % 4
        video[0, 2 * t : 2 * t + 2, :, 4 * h : 4 * h + 4, 4 * w : 4 * w + 4] += 1
        after = model(**{**batch, "pixel_values_videos": video}).predictions[0]
        assert torch.equal(after, before) != changes


def test_no_gradient_reaches_the_target(model, batch):
    # Nothing is frozen here, so a target that were not detached would train the first two layers
    stage = latent_stage(2)
    gradients = []
    for hand in (False, True):
        model.zero_grad()
        outputs = model(**batch, stage=stage)
        loss = outputs.loss
        if hand:
            target = latents_by_hand(model.encoder, batch["pixel_values_videos"], 2).detach()
            loss = F.mse_loss(outputs.predictions[0], target)
        loss.backward()
        gradients.append([p.grad.clone() for p in model.encoder.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)
    assert gradients[0][0].abs().sum() > 0
    # The check can fail: through the target itself the gradients would be others
    model.zero_grad()
    prediction = model(**batch, stage=stage).predictions[0]
    F.mse_loss(prediction, latents_by_hand(model.encoder, batch["pixel_values_videos"], 2)).backward()
    attached = [p.grad for p in model.encoder.parameters()]
    assert not torch.allclose(attached[0], gradients[0][0], atol=1e-3, rtol=0.1)


@pytest.mark.parametrize("decoding_tokens", ["rope", "learned"])
@pytest.mark.parametrize("positions", ["rope", "learned", "none"])
@pytest.mark.parametrize("num_decoder_layers", [1, 2])
def test_shared_tokens_change_nothing(tiny_config, batch, decoding_tokens, positions, num_decoder_layers):
    tiny_config.update(
        {
            "decoding_tokens": decoding_tokens,
            "position_embedding": positions,
            "num_decoder_layers": num_decoder_layers,
            "use_final_norm": True,
        }
    )
    model = LayerLockViTForPretraining(tiny_config)
    context = torch.randn(2, 8, 32)
    decode = functools.partial(model.decoders["6"], model.encoder, context, batch["context_ids"], grid_size=(2, 4, 4))
    plain, shared = decode(torch.arange(32).expand(2, -1)), decode(None)
    assert shared.shape == (2, 32, 32)
    torch.testing.assert_close(shared, plain, atol=1e-5, rtol=1e-5)


def test_decoded_order_does_not_matter(model, batch):
    context, ids = torch.randn(2, 8, 32), batch["target_ids"]
    decode = functools.partial(model.decoders["6"], model.encoder, context, batch["context_ids"], grid_size=(2, 4, 4))
    decoded, whole = decode(ids), decode(None)
    torch.testing.assert_close(decoded, whole.gather(1, ids.unsqueeze(-1).expand(-1, -1, 32)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("decoding_tokens", ["rope", "learned"])
def test_saved_activations_fall_with_every_freeze(tiny_config, batch, attention, decoding_tokens):
    tiny_config.decoding_tokens = decoding_tokens
    tiny_config._attn_implementation = attention
    model = LayerLockViTForPretraining(tiny_config)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def saved_numel(stage):
        model.freeze_for(stage)
        saved = {}  # the tensors themselves are kept, so that no storage is handed out twice

        def pack(tensor):
            storage = tensor.untyped_storage().data_ptr()
            if storage not in weights:
                saved[(storage, tensor.data_ptr(), tensor.numel())] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(**batch, stage=stage).loss.backward()
        return sum(tensor.numel() for tensor in saved.values())

    stages = [model.pixel_stage, *(latent_stage(n) for n in range(1, 7))]
    counts = [saved_numel(stage) for stage in stages]
    assert all(after < before for before, after in zip(counts, counts[1:], strict=False)), counts
    # In the last stage only the head learns: what it reads and what the loss subtracts are all that remains
    assert counts[-1] <= 4 * 2 * 32 * 32


@pytest.mark.parametrize("decoding_tokens", ["rope", "learned"])
@pytest.mark.parametrize("use_final_norm", [False, True])
def test_exactly_the_right_parameters_learn(tiny_config, batch, decoding_tokens, use_final_norm):
    tiny_config.update({"decoding_tokens": decoding_tokens, "use_final_norm": use_final_norm})
    model = LayerLockViTForPretraining(tiny_config)
    stages = [model.pixel_stage, *(latent_stage(n) for n in range(1, 7)), Stage(0, 2, model.pixel_stage.objectives)]
    for stage in [*stages, *reversed(stages)]:
        model.freeze_for(stage)
        n, is_latent = stage.num_frozen, stage.objectives[0].target.depth > 0
        expected = {f"decoders.6.heads.{'latents' if is_latent else 'pixels'}.{name}" for name in ("weight", "bias")}
        expected |= {f"encoder.embeddings.projection.{name}" for name in ("weight", "bias") if n == 0}
        if decoding_tokens == "learned" and n <= 4:
            expected.add("decoders.6.tokens")
        if use_final_norm and n < 6:
            expected |= {"encoder.norm.weight", "encoder.norm.bias"}
        for name, _ in model.named_parameters():
            if name.startswith("encoder.layers.") and int(name.split(".")[2]) >= n:
                expected.add(name)
        assert {name for name, p in model.named_parameters() if p.requires_grad} == expected
        model.zero_grad()
        model(**batch, stage=stage).loss.backward()  # and all of them are used, as DDP demands
        assert {name for name, p in model.named_parameters() if p.grad is not None} == expected


def test_reset_head(model):
    before = {name: p.clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        model.decoders["6"].heads["latents"].bias.fill_(3)
    state = torch.get_rng_state()
    model.reset_head(6, "latents", torch.Generator().manual_seed(7))
    first = model.decoders["6"].heads["latents"].weight.clone()
    model.reset_head(6, "latents", torch.Generator().manual_seed(7))
    assert torch.equal(model.decoders["6"].heads["latents"].weight, first)
    model.reset_head(6, "latents", torch.Generator().manual_seed(8))
    assert not torch.equal(model.decoders["6"].heads["latents"].weight, first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.decoders["6"].heads["latents"].bias.any()
    assert first.std().item() == pytest.approx(0.02, rel=0.1)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name != "decoders.6.heads.latents.weight"), name


def test_stages_that_cannot_be(model, batch):
    with pytest.raises(ValueError, match="num_frozen must be at most 6, .* got 7"):
        model(**batch, stage=latent_stage(7))
    with pytest.raises(ValueError, match="num_frozen must be at most 6, .* got 7"):
        model.freeze_for(latent_stage(7))
    with pytest.raises(ValueError, match="read_at must be .* got 5"):
        model(**batch, stage=Stage(0, 1, (Objective(5, Latents(1)),)))
    with pytest.raises(ValueError, match="deeper than the frozen prefix"):
        latent_stage(2, target=3)
    for start, num_frozen, objectives in ((-1, 0, model.pixel_stage.objectives), (0, -1, ()), (0, 0, ())):
        with pytest.raises(ValueError):
            Stage(start, num_frozen, objectives)
    for fraction in (0, -0.5, 1.1):
        with pytest.raises(ValueError, match="patch_fraction"):
            Objective(6, Pixels(), patch_fraction=fraction)
    with pytest.raises(ValueError, match="target_ids"):
        model(batch["pixel_values_videos"], batch["context_ids"], stage=latent_stage(1, patch_fraction=0.5))


@pytest.mark.parametrize("overlap", [0, 1])
def test_settled_blocks_get_the_same_gradients(tiny_config, overlap):
    tiny_config.update({"decoder": "predictor", "predictor_depths": [2, 4, 6], "predictor_hidden_size": 24})
    model = LayerLockViTForPretraining(tiny_config)
    objectives = tuple(Objective(depth, Pixels(normalize=True)) for depth in (2, 4, 6))
    stage = Stage(0, 0, objectives, local=True, overlap=overlap)
    model.freeze_for(stage)
    video, context_ids = torch.rand(2, 4, 3, 16, 16), torch.rand(2, 32).argsort(dim=1)[:, :8]
    found = []
    for settle_blocks in (False, True):
        model.zero_grad()
        for _ in range(2):  # as under accumulation
            (model(video, context_ids, stage=stage, settle_blocks=settle_blocks).loss / 2).backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


def test_weights_start_as_they_are_said_to():
    model = LayerLockViTForPretraining(LayerLockViTConfig.from_preset("4ds-s", num_hidden_layers=5))
    for head in model.decoders["5"].heads.values():
        assert head.weight.std().item() == pytest.approx(0.02, rel=0.02) and not head.bias.any()
    for linear in (model.encoder.embeddings.projection, model.encoder.layers[2].attention.value):  # LeCun
        assert linear.weight.std().item() == pytest.approx(linear.in_features**-0.5, rel=0.02)
    for linear in (model.encoder.layers[2].mlp.up, model.encoder.layers[4].mlp.down):  # Xavier, uniform
        bound = (6 / (linear.in_features + linear.out_features)) ** 0.5
        assert linear.weight.abs().max().item() == pytest.approx(bound, rel=0.01) and not linear.bias.any()
        assert linear.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    config = LayerLockViTConfig.from_preset("vjepa-l", num_hidden_layers=1, num_decoder_layers=1)
    model = LayerLockViTForPretraining(config)
    assert model.encoder.layers[0].mlp.up.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not model.decoders["1"].mask_tokens.any()


@pytest.mark.parametrize("name", ["context_ids", "target_ids"])
@pytest.mark.parametrize("wrong", [32, -1])
def test_tokens_outside_the_grid_are_refused(model, batch, name, wrong):
    batch[name][1, 3] = wrong
    with pytest.raises(ValueError, match=rf"{name} must be between 0 and 31, .* got {wrong}:"):
        model(**batch)


def test_masks_of_another_grid_are_refused(model, batch):
    masks = (batch["pixel_values_videos"], batch["context_ids"], batch["target_ids"])
    model.check_masks(*masks, grid_size=(2, 4, 4))
    # All of its ids exist here, too: without the grid nothing would be noticed
    with pytest.raises(ValueError, match=r"must be that of the clips, \(2, 4, 4\).*\(2, 2, 2\)"):
        model.check_masks(*masks, grid_size=(2, 2, 2))
