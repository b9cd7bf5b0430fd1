import dataclasses

import pytest
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from layerlock_hf.data import MaskArguments, MultiBlockMasks, RandomMask, TubeMask
from layerlock_hf.models import LayerLockViTConfig
from layerlock_hf.models.configuration_layerlock import architecture_fields
from layerlock_hf.recipes import load_recipe, recipe_paths
from layerlock_hf.training import (
    Latents,
    LayerLockTrainingArguments,
    Objective,
    Pixels,
    Stage,
    StageArguments,
    step_flops,
)


PATHS = [path for path in recipe_paths().values() if path.parent.name != "readouts"]
PAPERS = [path for path in PATHS if not path.stem.startswith(("demo", "small"))]
STAGE_FIELDS = {field.name for field in dataclasses.fields(StageArguments)}
TRAINING_FIELDS = {field.name for field in dataclasses.fields(LayerLockTrainingArguments)}
MASK_FIELDS = {field.name for field in dataclasses.fields(MaskArguments)}
OTHER_FIELDS = {"preset", "frame_stride", "clips_per_video", "resize_factor", "crop_scale", "jitter_strength"}

# Literal numbers of the paper: (step, frozen layers, target layer) of each freezing
TABLE_8_G = [(160_000 + 10_000 * (n - 1), n, n) for n in range(1, 33)]
TABLE_8_E = [(200_000 + 10_000 * (n - 1), n, n) for n in range(1, 30)]
TABLE_10_G_250M = [(25_000, 5, 4), (45_000, 10, 8), (65_000, 15, 12), (85_000, 20, 16)]
TABLE_10_G_56M = [
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
]
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
    "table10-4ds-g-56m": TABLE_10_G_56M,
    # Printed as indices from 0: (1, 3, 5, 7), (2, 5, 8, 11), (3, 7, 11)
    "table7-base": [(6_000, 2, 2), (10_000, 4, 4), (14_000, 6, 6), (18_000, 8, 8)],
    "table7-start-2k": [(2_000, 2, 2), (6_000, 4, 4), (10_000, 6, 6), (14_000, 8, 8)],
    "table7-start-4k": [(4_000, 2, 2), (8_000, 4, 4), (12_000, 6, 6), (16_000, 8, 8)],
    "table7-jump-3": [(6_000, 3, 3), (10_000, 6, 6), (14_000, 9, 9), (18_000, 12, 12)],
    "table7-jump-4": [(6_000, 4, 4), (10_000, 8, 8), (14_000, 12, 12)],
    "table7-interval-2k-jump-1": [(4_000 + 2_000 * n, n, n) for n in range(1, 9)],
    "table7-interval-8k-jump-4": [(6_000, 4, 4), (14_000, 8, 8)],
    "table7-interval-16k-jump-8": [(6_000, 8, 8)],
}
# LayerLock on V-JEPA: Table 9
TABLE_9 = [(100_000 + 6_000 * (n - 1), n, n) for n in range(1, 25)]
# Freezing without latents: (step, frozen layers)
FREEZINGS_ONLY = {
    "sec41-freezing-only-table10": [(25_000, 5), (45_000, 10), (65_000, 15), (85_000, 20)],
    "sec41-freezing-only-44-layers": [(25_000 + 2_200 * (n - 1), n) for n in range(1, 45)],
    "sec41-freezing-only-1b-table8": [(160_000 + 10_000 * (n - 1), n) for n in range(1, 33)],
    "sec41-freezing-only-1b-44-layers": [
        *[(25_000 + 20_000 * (n - 1), 5 * n) for n in range(1, 9)],
        (185_000, 44),
    ],
}
PREDICTED = Latents(24, of="teacher", normalize=True, loss="l1")
VIDEOMAE = Pixels(normalize=True)


def at_once(depths, overlap=0):
    return [Stage(0, 0, tuple(Objective(depth, VIDEOMAE) for depth in depths), local=True, overlap=overlap)]


def in_sequence(depths, steps):
    return [Stage(n * steps, depths[n] - depths[0], (Objective(depths[n], VIDEOMAE),)) for n in range(len(depths))]


