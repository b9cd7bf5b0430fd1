"""What freezing saves, to the byte, and that nothing else comes of it."""

import functools

import pytest
import torch
from test_trainer import CHECKPOINTING
from torch import nn
from toy_methods import make_trainer, step_logs, weights
from transformers import AutoModel, AutoModelForPreTraining, TrainerCallback

from layerlock_hf.models import LayerLockViTConfig, LayerLockViTModel
from layerlock_hf.training import LayerLockTrainer, LayerLockTrainingArguments, stage_at


def linears_of(trainer, num_frozen):
    """Names of the parameters of linear layers in the frozen prefix."""
    return {
        f"encoder.layers.{depth}.{name}.{kind}"
        for depth, layer in enumerate(trainer.model.encoder.layers[:num_frozen])
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)
        for kind in ("weight", "bias")
    }


def num_bytes(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


# ---- frozen layers in bfloat16


@functools.cache
def trained(name, frozen_dtype, checkpointing, folder):
    trainer = make_trainer(name, folder, bf16=True, frozen_dtype=frozen_dtype, **{CHECKPOINTING: checkpointing})
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize(
    "name, checkpointing",
    [
        ("layerlock", False),
        ("layerlock", True),
        pytest.param("freezing_only", False, marks=pytest.mark.slow),
        pytest.param("vjepa_locked", False, marks=pytest.mark.slow),
        pytest.param("blockwise_in_sequence", False, marks=pytest.mark.slow),
    ],
)
def test_frozen_dtype_changes_no_result(folder, name, checkpointing):
    plain, halved = (trained(name, dtype, checkpointing, folder) for dtype in (None, "bfloat16"))
    for row, other in zip(step_logs(plain), step_logs(halved), strict=True):
        assert (row["loss"], row["grad_norm"]) == (other["loss"], other["grad_norm"])
    expected, found = weights(plain.model), weights(halved.model)
    frozen = linears_of(halved, halved.stage.num_frozen)
    assert frozen == {name for name, tensor in found.items() if tensor.dtype == torch.bfloat16}
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor.to(torch.bfloat16) if name in frozen else tensor), name
    saved = num_bytes(expected.values()) - num_bytes(found.values())
    assert saved == 2 * sum(expected[name].numel() for name in frozen)
    if plain.teacher.network is not None:
        teachers = (plain.teacher.network.parameters(), halved.teacher.network.parameters())
        assert all(torch.equal(a, b) for a, b in zip(*teachers, strict=True))


