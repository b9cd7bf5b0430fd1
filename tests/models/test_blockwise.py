"""Local stages: which block learns from which loss, and backward passes block by block."""

import copy

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from layerlock_hf.models import Latents, LayerLockViTConfig, LayerLockViTForPretraining, Objective, Pixels, Stage


DEPTHS = (2, 4, 6)


PIXELS = (Pixels(normalize=True),) * 3


def local_stage(overlap=0, num_frozen=0, targets=PIXELS, **kwargs):
    objectives = tuple(Objective(depth, target) for depth, target in zip(DEPTHS, targets, strict=True))
    return Stage(0, num_frozen, objectives, local=True, overlap=overlap, **kwargs)


@pytest.fixture
def config(tiny_sizes):
    return LayerLockViTConfig.from_preset(
        "tiny",
        **tiny_sizes,
        decoder="predictor",
        predictor_depths=list(DEPTHS),
        predictor_hidden_size=24,
        predictor_num_attention_heads=2,
        num_mask_tokens=2,
        use_final_norm=True,
        position_embedding="sincos",
    )


@pytest.fixture
def model(config):
    return LayerLockViTForPretraining(config)


def one_mask():
    ids = torch.rand(2, 32).argsort(dim=1)
    return {
        "pixel_values_videos": torch.rand(2, 4, 3, 16, 16),
        "context_ids": ids[:, :8],
        "target_ids": ids[:, 8:],
    }


def two_masks():
    ids = [torch.rand(2, 32).argsort(dim=1) for _ in range(2)]
    return {
        "pixel_values_videos": torch.rand(2, 4, 3, 16, 16),
        "context_ids": [ids[0][:, :8], ids[1][:, :12]],
        "target_ids": [ids[0][:, 8:], ids[1][:, 20:]],
    }


MASKS = {"one mask": one_mask, "two masks": two_masks}


def block_of(name):
    """The block, from 0, that a parameter belongs to without overlap."""
    parts = name.split(".")
    if parts[0] == "decoders":
        return DEPTHS.index(int(parts[1]))
    if parts[1] == "layers":
        return int(parts[2]) // 2
    return {"embeddings": 0, "norm": 2}[parts[1]]