def collapsing(ramp_steps):
    latents = (Objective(32, Latents(n, has_own_head=True), weight_ramp_steps=ramp_steps) for n in (8, 16, 24))
    return [Stage(0, 0, (Objective(32, Pixels()), *latents), may_collapse=True)]


FOURS, SIXES = [3, 6, 9, 12], [2, 4, 6, 8, 10, 12]
STAGES = {
    **dict.fromkeys(
        ("vjepa-l", "vjepa-l-original", "vjepa2-l-16f", "salt-vjepa2-l-240k", "salt-vjepa2-l-221k")
        + ("salt-l", "salt-l-80k", "salt-l-120k", "salt-l-220k"),
        [Stage(0, 0, (Objective(24, PREDICTED),))],
    ),
    **dict.fromkeys(
        ("salt-l-teacher", "salt-l-teacher-20k", "salt-l-teacher-80k"), [Stage(0, 0, (Objective(24, VIDEOMAE),))]
    ),
    "ucf101-tiny-4-blocks": at_once(FOURS),
    "ucf101-tiny-4-blocks-overlap": at_once(FOURS, overlap=1),
    "ucf101-tiny-6-blocks": at_once(SIXES),
    "ucf101-small-4-blocks": at_once(FOURS),
    "ucf101-small-6-blocks": at_once(SIXES),
    "ucf101-tiny-4-blocks-in-sequence": in_sequence(FOURS, 22_353),
    "ucf101-tiny-6-blocks-in-sequence": in_sequence(SIXES, 22_353),
    "ucf101-small-4-blocks-in-sequence": in_sequence(FOURS, 44_705),
    "ucf101-small-6-blocks-in-sequence": in_sequence(SIXES, 44_705),
    "ucf101-tiny-end-to-end": [Stage(0, 0, (Objective(12, VIDEOMAE),))],
    "ucf101-small-end-to-end": [Stage(0, 0, (Objective(12, VIDEOMAE),))],
    "table3-latents-const": collapsing(0),
    "table3-latents-cosine": collapsing(12_352),
    "sec31-mae-rope-attention": [Stage(0, 0, (Objective(48, Pixels()),))],
    "fig1": [Stage(0, 0, (Objective(16, Pixels()),))],
}
OTHERS = {"vjepa-l-layerlock", "table5-all-targets"}