@pytest.mark.parametrize(
    "name, steps", [pytest.param("layerlock", (2, 3, 4, 6, 9), marks=pytest.mark.slow), ("vjepa_locked", (4, 7))]
)
def test_frozen_dtype_resumes_bit_identically(tmp_path, name, steps):
    settings = {"bf16": True, "frozen_dtype": "bfloat16", "diagnostics_steps": 0}
    whole = make_trainer(name, tmp_path / "whole", save_strategy="steps", save_steps=1, **settings)
    whole.train()
    expected = weights(whole.model)
    for step in steps:
        resumed = make_trainer(name, tmp_path / "resumed", **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        found = weights(resumed.model)
        assert [n for n in expected if not torch.equal(found[n], expected[n])] == [], step
        assert {n: t.dtype for n, t in found.items()} == {n: t.dtype for n, t in expected.items()}
        assert [row["loss"] for row in step_logs(resumed)] == [row["loss"] for row in step_logs(whole)]


def test_frozen_dtype_is_not_seen_by_who_loads(folder):
    trainer = trained("layerlock", "bfloat16", False, folder)
    assert trainer.model.dtype == torch.float32
    trainer.save_model(folder / "saved")
    for kind in (AutoModel, AutoModelForPreTraining):
        loaded = kind.from_pretrained(folder / "saved")
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
        assert loaded.config.dtype == torch.float32
    ours = weights(trainer.model)
    assert all(torch.equal(tensor, ours[name].float()) for name, tensor in weights(loaded).items())


def test_training_once_more_starts_in_float32(tmp_path):
    trainer = make_trainer("layerlock", tmp_path, bf16=True, frozen_dtype="bfloat16")
    trainer.train()
    trainer.state.global_step = 0
    trainer.create_optimizer()
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"frozen_dtype": "bfloat16"}, "frozen_dtype=bfloat16 needs bf16=True"),
        ({"frozen_dtype": "float16", "bf16": True}, "frozen_dtype must be bfloat16"),
        ({"gradient_checkpointing_kwargs": {"use_reentrant": True}}, "use_reentrant must be False"),
    ],
)
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_kwargs` is deprecated")
def test_user_errors(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        LayerLockTrainingArguments(output_dir=str(tmp_path), max_steps=1, use_cpu=True, **settings)


def test_frozen_dtype_is_refused_under_fsdp(tmp_path, monkeypatch):
    create = LayerLockTrainer.create_accelerator_and_postprocess

    def with_fsdp(trainer):
        create(trainer)
        trainer.is_fsdp_enabled = True

    monkeypatch.setattr(LayerLockTrainer, "create_accelerator_and_postprocess", with_fsdp)
    with pytest.raises(ValueError, match="frozen_dtype must be left out under FSDP, which shards"):
        make_trainer("layerlock", tmp_path, bf16=True, frozen_dtype="bfloat16")


# ---- activations, gradients, moments


def saved_activations(num_frozen):
    """Bytes that autograd keeps of a forward pass of 392 tokens through 12 layers of width 192, weights aside."""
    config = LayerLockViTConfig.from_preset(
        "tiny",
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
        image_size=112,
        num_frames=16,
        patch_size=16,
    )
    model = LayerLockViTModel(config)
    model.freeze(num_frozen)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(torch.rand(1, 16, 3, 112, 112)).last_hidden_state
    assert output.shape[1] == 392
    return sum(kept.values())


def test_frozen_layers_keep_no_activations():
    whole = saved_activations(0)
    assert saved_activations(6) <= 0.55 * whole
    assert saved_activations(9) <= 0.30 * whole


class StrictCallback(TrainerCallback):
    """Records what each optimizer step reads. Stale gradients are zeroed, never dropped, by whoever zeroes them."""

    def __init__(self, trainer):
        self.trainer, self.norms, self.before = trainer, [], None
        model = trainer.model
        model.zero_grad = lambda set_to_none=True: nn.Module.zero_grad(model, set_to_none=False)

    def on_step_begin(self, args, state, control, **kwargs):
        self.before = weights(self.trainer.model)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        parameters = dict(self.trainer.model.named_parameters())
        learning = {name for name, parameter in parameters.items() if parameter.requires_grad}
        # None without, though nobody has dropped any
        assert learning == {name for name, parameter in parameters.items() if parameter.grad is not None}
        gradients = [parameters[name].grad for name in learning]
        self.norms.append(torch.stack([gradient.norm() for gradient in gradients]).norm().item())

    def on_step_end(self, args, state, control, **kwargs):
        for name, parameter in self.trainer.model.named_parameters():
            assert parameter.requires_grad or torch.equal(parameter, self.before[name]), name
        learning = [p for group in self.trainer.optimizer.param_groups for p in group["params"]]
        states = self.trainer.optimizer.state.values()
        counters = [value for entry in states for key, value in entry.items() if key == "step"]
        total = num_bytes(value for entry in states for value in entry.values())
        assert total - num_bytes(counters) == 8 * sum(p.numel() for p in learning)
        assert len(counters) == len(learning)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_frozen_means_frozen(tmp_path, checkpointing):
    trainer = make_trainer(
        "layerlock", tmp_path, weight_decay_end=None, max_grad_norm=1e9, **{CHECKPOINTING: checkpointing}
    )
    assert (trainer.args.weight_decay, trainer.args.learning_rate) == (0.5, 1e-2)
    callback = StrictCallback(trainer)
    trainer.add_callback(callback)
    trainer.train()
    assert callback.norms == pytest.approx([row["grad_norm"] for row in step_logs(trainer)], rel=1e-5)
    assert stage_at(trainer.stages, 9).num_frozen == 6
