"""What a run costs: the figures of recipes that were worked out by hand, and what must hold of any plan."""

import json
from dataclasses import replace

import pytest

from layerlock_hf.analysis import Machine, find_gpu, plan_cost
from layerlock_hf.analysis.cost import as_mae, clip_flops, executed_clip_flops, nothing_frozen, run_flops
from layerlock_hf.models import LayerLockViTForPretraining
from layerlock_hf.pretraining.planning import given_settings, planned_run


def of_recipe(name, *flags):
    return planned_run(given_settings(["--config", name, *flags]), name)


# ---- recipes.md, E.4


def test_steps_of_4ds_g_are_those_worked_out_by_hand():
    run = of_recipe("4ds-g-layerlock")
    counts = [clip_flops(run, run.stages[index]) / 1e12 for index in (0, 1, 16, 32)]
    assert counts == pytest.approx([2.53, 2.67, 4.54, 6.53], rel=0.01)
    assert clip_flops(run, run.stages[0]) / 3 == pytest.approx(850e9, rel=0.01)
    frozen = [clip_flops(run, replace(run.unfrozen[0], num_frozen=number)) for number in (1, 2)]
    assert frozen[0] - frozen[1] == pytest.approx(12.0e9, rel=0.01)


@pytest.mark.parametrize(
    ("name", "ratio"),
    [("4ds-g-layerlock", 1.56), ("4ds-g-layerlock-5pct", 0.547), ("sec41-freezing-only-1b-table8", 1 - 0.054)],
)
def test_runs_of_4ds_g_beside_mae(name, ratio):
    run = of_recipe(name)
    assert run_flops(run) / run_flops(of_recipe("4ds-g-mae")) == pytest.approx(ratio, rel=0.01)
    assert run_flops(as_mae(run)) == run_flops(replace(run, stages=run.unfrozen)) == run_flops(of_recipe("4ds-g-mae"))


def test_shared_tokens_save_three_projections():
    """Of 1,568 decoding tokens, forward and backward: 78 GF of a clip as far as others share them."""
    run = of_recipe("4ds-g-layerlock")
    saved = [clip_flops(run, run.stages[0]) - executed_clip_flops(run, run.stages[0], size) for size in (1, 2, 64)]
    by_hand = 3 * 3 * 1568 * 2 * 1664**2
    assert saved == pytest.approx([0, by_hand / 2, by_hand * 63 / 64])