# Preset, layers, steps, batch, peak learning rate, warm-up, weight decay (Tables 8, 9 and 10, and the other papers)
RUNS = {
    "4ds-g-layerlock": ("4ds-g", 48, 488_282, 2048, 3e-4, 10_000, 0.05),
    "4ds-e-layerlock": ("4ds-e", 56, 488_282, 2048, 3e-4, 10_000, 0.05),
    "table4-layerlock-rope": ("4ds-g", 48, 122_070, 2048, 1e-4, 5_000, 0.0),
    "table10-4ds-g-56m": ("4ds-g", 48, 437_500, 128, 1e-4, 5_000, 0.0),
    "table10-4ds-h-100m-mae": ("4ds-h", 32, 12_352, 8096, 1e-3, 1_000, 0.0),
    "table7-base": ("4ds-b", 12, 97_656, 512, 3e-4, 2_000, 1e-3),
    "table3-latents-const": ("4ds-h", 32, 12_352, 8096, 1e-3, 1_000, 0.0),
    "table3-latents-cosine": ("4ds-h", 32, 12_352, 8096, 1e-3, 1_000, 0.0),
    "table5-all-targets": ("4ds-g", 48, 437_500, 128, 1e-4, 5_000, 0.0),
    "fig1": ("4ds-s", 16, 14_000, 2048, 1e-4, 10_000, 0.05),
    "sec31-mae-rope-attention": ("4ds-g", 48, 122_070, 2048, 1e-4, 5_000, 0.0),
    "sec41-freezing-only-table10": ("4ds-g", 48, 122_070, 2048, 1e-4, 5_000, 0.0),
    "sec41-freezing-only-44-layers": ("4ds-g", 48, 122_070, 2048, 1e-4, 5_000, 0.0),
    "sec41-freezing-only-1b-table8": ("4ds-g", 48, 488_282, 2048, 3e-4, 10_000, 0.05),
    "sec41-freezing-only-1b-44-layers": ("4ds-g", 48, 488_282, 2048, 3e-4, 10_000, 0.05),
    "vjepa-l": ("vjepa-l", 24, 262_501, 2048, 4.17e-4, 90_000, 0.04),
    "vjepa-l-layerlock": ("vjepa-l", 24, 262_501, 2048, 4.17e-4, 90_000, 0.04),
    "vjepa-l-original": ("vjepa-l", 24, 90_000, 3072, 6.25e-4, 12_000, 0.04),
    "vjepa2-l-16f": ("vjepa-l", 24, 240_000, 3072, 5.25e-4, 12_000, 0.04),
    "salt-vjepa2-l-240k": ("vjepa-l", 24, 240_000, 3072, 5.25e-4, 12_000, 0.04),
    "salt-vjepa2-l-221k": ("vjepa-l", 24, 221_132, 3072, 5.25e-4, 12_000, 0.04),
    "salt-l-teacher": ("vjepa-l", 24, 40_000, 3072, 5.25e-4, 12_000, 0.04),
    "salt-l": ("vjepa-l", 24, 200_000, 3072, 5.25e-4, 12_000, 0.04),
    "salt-l-teacher-20k": ("vjepa-l", 24, 20_000, 3072, 5.25e-4, 12_000, 0.04),
    "salt-l-220k": ("vjepa-l", 24, 220_000, 3072, 5.25e-4, 12_000, 0.04),
    "salt-l-80k": ("vjepa-l", 24, 80_000, 3072, 5.25e-4, 12_000, 0.04),
    "salt-l-teacher-80k": ("vjepa-l", 24, 80_000, 3072, 5.25e-4, 12_000, 0.04),
    "salt-l-120k": ("vjepa-l", 24, 120_000, 3072, 5.25e-4, 12_000, 0.04),
    "ucf101-tiny-4-blocks": ("deit-tiny", 12, 22_353, 64, 1e-4, 0, 0.05),
    "ucf101-tiny-4-blocks-overlap": ("deit-tiny", 12, 22_353, 64, 1e-4, 0, 0.05),
    "ucf101-tiny-6-blocks": ("deit-tiny", 12, 22_353, 64, 1e-4, 0, 0.05),
    "ucf101-tiny-end-to-end": ("deit-tiny", 12, 22_353, 64, 1e-4, 0, 0.05),
    "ucf101-tiny-4-blocks-in-sequence": ("deit-tiny", 12, 4 * 22_353, 64, 1e-4, 0, 0.05),
    "ucf101-tiny-6-blocks-in-sequence": ("deit-tiny", 12, 6 * 22_353, 64, 1e-4, 0, 0.05),
    "ucf101-small-4-blocks": ("deit-small", 12, 44_705, 64, 1e-4, 0, 0.05),
    "ucf101-small-6-blocks": ("deit-small", 12, 44_705, 64, 1e-4, 0, 0.05),
    "ucf101-small-end-to-end": ("deit-small", 12, 44_705, 64, 1e-4, 0, 0.05),
    "ucf101-small-4-blocks-in-sequence": ("deit-small", 12, 4 * 44_705, 64, 1e-4, 0, 0.05),
    "ucf101-small-6-blocks-in-sequence": ("deit-small", 12, 6 * 44_705, 64, 1e-4, 0, 0.05),
}
TRAINS_A_4DS = [name for name, run in RUNS.items() if run[0].startswith("4ds")]
# Literal numbers of each family, as settings
TABLE_9_RUN = {
    "position_embedding": "learned",
    "num_decoder_layers": 12,
    "num_mask_tokens": 1,
    "frame_stride": 4,
    "resize_factor": 1.15,
    "mask_blocks": ["8x0.3"],
    "teacher_momentum": 0.998,
    "first_learning_rate": 1.3e-4,
    "last_learning_rate": 6.6e-7,
    "weight_decay_end": 0.4,
    "adam_beta2": 0.999,
}
V_JEPA_2 = {
    "position_embedding": "rope_attention",
    "num_decoder_layers": 12,
    "predictor_hidden_size": 384,
    "predictor_num_attention_heads": 12,
    "num_mask_tokens": 2,
    "crop_scale": [0.3, 1.0],
    "mask_blocks": ["8x0.15", "2x0.7"],
    "mask_group_size": 24,
    "first_learning_rate": 1e-4,
    "weight_decay": 0.04,
    "max_grad_norm": 0.0,
    "adam_beta2": 0.999,
    "bf16": True,
}
TEACHER = {"frame_stride": 4, "image_size": 224, "pixel_loss": "l2", "last_learning_rate": 1e-6}
STUDENT = {"frame_stride": 4, "image_size": 224, "teacher_momentum": 1.0, "last_learning_rate": 1e-6}
SETTINGS = {
    "vjepa-l": TABLE_9_RUN,
    "vjepa-l-layerlock": TABLE_9_RUN | {"switch_warmup_steps": 1000},
    "vjepa-l-original": {
        "position_embedding": "sincos",
        "num_mask_tokens": 2,
        "frame_stride": 4,
        "crop_scale": [0.3, 1.0],
        "mask_blocks": ["8x0.15", "2x0.7"],
        "mask_group_size": 24,
        "teacher_momentum": 0.998,
        "teacher_momentum_end": 1.0,
        "schedule_stretch": 1.25,
        "first_learning_rate": 2e-4,
        "last_learning_rate": 1e-6,
        "weight_decay_end": 0.4,
        "max_grad_norm": 10.0,
        "bf16": True,
    },
    "vjepa2-l-16f": V_JEPA_2
    | {"frame_stride": 7, "image_size": 256, "teacher_momentum": 0.99925, "learning_rate_decay": "constant"},
    "salt-vjepa2-l-221k": V_JEPA_2,
    "salt-vjepa2-l-240k": V_JEPA_2
    | {"frame_stride": 4, "image_size": 224, "teacher_momentum": 0.99925, "learning_rate_decay": "constant"},
    **dict.fromkeys(("salt-l-teacher", "salt-l-teacher-20k", "salt-l-teacher-80k"), V_JEPA_2 | TEACHER),
    **dict.fromkeys(("salt-l", "salt-l-80k", "salt-l-120k", "salt-l-220k"), V_JEPA_2 | STUDENT),
    **dict.fromkeys(
        (name for name in RUNS if name.startswith("ucf101")),
        {
            "image_size": 128,
            "num_frames": 16,
            "patch_size": 16,
            "tubelet_size": 8,
            "num_decoder_layers": 4,
            "predictor_hidden_size": 192,
            "predictor_num_attention_heads": 3,
            "frame_stride": 4,
            "mask": "tube",
            "mask_ratio": 0.9,
            "max_grad_norm": 0.0,
        },
    ),
    "sec31-mae-rope-attention": {"position_embedding": "rope_attention"},
}


