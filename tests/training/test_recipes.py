import dataclasses
from pathlib import Path

import pytest

from layerlock_hf.models import LayerLockViTConfig
from layerlock_hf.models.configuration_layerlock import architecture_fields
from layerlock_hf.training import LayerLockTrainingArguments, Pixels, StageArguments, load_recipe


RECIPES = Path(__file__).resolve().parents[2] / "scripts" / "recipes"
PATHS = sorted(RECIPES.rglob("*.yaml"))
PAPERS = [path for path in PATHS if not path.stem.startswith("demo")]
STAGE_FIELDS = {field.name for field in dataclasses.fields(StageArguments)}
TRAINING_FIELDS = {field.name for field in dataclasses.fields(LayerLockTrainingArguments)}
OTHER_FIELDS = {"preset", "frame_stride", "mask_ratio", "resize_factor"}

# Literal numbers of the paper: (step, frozen layers, target layer) of each freezing
TABLE_8_G = [(160_000 + 10_000 * (n - 1), n, n) for n in range(1, 33)]
TABLE_8_E = [(200_000 + 10_000 * (n - 1), n, n) for n in range(1, 30)]
TABLE_10_G_250M = [(25_000, 5, 4), (45_000, 10, 8), (65_000, 15, 12), (85_000, 20, 16)]
FREEZINGS = {
    "4ds-g-layerlock": TABLE_8_G,
    "4ds-g-layerlock-5pct": TABLE_8_G,
    "table2-100pct": TABLE_8_G,
    "table2-5pct": TABLE_8_G,
    "4ds-e-layerlock": TABLE_8_E,
    "4ds-g-mae": [],
    "4ds-e-mae": [],
    "table2-mae": [],
    "table4-mae-rope": [],
    "table4-mae-learned-positions": [],
    "table10-4ds-h-100m-mae": [],
    "table4-layerlock-rope": TABLE_10_G_250M,
    "table6-no-warmup": TABLE_10_G_250M,
    "table6-1k": TABLE_10_G_250M,
    "table6-3k": TABLE_10_G_250M,
    "table10-4ds-g-56m": [
        (19_000, 5, 4),
        (49_000, 10, 8),
        (79_000, 15, 12),
        (109_000, 20, 16),
        (139_000, 25, 20),
        (169_000, 30, 24),
        (199_000, 35, 28),
        (229_000, 40, 32),
        (259_000, 45, 36),
        (289_000, 48, 40),
        (319_000, 48, 44),
    ],
    "table7-base": [(6_000, 2, 1), (10_000, 4, 3), (14_000, 6, 5), (18_000, 8, 7)],
    "table7-start-2k": [(2_000, 2, 1), (6_000, 4, 3), (10_000, 6, 5), (14_000, 8, 7)],
    "table7-start-4k": [(4_000, 2, 1), (8_000, 4, 3), (12_000, 6, 5), (16_000, 8, 7)],
    "table7-jump-3": [(6_000, 3, 2), (10_000, 6, 5), (14_000, 9, 8), (18_000, 12, 11)],
    "table7-jump-4": [(6_000, 4, 3), (10_000, 8, 7), (14_000, 12, 11)],
    "table7-interval-2k-jump-1": [(4_000 + 2_000 * n, n, n) for n in range(1, 9)],
    "table7-interval-8k-jump-4": [(6_000, 4, 4), (14_000, 8, 8)],
    "table7-interval-16k-jump-8": [(6_000, 8, 8)],
}
# Preset, layers, steps, batch, peak learning rate, warm-up, weight decay (Tables 8 and 10)
RUNS = {
    "4ds-g-layerlock": ("4ds-g", 48, 488_282, 2048, 3e-4, 10_000, 0.05),
    "4ds-e-layerlock": ("4ds-e", 56, 488_282, 2048, 3e-4, 10_000, 0.05),
    "table4-layerlock-rope": ("4ds-g", 48, 122_070, 2048, 1e-4, 5_000, 0.0),
    "table10-4ds-g-56m": ("4ds-g", 48, 437_500, 128, 1e-4, 5_000, 0.0),
    "table10-4ds-h-100m-mae": ("4ds-h", 32, 12_352, 8096, 1e-3, 1_000, 0.0),
    "table7-base": ("4ds-b", 12, 97_656, 512, 3e-4, 2_000, 1e-3),
}


def read(path):
    settings = load_recipe(path)
    model = {name: value for name, value in settings.items() if name in architecture_fields()}
    config = LayerLockViTConfig.from_preset(settings["preset"], **model)
    arguments = StageArguments(**{name: value for name, value in settings.items() if name in STAGE_FIELDS})
    return settings, config, arguments.build(config)


