"""Twenty steps of every recipe against recorded ones: `tests/golden/RECIPE.json` holds loss and gradient norm.

Each recipe runs in small: as many layers, blocks and stages, but narrow, on noise, in fp32, its time compressed to 20
steps (of stages that fall on the same step the last remains). When numbers must change, record them anew and say why:

    python -m pytest tests/training/test_golden.py --write_golden "The reason, which the files keep."
"""

import dataclasses
import functools
import json
import math
from pathlib import Path

import pytest
import torch
from transformers import set_seed

from layerlock_hf.data import MaskArguments, PretrainingCollator
from layerlock_hf.models import LayerLockViTConfig, LayerLockViTForPretraining, LayerLockViTModel
from layerlock_hf.models.configuration_layerlock import architecture_fields
from layerlock_hf.recipes import load_recipe, recipe_paths
from layerlock_hf.training import LayerLockTrainer, LayerLockTrainingArguments, StageArguments


TESTS = Path(__file__).resolve().parents[1]
RECIPES = sorted(path for path in recipe_paths().values() if path.parent.name != "readouts")
GOLDEN = TESTS / "golden"
NUM_STEPS = 20
# Kernels differ between machines in the order of their sums. Weights that start 1e-6 off (relative; ten times fp32's
# precision) move no recorded number by more than 3e-4. A learning rate 5% higher moves some by 1e-2, a momentum of the
# teacher lower by 0.001 or a missing mini warm-up likewise; of weight decay 20 steps show nothing
RTOL = 1e-3
MAX_RATE = 3e-4  # at the demonstrations' rates they would move by 3e-3
SIZES = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 24,
    "patch_size": 4,
    "num_frames": 4,
    "tubelet_size": 2,
    "predictor_hidden_size": 24,
    "predictor_num_attention_heads": 2,
}
RUN = {
    "max_steps": NUM_STEPS,
    "global_batch_size": None,
    "per_device_train_batch_size": 2,
    "bf16": False,
    "use_cpu": True,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "diagnostics_steps": 0,
    "train_sampling_strategy": "sequential",
}
TRAINING_FIELDS = {field.name for field in dataclasses.fields(LayerLockTrainingArguments)}


class Noise(torch.utils.data.Dataset):
    """Clips that differ by their position, each with a brightness of its own."""

    def __init__(self, config):
        self.shape = (config.num_frames, 3, config.image_size, config.image_size)

    def __len__(self):
        return NUM_STEPS * RUN["per_device_train_batch_size"]

    def __getitem__(self, position):
        generator = torch.Generator().manual_seed(position)
        video = torch.randint(0, 128, self.shape, generator=generator, dtype=torch.uint8)
        return {"pixel_values_videos": video + 10 * (position % 12), "position": position, "is_padded": False}


def fields_of(kind, settings):
    return {field.name: settings[field.name] for field in dataclasses.fields(kind) if field.name in settings}


def compress(stages, share):
    """The stages with their starts and ramps shortened; of those that fall on one step the last."""
    by_start = {}
    for stage in stages:
        start = math.ceil(stage.start * share)
        objectives = tuple(
            dataclasses.replace(objective, weight_ramp_steps=math.ceil(objective.weight_ramp_steps * share))
            for objective in stage.objectives
        )
        by_start[start] = dataclasses.replace(stage, start=start, objectives=objectives)
    return [stage for start, stage in by_start.items() if start < NUM_STEPS]


def shrink(path):
    """Configuration, stages, masks, training arguments and the need of a trained teacher, of a recipe in small."""
    settings = load_recipe(path)
    share = NUM_STEPS / settings["max_steps"]
    model = {name: value for name, value in settings.items() if name in architecture_fields()}
    config = LayerLockViTConfig.from_preset(settings["preset"], **{**model, **SIZES})
    whole = StageArguments(**fields_of(StageArguments, settings)).build(config, max_steps=settings["max_steps"])
    stages = compress(whole, share)
    training = {name: value for name, value in settings.items() if name in TRAINING_FIELDS} | RUN
    training["learning_rate"] = min(settings["learning_rate"], MAX_RATE)
    training["warmup_steps"] = round(settings["warmup_steps"] * share)
    training["switch_warmup_steps"] = min(1, math.ceil(settings.get("switch_warmup_steps", 1)))
    masks = MaskArguments(**fields_of(MaskArguments, settings))
    if masks.mask_past is not None:
        masks.mask_past = 1  # of the two time steps that are left
    return config, stages, masks, training


def run(path, output_dir):
    """Loss and gradient norm of every step. Recipes that are the same in small run once."""
    config, stages, masks, training = shrink(path)
    return _run(config.to_json_string(), tuple(stages), str(masks), json.dumps(training), path, output_dir)


@functools.cache
def _run(*key):
    *_, path, output_dir = key
    config, stages, masks, training = shrink(path)
    set_seed(0)
    model = LayerLockViTForPretraining(config)
    teacher = LayerLockViTModel(config).eval() if training.get("teacher_momentum") == 1 else None
    arguments = LayerLockTrainingArguments(output_dir=str(output_dir), **training)
    collator = PretrainingCollator(config.grid_size, masks.build(), seed=0)
    trainer = LayerLockTrainer(model, arguments, stages, Noise(config), collator, teacher=teacher)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "grad_norm" in row]
    return {name: [float(f"{row[name]:.7g}") for row in rows] for name in ("loss", "grad_norm")}


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_golden(path, tmp_path, request):
    found = run(path, tmp_path)
    assert all(len(values) == NUM_STEPS and all(map(math.isfinite, values)) for values in found.values())
    file = GOLDEN / f"{path.stem}.json"
    reason = request.config.getoption("write_golden")
    if reason:
        GOLDEN.mkdir(exist_ok=True)
        file.write_text(json.dumps({"reason": reason, **found}, indent=1) + "\n")
        return
    expected = json.loads(file.read_text())
    for name, values in found.items():
        assert values == pytest.approx(expected[name], rel=RTOL), name


def test_every_recipe_is_recorded():
    assert {path.stem for path in GOLDEN.glob("*.json")} == {path.stem for path in RECIPES}