def read(path):
    settings = load_recipe(path)
    model = {name: value for name, value in settings.items() if name in architecture_fields()}
    config = LayerLockViTConfig.from_preset(settings["preset"], **model)
    arguments = StageArguments(**{name: value for name, value in settings.items() if name in STAGE_FIELDS})
    return settings, config, arguments.build(config, max_steps=settings["max_steps"])


def find(name):
    return recipe_paths()[name]


def test_every_recipe_of_the_papers_is_expected_here():
    assert {path.stem for path in PAPERS} == {*FREEZINGS, *FREEZINGS_ONLY, *STAGES, *OTHERS}
    assert {*FREEZINGS_ONLY, *STAGES, *OTHERS} <= set(RUNS)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_recipe_is_understood(path):
    settings, config, stages = read(path)
    known = STAGE_FIELDS | set(architecture_fields()) | TRAINING_FIELDS | MASK_FIELDS | OTHER_FIELDS
    assert set(settings) <= known
    for name in ("learning_rate", "weight_decay", "warmup_steps", "max_steps", "global_batch_size", "adam_beta2"):
        assert isinstance(settings[name], int | float), name  # YAML reads 3e-4 as a string
    assert {depth for s in stages for depth in s.read_depths} == set(config.decoder_depths)
    assert all(s.start < settings["max_steps"] for s in stages)
    start = settings.get("freeze_start")
    if start is not None:
        assert [s.start for s in stages][:2] == [0, start if start >= 1 else start * settings["max_steps"]]


