"""The pretraining program with every method and every recipe."""

import json
from pathlib import Path

import pytest
import torch
from run_files import contents, read_steps
from transformers import AutoModel

from layerlock_hf import LayerLockViTConfig, LayerLockViTModel
from layerlock_hf.cli import pretrain as program
from layerlock_hf.recipes import load_recipe, recipe_paths
from layerlock_hf.training.schedules import whole_steps


RECIPES = [name for name, path in recipe_paths().items() if path.parent.name != "readouts"]
# Recipes keep all but their widths and the size of their clips
NARROW = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "predictor_hidden_size": 24,
    "predictor_num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 4,
    "num_frames": 4,
    "tubelet_size": 2,
}

UNLOCKED = dict.fromkeys(("freeze_start", "freeze_interval", "layers_per_freeze", "num_freezes"))
PREDICTOR = {
    "decoder": "predictor",
    "predictor_hidden_size": 24,
    "predictor_num_attention_heads": 2,
    "position_embedding": "sincos",
    "use_final_norm": True,
}
VJEPA = {
    **UNLOCKED,
    **PREDICTOR,
    "method": "teacher_latents",
    "num_mask_tokens": 2,
    "mask": "multiblock",
    "mask_ratio": None,
    "mask_blocks": ["2x0.15", "1x0.5"],
    "mask_group_size": 4,
}
BLOCKS = {**UNLOCKED, **PREDICTOR, "method": "blockwise", "predictor_depths": [2, 4, 6], "mask": "tube"}
LOCKED = {"freeze_start": 1, "freeze_interval": 1, "layers_per_freeze": 1, "num_freezes": 1}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, tiny_sizes):
    """The folder of a teacher of three layers of width 48."""
    sizes = {**tiny_sizes, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3}
    folder = tmp_path_factory.mktemp("teacher")
    LayerLockViTModel(LayerLockViTConfig.from_preset("tiny", **sizes)).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    "changes, targets",
    [
        ({**UNLOCKED, "normalize_pixels": True, "pixel_loss": "l1"}, ["pixels"]),
        (VJEPA, ["teacher_layer_6"]),
        ({**VJEPA, **LOCKED, "target_layer": 1}, ["teacher_layer_1", "teacher_layer_1"]),
        (BLOCKS, ["depth_2/pixels + depth_4/pixels + depth_6/pixels"]),
        ({**BLOCKS, "overlap": 1}, ["depth_2/pixels + depth_4/pixels + depth_6/pixels"]),
        ({**BLOCKS, "method": "blockwise_in_sequence", "steps_per_block": 1}, ["pixels"] * 3),
        ({**UNLOCKED, "method": "mae_and_latents", "latent_head_depths": [2]}, ["pixels + layer_2"]),
        ({**LOCKED, "latent_head_depths": [1], "keep_targets": True}, ["pixels", "pixels + layer_1"]),
        ({**LOCKED, "predict_latents": False}, ["pixels", "pixels"]),
    ],
    ids=["mae", "vjepa", "vjepa locked", "blockwise", "overlap", "in sequence", "unfrozen", "keep", "freezing only"],
)
def test_a_step_of_every_stage_of_other_methods(run, tmp_path, changes, targets):
    run(tmp_path, **{**changes, "max_steps": len(targets), "save_strategy": "no"})
    stages = json.loads((tmp_path / "stages.json").read_text())
    assert [row["target"] for row in stages] == targets
    assert [row["stage"] for row in read_steps(tmp_path)] == list(range(len(targets)))
    model = AutoModel.from_pretrained(tmp_path)
    assert model(torch.rand(1, 4, 3, 16, 16)).last_hidden_state.shape == (1, 32, 32)


def test_a_step_under_a_loaded_teacher(run, teacher, tmp_path):
    before = contents(Path(teacher))
    run(tmp_path, "--teacher", teacher, "--teacher_momentum", 1, **{**VJEPA, "max_steps": 1, "save_strategy": "no"})
    (row,) = read_steps(tmp_path)
    assert row["teacher_layer_3/loss"] == pytest.approx(row["loss"])
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["teacher_hidden_size"] == 48
    assert contents(Path(teacher)) == before and not (tmp_path / "teacher").exists()


