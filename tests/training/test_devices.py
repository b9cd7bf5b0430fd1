"""What must hold wherever a run trains: the same tests on the CPU and, marked `gpu`, on CUDA."""

from pathlib import Path

import pytest
import torch
from toy_methods import Clips, make_trainer, step_logs, weights
from transformers import TrainerCallback

from layerlock_hf import LayerLockViTForPretraining


class FrozenCallback(TrainerCallback):
    """The frozen encoder after every step, and that the optimizer holds all that learns and nothing else."""

    def __init__(self, trainer):
        self.trainer, self.steps = trainer, []

    def on_step_end(self, args, state, control, **kwargs):
        learning = {parameter for parameter in self.trainer.model.parameters() if parameter.requires_grad}
        optimizer = getattr(self.trainer.optimizer, "optimizer", self.trainer.optimizer)
        assert {parameter for group in optimizer.param_groups for parameter in group["params"]} == learning
        assert set(optimizer.state) <= learning
        moments = [state["exp_avg"] for state in optimizer.state.values()]
        assert {moment.device.type for moment in moments} == {args.device.type}
        encoder = self.trainer.model.encoder
        frozen = {name for name, parameter in encoder.named_parameters() if not parameter.requires_grad}
        self.steps.append({name: tensor for name, tensor in weights(encoder).items() if name in frozen})


def train(name, device, folder, checkpoint=None, **settings):
    trainer = make_trainer(name, folder, use_cpu=device == "cpu", **settings)
    assert trainer.args.device.type == device
    callback = FrozenCallback(trainer)
    trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer, callback.steps


def test_frozen_parameters_keep_every_bit(device, tmp_path):
    trainer, steps = train("layerlock", device, tmp_path)
    final = weights(trainer.model.encoder)
    for before, after in zip(steps, [*steps[1:], final], strict=True):
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    sizes = [len(frozen) for frozen in steps]
    assert sizes == sorted(sizes) and len(set(sizes)) == 4, "two more layers three times"
    losses = [row["loss"] for row in step_logs(trainer)]
    assert torch.tensor(losses).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", ["layerlock", "vjepa_locked"])
def test_resume_is_bit_identical(device, tmp_path, name, bf16):
    """From checkpoints at a switch and within a stage."""
    settings = {"save_strategy": "steps", "save_steps": 1, "bf16": bf16}
    whole, _ = train(name, device, tmp_path / "whole", **settings)
    expected, rows = weights(whole.model), step_logs(whole)
    for step in (5, 6):
        checkpoint = str(Path(tmp_path) / "whole" / f"checkpoint-{step}")
        resumed, _ = train(name, device, tmp_path / f"from-{step}", checkpoint, bf16=bf16)
        found = weights(resumed.model)
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items()), step
        assert [row["loss"] for row in step_logs(resumed)] == [row["loss"] for row in rows]


def test_a_step_in_bf16_agrees_with_fp32(device, tiny_config):
    """To the precision of bf16, 2^-8: the loss to 1%, the direction of each gradient to 1%."""
    clips, context_ids, target_ids = torch.rand(8, 4, 3, 16, 16), *torch.rand(2, 8, 32).argsort(dim=2)
    batch = [tensor.to(device) for tensor in (clips, context_ids[:, :8], target_ids)]
    model = LayerLockViTForPretraining(tiny_config).to(device)
    model.freeze_for(model.pixel_stage)
    found = {}
    for bf16 in (False, True):
        model.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = model(*batch, stage=model.pixel_stage).loss
        loss.backward()
        assert loss.dtype == torch.float32
        gradients = {name: p.grad.flatten() for name, p in model.named_parameters() if p.grad is not None}
        found[bf16] = loss.item(), gradients
    (expected, gradients), (loss, rounded) = found[False], found[True]
    assert loss == pytest.approx(expected, rel=0.01) and loss != expected
    assert gradients.keys() == rounded.keys()
    for name, gradient in gradients.items():
        if name.endswith("key.bias"):
            continue  # softmax does not see it: rounding is all there is of its gradient
        assert torch.cosine_similarity(gradient, rounded[name], dim=0) > 0.99, name


def test_clips_travel_as_bytes(device, tmp_path):
    trainer = make_trainer("layerlock", tmp_path, use_cpu=device == "cpu")
    batch = next(iter(trainer.get_train_dataloader()))
    assert (batch["pixel_values_videos"].dtype, batch["pixel_values_videos"].device.type) == (torch.uint8, device)
    inputs = trainer._prepare_inputs(batch)
    assert {tensor.device.type for tensor in inputs.values() if torch.is_tensor(tensor)} == {device}
    clips = Clips()
    expected = torch.stack([clips[index]["pixel_values_videos"] for index in range(4)]).float() / 255
    torch.testing.assert_close(inputs["pixel_values_videos"].cpu(), expected)  # GPUs divide by another rounding