def test_two_layers_by_hand(plan_run):
    """Of width 4 with MLPs of 8, 8 tokens of 12 values, of which 2 are seen; the second layer decodes all 8."""
    sizes = {"hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1}
    sizes |= {"num_decoder_layers": 1, "image_size": 4, "patch_size": 2, "tubelet_size": 1, "num_frames": 2}
    run = plan_run(**sizes)
    assert run.masks[0] == ((2, 8),)
    embedding = 2 * (2 * 12 * 4)
    first = 2 * (4 * 2 * 4 * 4) + 2 * (2 * 2 * 2 * 4) + 2 * (2 * 2 * 4 * 8)
    # Ten tokens are attended to, eight are computed
    second = 10 * (2 * 2 * 4 * 4) + 8 * (2 * 2 * 4 * 4) + 8 * (2 * 2 * 10 * 4) + 8 * (2 * 2 * 4 * 8)
    head = 8 * (2 * 4 * 12)
    assert clip_flops(run, run.stages[0]) == 2 * embedding + 3 * (first + second + head)
    frozen = replace(run.stages[0], num_frozen=1)
    assert clip_flops(run, frozen) == embedding + first + 3 * (second + head)


# ---- any plan


def test_a_plan_is_one_object_that_adds_up(plan_run, schedule):
    run = plan_run(**schedule)
    plan = json.loads(json.dumps(plan_cost(run, Machine(find_gpu("a100"), 2, utilisation=0.5, price=3.0))))
    stages = plan["stages"]
    assert [stage["start"] for stage in stages] == [0, 40, 50, 60, 70, 80, 90]
    assert [stage["num_frozen"] for stage in stages] == list(range(7))
    assert [stage["target"] for stage in stages] == ["pixels", *(f"layer_{depth}" for depth in range(1, 7))]
    assert stages[-1]["cumulative_flops"] == pytest.approx(plan["total_flops"])
    assert sum(stage["share"] for stage in stages) == pytest.approx(1)
    assert plan["total_flops"] == pytest.approx(
        8 * sum(stage["num_steps"] * stage["step_flops_per_clip"] for stage in stages)
    )
    assert (plan["batch_size"], plan["clips_per_step"]) == (4, 8)
    executed = 8 * sum(stage["num_steps"] * stage["executed_flops_per_clip"] for stage in stages)
    assert plan["hours"] * 3600 == pytest.approx(executed / (2 * 19.5e12 * 0.5))  # in fp32
    assert plan["price"] == pytest.approx(plan["hours"] * 2 * 3)
    assert all(sum(stage["memory"].values()) == stage["memory_bytes"] for stage in stages)
    assert plan["peak_memory_bytes"] == stages[0]["memory_bytes"] > stages[-1]["memory_bytes"]


def test_what_learns_is_reduced_in_fp32(plan_run, two_freezes):
    run = plan_run(**two_freezes)
    model = LayerLockViTForPretraining(run.config)
    reduced = {
        way: [stage["allreduce_bytes"] for stage in plan_cost(run, Machine(find_gpu("a100"), *way))["stages"]]
        for way in ((1,), (2,), (2, True))
    }
    for index, stage in enumerate(run.stages):
        model.freeze_for(stage)
        assert reduced[(2,)][index] == 4 * model.num_parameters(only_trainable=True)
    assert not any(reduced[(1,)]) and not any(reduced[2, True])


def test_every_stage_costs_its_own_steps(plan_run):
    once = {"num_freezes": 1, "predict_latents": False}
    plain, half, whole = (
        run_flops(plan_run(**settings)) for settings in ({}, {"freeze_start": 50, **once}, {"freeze_start": 1, **once})
    )
    assert whole < half < plain
    assert (plain - half) / (plain - whole) == pytest.approx(50 / 99)
    late = plan_run(freeze_start=150, **once)
    assert run_flops(late) == plain and late.lengths(late.stages) == [100, 0]


def test_what_runs_are_compared_with(plan_run, schedule):
    run = plan_run(**schedule)
    assert [stage.labels for stage in run.unfrozen] == [["pixels"]]
    frozen, learning = run_flops(run), run_flops(nothing_frozen(run))
    assert run_flops(replace(run, stages=run.unfrozen)) < frozen < learning
    blocks = {"decoder": "predictor", "predictor_depths": [2, 4, 6], "mask": "tube", "mask_ratio": 0.75}
    in_sequence = plan_run(**blocks, method="blockwise_in_sequence", steps_per_block=30)
    assert [stage.num_frozen for stage in in_sequence.stages] == [0, 2, 4]
    assert [stage.num_frozen for stage in in_sequence.unfrozen] == [0, 0, 0]
    # Tube masks ask for the hidden tokens only, MAE on all patches for all
    assert run_flops(as_mae(in_sequence)) > run_flops(plan_run(**blocks))


def test_checkpointing_costs_time_and_saves_memory(plan_run, two_freezes):
    machine = Machine(find_gpu("a100"))
    plain, checkpointed = (
        plan_cost(plan_run(**two_freezes, activation_checkpointing=on), machine) for on in (False, True)
    )
    assert plain["hours"] < checkpointed["hours"] < 4 / 3 * plain["hours"]
    assert plain["total_flops"] == checkpointed["total_flops"]
    assert plain["peak_memory_bytes"] > checkpointed["peak_memory_bytes"]


def test_batches_must_divide(plan_run):
    with pytest.raises(
        ValueError, match="global_batch_size must be a multiple of 3 GPUs times 4 clips at a time, got 8"
    ):
        plan_cost(plan_run(per_device_train_batch_size=4), Machine(find_gpu("a100"), 3))
    open_size = plan_cost(plan_run(global_batch_size=None, gradient_accumulation_steps=3), Machine(find_gpu("l4"), 2))
    assert (open_size["batch_size"], open_size["clips_per_step"]) == (8, 48)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"utilisation": 0.0}, "utilisation must be between 0.01 and 1, got 0.0"),
        ({"utilisation": 1.5}, "utilisation must be between 0.01 and 1, got 1.5"),
        ({"price": -1.0}, "price must be at least 0, got -1.0"),
        ({"num_gpus": 0}, "num_gpus must be at least 1, got 0"),
    ],
)
def test_machines_that_there_are_not(given, message):
    with pytest.raises(ValueError, match=message):
        Machine(find_gpu("a100"), **given)


def test_gpus_are_known_by_name():
    assert find_gpu("H200").gigabytes == 141
    gpu = find_gpu("a100")
    assert (gpu.peak(True, False), gpu.peak(False, True), gpu.peak(False, False)) == (312e12, 156e12, 19.5e12)
    with pytest.raises(ValueError, match="gpu must be one of a10, a100, .*, got tpu: choose the one most like yours"):
        find_gpu("tpu")
