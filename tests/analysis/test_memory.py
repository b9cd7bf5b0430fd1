"""The memory of stages against counts of each, and which batches fit."""

from dataclasses import replace

import pytest

from layerlock_hf.analysis import Machine, find_gpu
from layerlock_hf.analysis.memory import (
    activations_of_stages,
    as_ids,
    memory_of_stages,
    most_clips,
    one_by_one,
    what_fits,
)
from layerlock_hf.models import LayerLockViTConfig, LayerLockViTModel
from layerlock_hf.training.memory_plan import activation_bytes, held_bytes


PREDICTOR = {"decoder": "predictor", "predictor_hidden_size": 24, "predictor_num_attention_heads": 2}


@pytest.mark.parametrize("decoder", [{}, PREDICTOR | {"use_final_norm": True}])
def test_stages_between_two_counts_lie_on_a_line(plan_run, schedule, decoder):
    sizes = {"num_hidden_layers": 5, "num_decoder_layers": 1, "num_freezes": 5}
    run = plan_run(**schedule | decoder | sizes, bf16=True)
    counted = [activation_bytes(run.config, stage, as_ids(run.largest_masks), True) for stage in run.stages]
    assert activations_of_stages(run) == counted
    assert len({per_clip for per_clip, _ in counted}) > 4


def test_one_gpu_holds_what_was_counted(plan_run, two_freezes):
    run = plan_run(**two_freezes)
    clip = 5 * 4 * 3 * 16 * 16  # as bytes and as floats
    for stage, memory in zip(run.stages, memory_of_stages(run, Machine(find_gpu("a100"))), strict=True):
        held = held_bytes(run.config, stage, as_ids(run.largest_masks), False, 8)
        assert sum(memory.parts(8).values()) == held + 8 * clip


def test_more_gpus_hold_buckets_or_parts(plan_run):
    run = plan_run(bf16=True)
    one, ddp, fsdp = (
        memory_of_stages(run, Machine(find_gpu("a100"), *way))[0].fixed for way in ((1,), (2,), (2, True))
    )
    assert ddp["DDP's buckets"] == ddp["gradients"] == one["gradients"] and one["DDP's buckets"] == 0
    assert fsdp["moments"] == pytest.approx(one["moments"] / 2, rel=0.01) and fsdp["gathered"] > 0


def test_teachers_are_held_too(plan_run, tiny_sizes):
    settings = PREDICTOR | {"method": "teacher_latents"}
    with_teacher = memory_of_stages(plan_run(**settings), Machine(find_gpu("a100")))[0].fixed
    run = plan_run(**settings)
    encoder = LayerLockViTModel(run.config)
    assert with_teacher["teacher"] == 4 * encoder.num_parameters()
    small = LayerLockViTConfig.from_preset("tiny", **{**tiny_sizes, "num_hidden_layers": 3, "num_decoder_layers": 1})
    given = memory_of_stages(replace(run, teacher=small), Machine(find_gpu("a100"), 2, True))[0].fixed
    assert given["teacher"] == 4 * LayerLockViTModel(small).num_parameters()


def test_blocks_that_settle_keep_one_at_a_time(plan_run):
    settings = PREDICTOR | {"method": "blockwise", "predictor_depths": [2, 4, 6]}
    settling, together = (activations_of_stages(plan_run(**settings, settle_blocks=on))[0][0] for on in (True, False))
    run = plan_run(**settings)
    masks = as_ids(run.largest_masks)
    each = [activation_bytes(run.config, stage, masks, False)[0] for stage in one_by_one(run.stages[0])]
    assert settling == max(each)
    assert together <= sum(each) < 1.1 * together  # positions and targets are in each of them
    overlapping = plan_run(**settings, overlap=1)
    assert [stage.num_frozen for stage in one_by_one(overlapping.stages[0])] == [0, 1, 3]


def test_what_fits_on_which_card(plan_run):
    run = plan_run(freeze_start=2, freeze_interval=1, layers_per_freeze=6, max_frozen=6, bf16=True)
    first, last = what_fits(run, [80], [8])
    assert [row["frozen layers"] for row in (first, last)] == ["0", "6"]
    assert first["gradients"] > last["gradients"] and first["frozen"] < last["frozen"]
    assert first["all but activations, FSDP2 on 8"] < first["all but activations, one GPU"]
    plain, checkpointed = map(int, first["most clips, 80 GB, DDP"].split(" / "))
    assert 0 < plain <= checkpointed
    assert [most_clips(1, fixed, 10**8) for fixed in (0, 5 * 10**8, 10**9)] == [8, 2, 0]