@pytest.mark.parametrize(
    "flags, changes, message",
    [
        (["--teacher_momentum", 1], VJEPA, "teacher_momentum must be below 1 for an EMA teacher, got 1"),
        (["--teacher_momentum", 1.5], VJEPA, "teacher_momentum must be between 0 and 1, got 1.5"),
        (
            ["--teacher", "TEACHER"],
            VJEPA,
            "teacher_momentum must be 1 for a given teacher, which never moves, got 0.998",
        ),
        (
            ["--teacher", "TEACHER", "--teacher_momentum", 1],
            UNLOCKED,
            "teacher is set but no stage predicts its latents",
        ),
        (
            ["--teacher", "TEACHER", "--teacher_momentum", 1, "--target_layer", 4],
            VJEPA,
            "target_layer must be at most 3",
        ),
        (["--teacher", "TEACHER", "--teacher_momentum", 1, "--patch_size", 8], VJEPA, "patch_size=4"),
        (["--teacher", "nowhere", "--teacher_momentum", 1], VJEPA, "teacher: cannot load nowhere"),
        (["--num_mask_tokens", 1], VJEPA, "num_mask_tokens must be 2, the number of mask types in mask_blocks, got 1"),
        (["--method", "v-jepa"], UNLOCKED, "method must be one of mae, teacher_latents"),
        (["--target_layer", 2], UNLOCKED, "target_layer is set but the method mae does not read it"),
        (["--overlap", 1], VJEPA, "overlap is set but the method teacher_latents does not read it"),
        (["--method", "blockwise_in_sequence"], BLOCKS, "steps_per_block must be set"),
        (["--decoder", "trunk"], {**BLOCKS, "predictor_depths": None}, "decoder must be 'predictor' for local stages"),
        (["--decoder", "trunk"], BLOCKS, "predictor_depths needs decoder='predictor'"),
        (["--predictor_depths", 2, 4, 7], BLOCKS, "predictor_depths must lie between 1 and the 6 layers"),
        (["--freeze_start", 1, "--num_freezes", 1], BLOCKS, "set predict_latents to False"),
        (["--method", "mae_and_latents"], UNLOCKED, "latent_head_depths must name the layers"),
        (["--keep_targets", "true"], {}, "there is no head latents_2: set latent_head_depths"),
        (["--learning_rate_decay", "step"], {}, "learning_rate_decay must be one of"),
        (["--schedule_stretch", 0.5], {}, "schedule_stretch must be at least 1"),
        (["--pixel_loss", "l3"], UNLOCKED, "pixel_loss"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_contradictions_between_methods_and_settings(run, teacher, finished, flags, changes, message):
    before = contents(finished)
    flags = [teacher if flag == "TEACHER" else flag for flag in flags]
    with pytest.raises(SystemExit) as error:
        run(finished, *flags, **changes)
    assert str(error.value).startswith("error: ") and message in str(error.value)
    assert "\n" not in str(error.value)
    assert contents(finished) == before


@pytest.mark.parametrize("recipe_name", RECIPES)
def test_a_recipe_says_what_the_parser_understands(recipe_name, tmp_path):
    flags = ["--train_data", "videos", "--output_dir", str(tmp_path), "--use_cpu", "true"]
    parsed = {}
    for arguments in program.parse(["--config", recipe_name, *flags])[:-1]:  # but for the flags themselves
        parsed |= vars(arguments)
    recipe = load_recipe(recipe_name)
    for name, value in recipe.items():
        if name == "report_to":
            value = []
        elif name == "switch_warmup_steps":  # which may be a share of the run
            value = whole_steps(name, value, recipe["max_steps"])
        assert parsed[name] == value, name


@pytest.mark.slow
@pytest.mark.parametrize("recipe_name", RECIPES)
def test_every_recipe_runs_on_the_data_of_the_demonstration(pretrain, videos, recipe_name, tmp_path):
    recipe = load_recipe(recipe_name)
    flags = {**NARROW, "train_data": videos, "output_dir": tmp_path / "out", "max_steps": 2, "warmup_steps": 1}
    flags |= {"per_device_train_batch_size": 2, "global_batch_size": 2, "logging_steps": 1, "use_cpu": True}
    flags |= {"disable_tqdm": True, "dataloader_pin_memory": False, "save_strategy": "no", "frame_stride": 1}
    if "mask_past" in recipe:
        flags["mask_past"] = 1  # of the two time steps that are left
    if recipe.get("teacher_momentum") == 1:
        config = LayerLockViTConfig.from_preset(recipe["preset"], **NARROW)
        LayerLockViTModel(config).save_pretrained(tmp_path / "teacher")
        flags["teacher"] = tmp_path / "teacher"
    pretrain(["--config", recipe_name, *(str(part) for name, value in flags.items() for part in (f"--{name}", value))])
    first, second = read_steps(tmp_path / "out")
    assert second["step"] == 2 and first["loss"] > 0 and second["loss"] > 0