@pytest.mark.parametrize("name", FREEZINGS)
def test_freezings_are_the_papers(name):
    pixels, *latent = read(find(name))[2]
    assert (pixels.start, pixels.num_frozen) == (0, 0)
    assert pixels.objectives[0].target == Pixels()
    assert pixels.objectives[0].patch_fraction == 1
    assert [(s.start, s.num_frozen, s.objectives[0].target.depth) for s in latent] == FREEZINGS[name]
    fraction = 0.05 if name.endswith("5pct") else 1
    assert {s.objectives[0].patch_fraction for s in latent} <= {fraction}


@pytest.mark.parametrize("name", FREEZINGS_ONLY)
def test_freezings_without_latents(name):
    stages = read(find(name))[2]
    assert [(s.start, s.num_frozen) for s in stages] == [(0, 0), *FREEZINGS_ONLY[name]]
    assert {s.objectives for s in stages} == {(Objective(48, Pixels()),)}


@pytest.mark.parametrize("name", STAGES)
def test_stages_are_the_papers(name):
    assert read(find(name))[2] == STAGES[name]


def test_v_jepa_predicts_its_first_layer_and_then_the_frozen_ones():
    first, *stages = read(find("vjepa-l-layerlock"))[2]
    shallow = dataclasses.replace(PREDICTED, depth=1)
    assert first == Stage(0, 0, (Objective(24, shallow),))
    assert [(s.start, s.num_frozen, s.objectives[0].target.depth) for s in stages] == TABLE_9
    assert {dataclasses.replace(o.target, depth=1) for s in stages for o in s.objectives} == {shallow}
    assert stages[0].objectives == first.objectives  # so that the head of layer 1 is kept


def test_all_targets_of_table_5():
    first, *stages = read(find("table5-all-targets"))[2]
    assert first.objectives == (Objective(48, Pixels()),)
    assert [(s.start, s.num_frozen, s.objectives[-1].target.depth) for s in stages] == TABLE_10_G_56M
    assert [len(s.objectives) for s in stages] == list(range(2, 13))
    assert all(s.objectives[:-1] == before.objectives for before, s in zip([first, *stages], stages, strict=False))


@pytest.mark.parametrize("name", RUNS)
def test_run_is_the_papers(name):
    settings, config, _ = read(find(name))
    preset, num_layers, *run = RUNS[name]
    assert (settings["preset"], config.num_hidden_layers) == (preset, num_layers)
    keys = ("max_steps", "global_batch_size", "learning_rate", "warmup_steps", "weight_decay")
    assert [settings[key] for key in keys] == run
    expected = SETTINGS.get(name, {})
    assert {key: settings[key] for key in expected} == expected


@pytest.mark.parametrize("name", TRAINS_A_4DS)
def test_4ds_runs_share_table_8(name):
    settings, config, _ = read(find(name))
    assert (settings["mask_ratio"], settings["adam_beta1"], settings["adam_beta2"]) == (0.95, 0.9, 0.95)
    assert (config.num_frames, config.image_size, config.patch_size, config.tubelet_size) == (16, 224, 16, 2)


def test_masks_of_the_families():
    found = {}
    for path in PAPERS:
        settings, config, _ = read(path)
        masks = MaskArguments(**{name: value for name, value in settings.items() if name in MASK_FIELDS}).build()
        found[path.stem] = masks
        num_types = len(masks.blocks) if isinstance(masks, MultiBlockMasks) else 1
        assert config.decoder == "trunk" or config.num_mask_tokens == num_types
    assert found["vjepa-l-layerlock"] == found["vjepa-l"] == MultiBlockMasks(((8, 0.3),), group_size=8)
    assert found["vjepa-l-original"] == found["salt-l"] == MultiBlockMasks(((8, 0.15), (2, 0.7)), group_size=24)
    assert found["ucf101-small-4-blocks"] == TubeMask(0.9)
    assert found["table3-latents-const"] == RandomMask(0.95)