def test_every_recipe_of_the_paper_is_expected_here():
    assert {path.stem for path in PAPERS} == set(FREEZINGS)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_recipe_is_understood(path):
    settings, config, stages = read(path)
    assert set(settings) <= STAGE_FIELDS | set(architecture_fields()) | TRAINING_FIELDS | OTHER_FIELDS
    for name in ("learning_rate", "weight_decay", "warmup_steps", "max_steps", "global_batch_size", "adam_beta2"):
        assert isinstance(settings[name], int | float), name  # YAML reads 3e-4 as a string
    assert {s.objectives[0].source for s in stages} == {config.num_hidden_layers}
    assert all(s.start < settings["max_steps"] for s in stages)
    if settings.get("freeze_start") is None:
        assert len(stages) == 1
    else:
        assert [s.start for s in stages][:2] == [0, settings["freeze_start"]]


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_freezings_are_the_papers(path):
    pixels, *latent = read(path)[2]
    assert (pixels.start, pixels.num_frozen) == (0, 0)
    assert pixels.objectives[0].target == Pixels()
    assert pixels.objectives[0].patch_fraction == 1
    assert [(s.start, s.num_frozen, s.objectives[0].target.depth) for s in latent] == FREEZINGS[path.stem]
    fraction = 0.05 if path.stem.endswith("5pct") else 1
    assert {s.objectives[0].patch_fraction for s in latent} <= {fraction}


@pytest.mark.parametrize("name", RUNS)
def test_run_is_the_papers(name):
    (path,) = RECIPES.rglob(f"{name}.yaml")
    settings, config, _ = read(path)
    preset, num_layers, *run = RUNS[name]
    assert (settings["preset"], config.num_hidden_layers) == (preset, num_layers)
    keys = ("max_steps", "global_batch_size", "learning_rate", "warmup_steps", "weight_decay")
    assert [settings[key] for key in keys] == run
    assert (settings["mask_ratio"], settings["adam_beta1"], settings["adam_beta2"]) == (0.95, 0.9, 0.95)
    assert (config.num_frames, config.image_size, config.patch_size, config.tubelet_size) == (16, 224, 16, 2)


def test_mini_warmups_of_table_6():
    found = {path.stem: load_recipe(path)["switch_warmup_steps"] for path in PATHS if path.stem.startswith("table6")}
    assert found == {"table6-no-warmup": 0, "table6-1k": 1000, "table6-3k": 3000}


@pytest.mark.parametrize("steps, frozen", [(160_000 - 1, 0), (160_000, 1), (169_999, 1), (170_000, 2), (470_000, 32)])
def test_g_freezes_a_layer_every_10000_steps(steps, frozen):
    stages = read(RECIPES / "4ds-g-layerlock.yaml")[2]
    assert [s for s in stages if s.start <= steps][-1].num_frozen == frozen


SCHEDULE = {"freeze_start": 10, "freeze_interval": 5, "num_freezes": 2}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_freezes": 2}, "num_freezes is set but freeze_start is not"),
        ({"freeze_interval": 2}, "freeze_interval is set but freeze_start is not"),
        ({"layers_per_freeze": 2}, "layers_per_freeze is set but freeze_start is not"),
        ({"max_frozen": 2}, "max_frozen is set but freeze_start is not"),
        ({"target_layers": [1]}, "target_layers is set but freeze_start is not"),
        ({"freeze_start": 10, "num_freezes": 2}, "freeze_interval is not"),
        ({"freeze_start": 10, "freeze_interval": 5}, "num_freezes or max_frozen"),
        ({**SCHEDULE, "num_freezes": 7}, "7 frozen layers, but the ViT has 6.*num_freezes"),
        ({**SCHEDULE, "target_layers": [1]}, "target_layers"),
        ({**SCHEDULE, "target_layers": [2, 2]}, "target_layers"),
        ({**SCHEDULE, "freeze_start": 0}, "start"),
        ({**SCHEDULE, "freeze_interval": 0}, "interval must be at least 1"),
        ({**SCHEDULE, "layers_per_freeze": 0}, "layers_per_freeze must be at least 1"),
        ({**SCHEDULE, "target_layers": []}, "target_layers"),
        ({**SCHEDULE, "latent_patch_fraction": 1.5}, "patch_fraction"),
        ({"pixel_patch_fraction": 0.0}, "patch_fraction"),
    ],
)
def test_contradictory_recipes_name_the_field(tiny_config, settings, message):
    with pytest.raises(ValueError, match=message):
        StageArguments(**settings).build(tiny_config)


def test_a_single_freezing_needs_no_interval(tiny_config):
    stages = StageArguments(freeze_start=10, num_freezes=1, normalize_pixels=True).build(tiny_config)
    assert [(s.start, s.num_frozen) for s in stages] == [(0, 0), (10, 1)]
    assert stages[0].objectives[0].target == Pixels(normalize=True)


def test_freezing_without_latents(tiny_config):
    stages = StageArguments(**SCHEDULE, predict_latents=False).build(tiny_config)
    assert [(s.num_frozen, s.objectives[0].target) for s in stages] == [(n, Pixels()) for n in range(3)]


def test_load_recipe_refuses(tmp_path):
    with pytest.raises(ValueError, match="no recipe"):
        load_recipe(tmp_path / "none.yaml")
    for name, text in (("broken", "a: [1"), ("list", "- a\n- b"), ("empty", "")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=f"config: .*{name}"):
            load_recipe(tmp_path / name)
