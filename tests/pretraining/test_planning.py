"""From settings, and from what runs record, to what costs depend on."""

import json

import pytest

from layerlock_hf.analysis.cost import nothing_frozen, run_flops
from layerlock_hf.models import LayerLockViTConfig
from layerlock_hf.pretraining.planning import given_settings, planned_run, recorded_run
from layerlock_hf.recipes import load_recipe, recipe_paths


RECORD = {
    "recipe": "demo",
    "settings": {"preset": "tiny", "mask_ratio": 0.5, "freeze_start": 0.5, "num_freezes": 1, "teacher": "nowhere"},
    "max_steps": 40,
    "clips_per_step": 16,
    "hardware": {"device": "CPU", "num_processes": 2, "num_cores": 2},
}


def test_flags_override_the_recipe_and_defaults_are_left_out():
    given = given_settings(
        ["--config", "4ds-g-layerlock", "--mask_ratio", "0.9", "--activation_checkpointing", "true"]
    )
    recipe = load_recipe("4ds-g-layerlock")
    assert given == recipe | {"config": "4ds-g-layerlock", "mask_ratio": 0.9, "activation_checkpointing": True}
    with pytest.raises(ValueError, match="--mask_ratios is not a known setting.*did you mean --mask_ratio?"):
        given_settings(["--config", "demo", "--mask_ratios", "0.9"])
    with pytest.raises(ValueError, match="did you mean --utilisation?"):
        given_settings(["--config", "demo", "--utilization", "0.9"], also=["utilisation"])
    with pytest.raises(ValueError, match="required: --config"):
        given_settings([])


def test_masks_of_several_kinds_are_averaged_over_groups():
    run = planned_run(load_recipe("salt-l"), "salt-l")
    means = [[run.mean(lambda sizes, k=kind, s=side: sizes[k][s]) for side in (0, 1)] for kind in (0, 1)]
    # (366, 750) and (100, 1100) are V-JEPA's own means over many groups
    assert means[0] == pytest.approx([366, 750], rel=0.1) and means[1] == pytest.approx([100, 1100], rel=0.1)
    largest = sum(map(sum, run.largest_masks))
    assert largest == max(sum(map(sum, sizes)) for sizes in run.masks) > sum(map(sum, means))


def test_precision_and_batches_are_read():
    run = planned_run(load_recipe("demo") | {"fp16": True, "gradient_checkpointing": True}, "demo")
    assert (run.bf16, run.tf32, run.checkpointing, run.batch_size, run.global_batch_size) == (
        True,
        False,
        True,
        16,
        16,
    )
    assert [stage.num_frozen for stage in run.stages] == [0, 1, 2, 3, 4]
    assert [stage.num_frozen for stage in run.unfrozen] == [0]


def test_every_recipe_can_be_planned():
    """And freezing never costs anything: what it saves is what its stages would take if all layers learned."""
    names = [name for name, path in recipe_paths().items() if path.parent.name != "readouts"]
    assert len(names) > 50
    for name in names:
        run = planned_run(load_recipe(name), name)
        cost, unfrozen = run_flops(run), run_flops(nothing_frozen(run))
        assert (0 < cost < unfrozen) if run.stages[-1].num_frozen else (cost == unfrozen), name


def test_a_run_needs_steps():
    with pytest.raises(ValueError, match="max_steps must be at least 1, got None: set the steps of the run"):
        planned_run({"preset": "tiny"}, "mine")


def test_the_sizes_of_a_given_teacher(tmp_path, tiny_sizes):
    LayerLockViTConfig.from_preset(
        "tiny", **tiny_sizes | {"hidden_size": 48, "num_attention_heads": 3}
    ).save_pretrained(tmp_path)
    settings = {"preset": "tiny", **tiny_sizes, "method": "teacher_latents", "max_steps": 5, "decoder": "predictor"}
    run = planned_run(settings | {"teacher": str(tmp_path)}, "salt")
    assert (run.teacher.hidden_size, run.config.teacher_hidden_size) == (48, 48)
    with pytest.raises(ValueError, match="teacher: cannot read the sizes of .*missing: there is no folder"):
        planned_run(settings | {"teacher": str(tmp_path / "missing")}, "salt")


def test_what_a_run_records(tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps(RECORD))
    run, hardware = recorded_run(tmp_path)
    assert (run.name, run.max_steps, run.global_batch_size, run.batch_size) == ("demo", 40, 16, 8)
    assert [stage.start for stage in run.stages] == [0, 20]
    assert hardware == {"device": "CPU", "num_processes": 2}


def test_folders_without_a_run(tmp_path):
    with pytest.raises(
        ValueError, match="RUN must be a folder of `layerlock pretrain`, got .*: it has no settings.js"
    ):
        recorded_run(tmp_path)
    for record in ({}, [], {**RECORD, "hardware": None}):
        (tmp_path / "settings.json").write_text(json.dumps(record))
        with pytest.raises(ValueError, match="settings.json is no record of a run"):
            recorded_run(tmp_path)