def test_blocks_of_ucf101_see_what_the_paper_says():
    _, config, _ = read(find("ucf101-tiny-4-blocks"))
    assert config.grid_size == (2, 8, 8) and config.values_per_token == 6144
    ((context_ids, target_ids),) = TubeMask(0.9)(config.grid_size, [0], 0)
    assert (context_ids.shape, target_ids.shape) == ((1, 14), (1, 114))


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_pixels_and_heads_start_as_in_the_code_of_the_paper(path):
    settings = load_recipe(path)
    config = LayerLockViTConfig.from_preset(
        settings["preset"], **{name: value for name, value in settings.items() if name in architecture_fields()}
    )
    is_4ds = settings["preset"].startswith("4ds")
    expected = ([0.0] * 3, [1.0] * 3) if is_4ds else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    assert (config.pixel_mean, config.pixel_std) == expected
    assert settings.get("heads_start_at_mean", True) == is_4ds


def test_demonstrations_take_as_many_steps():
    steps = {path.stem: load_recipe(path)["max_steps"] for path in PATHS if path.stem.startswith("demo")}
    assert steps.pop("demo-salt-teacher") + steps.pop("demo-salt") == 1200
    assert steps.pop("demo-fig1") == 420  # for a baseline and 24 branches
    assert set(steps.values()) == {1200} and len(steps) == 11


def test_small_recipes_differ_in_the_freezing_alone():
    mae, layerlock = load_recipe("small-mae"), load_recipe("small-layerlock")
    freezing = {"latent_patch_fraction", "freeze_start", "freeze_interval", "layers_per_freeze", "num_freezes"}
    assert set(layerlock) - set(mae) == freezing | {"switch_warmup_steps", "save_stages"}
    assert {name: layerlock[name] for name in mae} == mae


def test_small_recipes_are_made_shorter_by_max_steps_alone():
    arguments = StageArguments(**{k: v for k, v in load_recipe("small-layerlock").items() if k in STAGE_FIELDS})
    config = read(find("small-layerlock"))[1]
    starts = [stage.start for stage in arguments.build(config, max_steps=1000)]
    assert starts == [0, *range(500, 900, 50)]
    assert config.num_hidden_layers - config.num_decoder_layers == 8  # all before those that decode


def test_mini_warmups_of_table_6():
    found = {path.stem: load_recipe(path)["switch_warmup_steps"] for path in PATHS if path.stem.startswith("table6")}
    assert found == {"table6-no-warmup": 0, "table6-1k": 1000, "table6-3k": 3000}


@pytest.mark.parametrize("steps, frozen", [(160_000 - 1, 0), (160_000, 1), (169_999, 1), (170_000, 2), (470_000, 32)])
def test_g_freezes_a_layer_every_10000_steps(steps, frozen):
    stages = read(find("4ds-g-layerlock"))[2]
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


def test_freezings_as_shares_of_the_run(tiny_config):
    arguments = StageArguments(freeze_start=0.35, freeze_interval=0.13, num_freezes=3)
    assert [stage.start for stage in arguments.build(tiny_config, max_steps=1000)] == [0, 350, 480, 610]
    with pytest.raises(ValueError, match="max_steps must be set, as freeze_start=0.35 is a share of the run"):
        arguments.build(tiny_config)
    with pytest.raises(ValueError, match="freeze_interval must be a whole number of steps"):
        StageArguments(freeze_start=10, freeze_interval=2.5, num_freezes=3).build(tiny_config)


def test_the_compute_matched_baseline_of_salt():
    masks = [(366, 750), (100, 1100)]  # what V-JEPA's masks leave in groups of 24 (recipes of facebookresearch/jepa)
    flops, steps = {}, {}
    for name in ("salt-l-teacher", "salt-l", "salt-vjepa2-l-221k"):
        settings, config, (stage,) = read(find(name))
        flops[name], steps[name] = step_flops(config, stage, masks), settings["max_steps"]
    of_salt = sum(flops[name] * steps[name] for name in ("salt-l-teacher", "salt-l"))
    assert steps["salt-vjepa2-l-221k"] == round(of_salt / flops["salt-vjepa2-l-221k"])