def learners(model, batch, stage, index):
    """Names of the parameters that the loss of one objective reaches with a gradient that is not zero."""
    weights = [1.0 if n == index else 0.0 for n in range(len(stage.objectives))]
    objectives = tuple(
        Objective(o.read_at, o.target, weight=w) for o, w in zip(stage.objectives, weights, strict=True)
    )
    model.zero_grad()
    stage = Stage(0, stage.num_frozen, objectives, local=True, overlap=stage.overlap)
    model(**batch, stage=stage).loss.backward()
    return {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("index", range(3))
def test_a_block_learns_from_its_own_loss_alone(model, masks, index):
    torch.nn.init.normal_(model.decoders[str(DEPTHS[index])].mask_tokens)
    stage = local_stage()
    model.freeze_for(stage)
    found = learners(model, MASKS[masks](), stage, index)
    expected = {n for n, p in model.named_parameters() if p.requires_grad and block_of(n) == index}
    # Adding the same to all keys of a query changes no softmax: that gradient is rounding, or nothing at all
    keys = {name for name in expected if name.endswith("attention.key.bias")}
    assert found - keys == expected - keys


@pytest.mark.parametrize("overlap", [1, 2, 3])
def test_overlapping_layers_alone_learn_from_two_losses(model, overlap):
    stage = local_stage(overlap)
    model.freeze_for(stage)
    batch = one_mask()
    reached = [learners(model, batch, stage, index) for index in range(3)]
    layers = [{int(n.split(".")[2]) for n in names if n.startswith("encoder.layers.")} for names in reached]
    expected = [set(range(max(0, (b - overlap if b else 0)), b + 2)) for b in (0, 2, 4)]
    assert layers == expected
    assert any(n.startswith("encoder.embeddings") for n in reached[0])
    assert not any(n.startswith("encoder.embeddings") for n in reached[1] | reached[2])


def test_without_the_cut_the_loss_reaches_every_block(model):
    stage = local_stage()
    model.freeze_for(stage)
    objectives = (*(Objective(d, Pixels(True), weight=0.0) for d in DEPTHS[:2]), stage.objectives[2])
    model(**one_mask(), stage=Stage(0, 0, objectives)).loss.backward()
    first = model.encoder.layers[0].mlp.up.weight
    assert first.grad.abs().max() > 0


def gradients(model, batches, stage, settle_blocks, scale=1.0, dtype=None):
    model.zero_grad()
    results = []
    for batch in batches:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            outputs = model(**batch, stage=stage, settle_blocks=settle_blocks)
        (outputs.loss * scale).backward()
        results.append((outputs.loss.detach(), *outputs.losses))
    return results, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


ROUNDING = {"atol": 1e-6, "rtol": 1e-5}


def assert_same(model, batches, stage, tolerance=ROUNDING, **kwargs):
    plain, plain_gradients = gradients(model, batches, stage, False, **kwargs)
    settled, settled_gradients = gradients(model, batches, stage, True, **kwargs)
    assert plain == settled
    assert set(plain_gradients) == set(settled_gradients)
    torch.testing.assert_close(settled_gradients, plain_gradients, **tolerance)
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert set(settled_gradients) == learning


@pytest.mark.parametrize("overlap", [0, 1, 2, 3])
@pytest.mark.parametrize("masks", MASKS)
def test_settled_gradients_are_those_of_plain_backward(model, masks, overlap):
    stage = local_stage(overlap)
    model.freeze_for(stage)
    # Where a layer learns twice, the sums are rounded in another order
    learns_once = masks == "one mask" and not overlap
    assert_same(model, [MASKS[masks]()], stage, {"atol": 0, "rtol": 0} if learns_once else ROUNDING)


@pytest.mark.parametrize("num_frozen", [1, 2, 3, 6])
def test_settled_gradients_above_a_frozen_prefix(model, num_frozen):
    targets = (Latents(1), Latents(num_frozen), Pixels())
    stage = local_stage(num_frozen=num_frozen, targets=targets)
    model.freeze_for(stage)
    assert_same(model, [one_mask()], stage, {"atol": 0, "rtol": 0})


def test_settled_gradients_accumulate(model):
    stage = local_stage()
    model.freeze_for(stage)
    assert_same(model, [one_mask(), two_masks()], stage, scale=0.5)


@pytest.mark.parametrize("overlap", [0, 1])
def test_settled_gradients_with_activation_checkpointing(model, overlap):
    stage = local_stage(overlap)
    model.freeze_for(stage)
    batch = one_mask()
    _, plain = gradients(model, [batch], stage, False)
    model.train()
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()  # the name of Transformers' older versions warns in later ones
    assert_same(model, [batch], stage)
    _, checkpointed = gradients(model, [batch], stage, True)
    torch.testing.assert_close(checkpointed, plain)


@pytest.mark.parametrize("masks", MASKS)
def test_settled_gradients_under_autocast(model, masks):
    # A target of the encoder itself runs its layers under no_grad within the same autocast
    stage = local_stage(num_frozen=1, targets=(Latents(1), Pixels(True), Pixels()))
    model.freeze_for(stage)
    batch = MASKS[masks]()
    # Two masks share the cast weights: a plain backward sums their gradients in bf16, a settled one in fp32
    tolerance = ROUNDING if masks == "one mask" else {"atol": 1e-2, "rtol": 2e-2}
    assert_same(model, [batch], stage, tolerance, dtype=torch.bfloat16)
    _, half = gradients(model, [batch], stage, True, dtype=torch.bfloat16)
    _, whole = gradients(model, [batch], stage, True)
    for name, gradient in whole.items():
        if not name.endswith("key.bias"):
            assert torch.nn.functional.cosine_similarity(half[name].flatten(), gradient.flatten(), dim=0) > 0.98, name


def test_settled_gradients_of_a_model_that_nobody_has_frozen(model):
    """Heads that the stage does not use still require gradients then."""
    batch, stage = one_mask(), local_stage()
    _, plain = gradients(model, [batch], stage, False)
    _, settled = gradients(model, [batch], stage, True)
    torch.testing.assert_close(settled, plain, atol=0, rtol=0)


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("overlap", [0, 1])
def test_settled_gradients_through_ddp(model, process_group, overlap):
    stage = local_stage(overlap)
    model.freeze_for(stage)
    batch = two_masks()
    _, plain = gradients(model, [batch], stage, False)
    wrapped = DistributedDataParallel(copy.deepcopy(model))
    for _ in range(2):  # the second step finds the buckets rebuilt, and every parameter used
        wrapped.zero_grad()
        wrapped(**batch, stage=stage, settle_blocks=True).loss.backward()
    found = {n.removeprefix("module."): p.grad for n, p in wrapped.named_parameters() if p.grad is not None}
    torch.testing.assert_close(found, plain, atol=1e-6, rtol=1e-5)


def test_nothing_settles_without_gradients(model):
    stage = local_stage()
    with torch.no_grad():
        outputs = model(**one_mask(), stage=stage, settle_blocks=True)
    assert not outputs.loss.requires_grad


class Saved:
    """Counts the values that autograd holds for its backward passes, weights excepted."""

    def __init__(self, model):
        self.weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.held, self.peak = 0, 0

    def __call__(self):
        return torch.autograd.graph.saved_tensors_hooks(self.pack, lambda packed: packed.tensor)

    def pack(self, tensor):
        size = 0 if tensor.untyped_storage().data_ptr() in self.weights else tensor.numel()
        self.held += size
        self.peak = max(self.peak, self.held)
        return Packed(tensor, size, self)


class Packed:
    def __init__(self, tensor, size, saved):
        self.tensor, self.size, self.saved = tensor, size, saved

    def __del__(self):
        self.saved.held -= self.size


def peak_saved(model, batch, stage, settle_blocks):
    saved = Saved(model)
    with saved():
        model(**batch, stage=stage, settle_blocks=settle_blocks).loss.backward()
    assert saved.held == 0
    return saved.peak


def test_activations_of_one_block_exist_at_a_time(model):
    stage, batch = local_stage(), one_mask()
    model.freeze_for(stage)
    whole, settled = (peak_saved(model, batch, stage, settles) for settles in (False, True))
    blocks = []
    for index, depth in enumerate(DEPTHS):
        alone = Stage(0, 2 * index, (Objective(depth, Pixels(True)),))
        model.freeze_for(alone)
        blocks.append(peak_saved(model, batch, alone, False))
    assert settled <= 1.01 * max(blocks), (settled, blocks)
    assert whole >= 0.97 * sum(blocks), (whole, blocks)
    assert settled < 0.4 * whole
