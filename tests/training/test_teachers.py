"""Targets of a teacher: V-JEPA's loss by hand, teachers of other shapes, models of Transformers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from toy_methods import TINY, make_given_teacher, make_vjepa
from vjepa_by_hand import vjepa_by_hand

from layerlock_hf.models import (
    Latents,
    LayerLockViTConfig,
    LayerLockViTModel,
    Objective,
    Pixels,
    Stage,
)
from layerlock_hf.training import (
    LayerLockTrainer,
    LayerLockTrainingArguments,
    load_teacher,
    mae,
    teacher_latents,
)
from layerlock_hf.training.schedules import linear
from layerlock_hf.training.teachers import EMATeacher, FixedTeacher, NoTeacher
from layerlock_hf.utils.weight_hash import hash_weights


@pytest.fixture
def model():
    model = make_vjepa()
    torch.nn.init.normal_(model.decoders["6"].mask_tokens)  # one token per type of mask, to tell them apart
    return model


@pytest.mark.parametrize("depth", [2, 6])
def test_loss_of_vjepa_by_hand(model, batch, depth):
    teacher = EMATeacher(make_vjepa().encoder).network  # other weights than the encoder's
    (stage,) = teacher_latents(6, depth)
    outputs = model(**batch, stage=stage, teacher=teacher)
    expected, by_mask = vjepa_by_hand(model, teacher, batch, depth)
    torch.testing.assert_close(outputs.loss, expected)
    torch.testing.assert_close(outputs.losses[0], expected)
    assert [tuple(p.shape) for p in outputs.predictions] == [(2, 10, 32), (2, 24, 32)]
    # Each mask with its own token, not the other's
    swapped = {k: v if k == "pixel_values_videos" else v[::-1] for k, v in batch.items()}
    assert (model(**swapped, stage=stage, teacher=teacher).loss - expected).abs() > 1e-4
    alone = {k: v if k == "pixel_values_videos" else v[0] for k, v in batch.items()}
    torch.testing.assert_close(model(**alone, stage=stage, teacher=teacher).loss, by_mask[0])


def test_gradient_of_vjepa_reaches_the_student_and_both_tokens(model, batch):
    teacher = make_vjepa().encoder.train()  # even a teacher that could learn does not
    (stage,) = teacher_latents(6, 6)
    model.freeze_for(stage)
    model(**batch, stage=stage, teacher=teacher).loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert (model.decoders["6"].mask_tokens.grad.flatten(1).norm(dim=1) > 0).all()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    vjepa_by_hand(model, teacher, batch)[0].backward()
    torch.testing.assert_close(found, {n: p.grad for n, p in model.named_parameters() if p.grad is not None})


def test_the_teacher_runs_once_for_all_masks(model, batch):
    teacher, calls = EMATeacher(model.encoder).network, []
    teacher.layers[0].register_forward_hook(lambda module, args, output: calls.append(output.shape[1]))
    (stage,) = teacher_latents(6, 6)
    model(**batch, stage=stage, teacher=teacher)
    assert calls == [32]


def test_mask_types_and_tokens_must_agree(model, batch):
    (stage,) = teacher_latents(6, 6)
    three = {k: v if k == "pixel_values_videos" else [*v, v[0]] for k, v in batch.items()}
    with pytest.raises(ValueError, match="mask type 2 has no mask token"):
        model(**three, stage=stage, teacher=EMATeacher(model.encoder).network)
    with pytest.raises(ValueError, match="target_ids must hold 2 tensors, one per type of mask"):
        model(batch["pixel_values_videos"], batch["context_ids"], batch["target_ids"][:1], stage, model.encoder)
    with pytest.raises(ValueError, match="teacher must be given, as the stage that starts at step 0"):
        model(**batch, stage=stage)


# ---- the moving average


def test_average_by_hand():
    encoder = make_vjepa().encoder
    teacher = EMATeacher(make_vjepa().encoder)
    network = teacher.network
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    encoder.freeze(2)
    before = {n: p.clone() for n, p in network.named_parameters()}
    teacher.update(encoder, 0.75)
    learning = dict(encoder.named_parameters())
    for name, parameter in network.named_parameters():
        if learning[name].requires_grad:
            torch.testing.assert_close(parameter, 0.75 * before[name] + 0.25 * learning[name])
        else:
            assert torch.equal(parameter, before[name])
    after = copy.deepcopy(network)
    teacher.update(encoder, 1.0)
    encoder.freeze(6)
    teacher.update(encoder, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(after.parameters(), network.parameters(), strict=True))


def test_distance():
    encoder = make_vjepa().encoder
    teacher = EMATeacher(encoder)
    assert teacher.diagnostics(encoder) == {"teacher_distance": 0}
    with torch.no_grad():
        for parameter in teacher.network.parameters():
            parameter.mul_(1.5)
    assert teacher.diagnostics(encoder)["teacher_distance"].item() == pytest.approx(0.5, rel=1e-4)


def test_an_average_is_saved_and_loaded(tmp_path):
    teacher, again = EMATeacher(make_vjepa().encoder), EMATeacher(make_vjepa().encoder)
    teacher.save(str(tmp_path), is_main=False)
    assert not list(tmp_path.iterdir())
    teacher.save(str(tmp_path), is_main=True)
    assert (tmp_path / "teacher" / "model.safetensors").is_file()
    again.load(str(tmp_path))
    expected, found = teacher.network.state_dict(), again.network.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert teacher.weight_hash is None and teacher.sizes.hidden_size == 32


@pytest.mark.parametrize("make", [NoTeacher, lambda: FixedTeacher(make_given_teacher().train())])
def test_teachers_that_do_not_move(make, tmp_path):
    teacher, encoder = make(), make_vjepa().encoder
    if teacher.network is not None:
        assert not any(module.training for module in teacher.network.modules())
        assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
        assert teacher.weight_hash == hash_weights(make_given_teacher())
    else:
        assert teacher.weight_hash is None and teacher.sizes is None
    teacher.to(torch.device("cpu"))
    teacher.update(encoder, 0.5)
    teacher.save(str(tmp_path), is_main=True)
    teacher.load(str(tmp_path))
    assert not list(tmp_path.iterdir()) and teacher.diagnostics(encoder) == {}
    if teacher.network is not None:
        assert hash_weights(teacher.network) == teacher.weight_hash


def test_momentum_of_vjepa_v1():
    """From 0.998 to 1 over 1.25 times the 90,000 steps, and hence cut off at 0.9996."""
    momenta = [linear(0.998, 1.0, step / (90_000 * 1.25)) for step in (0, 45_000, 90_000, 112_500, 200_000)]
    assert momenta == pytest.approx([0.998, 0.9988, 0.9996, 1.0, 1.0], abs=1e-12)


def test_momentum_of_a_run(tmp_path, monkeypatch):
    from toy_methods import make_trainer

    found = []
    monkeypatch.setattr(EMATeacher, "update", lambda teacher, encoder, momentum: found.append(momentum))
    settings = {"schedule_stretch": 1.25, "teacher_momentum": 0.998, "gradient_accumulation_steps": 2}
    make_trainer("vjepa", tmp_path, per_device_train_batch_size=2, **settings).train()
    assert found == pytest.approx([0.998 + 0.002 * step / 12.5 for step in range(10)])  # once per optimizer step


# ---- given teachers


def test_a_teacher_of_another_width(batch):
    model, teacher = make_vjepa(teacher_hidden_size=48), make_given_teacher()
    assert model.decoders["6"].heads["latents"].out_features == 48
    (stage,) = teacher_latents(6, 3)
    outputs = model(**batch, stage=stage, teacher=teacher)
    torch.testing.assert_close(outputs.loss, vjepa_by_hand(model, teacher, batch, 3)[0])
    with pytest.raises(ValueError, match="set teacher_hidden_size"):
        make_vjepa()(**batch, stage=stage, teacher=teacher)


def test_all_targets_of_a_teacher_of_another_width(batch):
    from layerlock_hf.training import FreezeSchedule, locked

    model, teacher = make_vjepa(teacher_hidden_size=48, latent_head_depths=[1, 2]), make_given_teacher()
    stages = locked(teacher_latents(6, 3), FreezeSchedule(1, 1, num_freezes=2), keep_targets=True)
    outputs = model(**batch, stage=stages[-1], teacher=teacher)
    assert {p.shape[-1] for p in outputs.predictions} == {48}


def test_a_grid_of_as_many_other_tokens_is_refused(tmp_path):
    """Half the rows and columns, four times the steps of time: as many tokens, of other boxes."""
    sizes = {**TINY, "num_frames": 8, "hidden_size": 48, "num_attention_heads": 3}
    config = LayerLockViTConfig.from_preset("tiny", **{**sizes, "patch_size": 8, "tubelet_size": 1})
    from layerlock_hf.models import LayerLockViTModel

    student = make_vjepa(teacher_hidden_size=48, num_frames=8, tubelet_size=4)
    with pytest.raises(ValueError, match="teacher must have the tokens of the model .*patch_size=8, tubelet_size=1"):
        LayerLockTrainer(
            student,
            LayerLockTrainingArguments(str(tmp_path), max_steps=1, use_cpu=True, report_to=[], teacher_momentum=1),
            teacher_latents(6, 6),
            teacher=LayerLockViTModel(config).eval(),
        )


def test_load_teacher_refuses(tmp_path):
    for path in (str(tmp_path / "nowhere"), str(tmp_path)):
        with pytest.raises(ValueError, match="teacher: cannot load"):
            load_teacher(path)


def test_load_teacher_of_our_own(tmp_path):
    model = make_vjepa()
    model.save_pretrained(tmp_path)
    teacher, num_layers, width = load_teacher(str(tmp_path))
    assert (num_layers, width) == (6, 32) and not teacher.training
    video = torch.rand(1, 4, 3, 16, 16)
    assert torch.equal(teacher.tap(video, [6])[0], model.encoder.tap(video, [6])[0])
    assert not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize(
    "stages, given, settings, message",
    [
        (
            teacher_latents(6, 6),
            False,
            {"teacher_momentum": 1},
            "teacher_momentum must be below 1 for an EMA teacher, got 1",
        ),
        (teacher_latents(6, 3), True, {}, "teacher_momentum must be 1 for a given teacher"),
        (mae(6), True, {"teacher_momentum": 1}, "teacher is set but no stage predicts its latents"),
        (teacher_latents(6, 4), True, {"teacher_momentum": 1}, "target_layer must be at most 3, .* got 4"),
    ],
)
def test_contradictions_about_the_teacher(tmp_path, stages, given, settings, message):
    args = LayerLockTrainingArguments(str(tmp_path), max_steps=1, use_cpu=True, report_to=[], **settings)
    teacher = make_given_teacher() if given else None
    with pytest.raises(ValueError, match=message):
        LayerLockTrainer(make_vjepa(teacher_hidden_size=48 if given else None), args, stages, teacher=teacher)


def test_a_teacher_beside_other_targets(model, batch):
    """Pixels and a teacher's latents at once: each its own loss, from one pass of the decoder per mask."""
    teacher = EMATeacher(make_vjepa().encoder).network
    latents = teacher_latents(6, 6)[0].objectives[0]
    both = Stage(0, 0, (Objective(6, Pixels(True), weight=0.5), latents))
    calls = []
    model.decoders["6"].norm.register_forward_hook(lambda *_: calls.append(1))
    outputs = model(**batch, stage=both, teacher=teacher)
    assert len(calls) == 2
    alone = [model(**batch, stage=Stage(0, 0, (o,)), teacher=teacher).losses[0] for o in both.objectives]
    torch.testing.assert_close(outputs.loss, 0.5 * alone[0] + alone[1])
    assert both.labels == ["pixels", "teacher_layer_6"]
    assert F.l1_loss(torch.zeros(1), torch.ones(1)) == 1 and isinstance(latents.target, Latents)


def test_a_teacher_that_lacks_arrays_is_refused(tmp_path):
    model = LayerLockViTModel(LayerLockViTConfig.from_preset("tiny", **TINY))
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in state.items() if ".3." not in k}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="teacher: .* lacks 16 arrays of the model, such as .*layers.3"):
        load_teacher(str(tmp_path))
