"""A method is a function that returns stages, a target is a value: what it takes to add one of each."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from toy_methods import METHODS as TOYS
from toy_methods import TINY, VJEPA, Method, make_trainer, step_logs

from layerlock_hf.models import LayerLockViTConfig, LayerLockViTForPretraining, Objective, Pixels, Stage, patchify
from layerlock_hf.models.objectives import Target
from layerlock_hf.models.positions_layerlock import take_tokens
from layerlock_hf.training import METHODS, FreezeSchedule, Latents, StageArguments, locked, mae, step_flops


# ---- a method


def _pixels_then_colours(config, settings, teacher_depth):
    given = {"steps": 3} | settings.given(steps="steps_per_block")
    depth = config.decoder_depths[-1]
    return [*mae(depth), Stage(given["steps"], 0, (Objective(depth, MeanColour()),))]


@pytest.fixture
def new_method(monkeypatch):
    monkeypatch.setitem(METHODS, "pixels_then_colours", _pixels_then_colours)


# ---- a target


@dataclass(frozen=True)
class MeanColour:
    """The mean colour of every box, predicted by a head of three numbers and judged by a smooth loss."""

    head: ClassVar[str] = "colour"
    label: ClassVar[str] = "colour"
    depth: ClassVar[int] = 0
    of: ClassVar[str] = "encoder"

    def compute(self, networks, video, ids):
        boxes = take_tokens(networks["encoder"].patchify(video), ids)
        return boxes.unflatten(-1, (-1, 3)).mean(dim=-2)

    def error(self, prediction, target):
        return F.smooth_l1_loss(prediction, target)

    def at_depth(self, depth):
        return Latents(depth)


@dataclass(frozen=True)
class Gradients(Target):
    """How steep a box is along rows and columns, at 16 places: predicted by the head of the latents."""

    loss: str = "l1"
    head: ClassVar[str] = "latents"
    label: ClassVar[str] = "gradients"
    depth: ClassVar[int] = 0
    of: ClassVar[str] = "encoder"

    def compute(self, networks, video, ids):
        boxes = take_tokens(networks["encoder"].patchify(video), ids).float()
        grey = boxes.unflatten(-1, (2, 4, 4, 3)).mean(dim=(-1, -4))  # (B, M, 4, 4)
        return torch.cat([torch.gradient(grey, dim=axis)[0].flatten(-2) for axis in (-2, -1)], dim=-1)

    def at_depth(self, depth):
        return Latents(depth)


NEW = {"colour": MeanColour(), "gradients": Gradients()}
SIZES = {**TINY, "extra_heads": {"colour": 3}}


def test_a_new_method_is_one_function(new_method, tiny_config):
    stages = StageArguments(method="pixels_then_colours", steps_per_block=4).build(tiny_config)
    assert [(s.start, s.objectives[0].target) for s in stages] == [(0, Pixels()), (4, MeanColour())]
    for freezing in ({"freeze_start": 6, "num_freezes": 1}, {"freeze_start": 6, "num_freezes": 1, "max_frozen": 1}):
        later = StageArguments(method="pixels_then_colours", **freezing).build(tiny_config)[-1]
        assert (later.num_frozen, later.objectives[0].target) == (1, Latents(1))
    with pytest.raises(ValueError, match="overlap is set but the method pixels_then_colours does not read it"):
        StageArguments(method="pixels_then_colours", overlap=1).build(tiny_config)
    with pytest.raises(ValueError, match="method must be one of .*pixels_then_colours"):
        StageArguments(method="pixels_then_colors").build(tiny_config)


@pytest.mark.parametrize("name", NEW)
def test_a_new_target_is_one_value(name):
    model = LayerLockViTForPretraining(LayerLockViTConfig.from_preset("tiny", **SIZES))
    stage = Stage(0, 0, (Objective(6, NEW[name]),))
    video, ids = torch.rand(2, 4, 3, 16, 16), torch.rand(2, 32).argsort(dim=1)
    outputs = model(video, ids[:, :8], ids[:, 8:], stage=stage)
    expected = NEW[name].compute({"encoder": model.encoder}, video, ids[:, 8:])
    difference = outputs.predictions[0] - expected
    smooth = torch.where(difference.abs() < 1, 0.5 * difference**2, difference.abs() - 0.5)
    torch.testing.assert_close(outputs.loss, (difference.abs() if name == "gradients" else smooth).mean())
    boxes = patchify(video, 2, 4)[0, ids[0, 8]].view(2, 4, 4, 3)
    by_hand = {
        "colour": boxes.mean(dim=(0, 1, 2)),
        "gradients": torch.cat([g.flatten() for g in torch.gradient(boxes.mean(dim=(0, 3)))]),
    }
    torch.testing.assert_close(expected[0, 0], by_hand[name])


@pytest.mark.parametrize("sizes", [{}, VJEPA], ids=["trunk", "predictor"])
@pytest.mark.parametrize("name", NEW)
def test_flops_of_a_new_target(name, sizes):
    config = LayerLockViTConfig.from_preset("tiny", **{**SIZES, **sizes})
    config._attn_implementation = "eager"
    model = LayerLockViTForPretraining(config)
    stage = Stage(0, 0, (Objective(6, NEW[name]),))
    model.freeze_for(stage)
    ids = torch.randperm(32)[None]
    with FlopCounterMode(display=False) as counter:
        model(torch.rand(1, 4, 3, 16, 16), ids[:, :8], ids[:, 8:], stage=stage).loss.backward()
    assert step_flops(config, stage, [(8, 24)]) == counter.get_total_flops()


def test_a_run_on_new_values(tmp_path, monkeypatch):
    """Locking, logs, checkpoints and resume know nothing of them."""
    both = Stage(0, 0, (Objective(6, MeanColour()), Objective(6, Gradients(), weight=0.5)))
    stages = [both, *locked([Stage(0, 0, (Objective(6, Gradients()),))], FreezeSchedule(3, 2, num_freezes=2))[1:]]
    monkeypatch.setitem(TOYS, "new", Method(stages, sizes={"extra_heads": {"colour": 3}}))
    trainer = make_trainer("new", tmp_path / "a", max_steps=6, save_strategy="steps", save_steps=2)
    trainer.train()
    rows = step_logs(trainer)
    assert {"colour/loss", "gradients/explained_variance"} <= set(rows[0])
    assert rows[3]["layer_1/loss"] > 0 and rows[5]["layer_2/loss"] > 0
    resumed = make_trainer("new", tmp_path / "b", max_steps=6)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    pairs = zip(trainer.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
