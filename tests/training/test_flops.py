from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import VideoMAEConfig, VideoMAEModel

from layerlock_hf.models import LayerLockViTConfig, LayerLockViTForPretraining, LayerLockViTModel
from layerlock_hf.training import (
    FreezeSchedule,
    Latents,
    Objective,
    Pixels,
    Stage,
    as_teacher,
    blockwise,
    blockwise_in_sequence,
    executed_flops,
    forward_flops,
    locked,
    mae,
    mae_and_latents,
    step_flops,
    teacher_latents,
)
from layerlock_hf.training.teachers import EMATeacher, sizes_of


def measured(config, stage, num_context):
    config._attn_implementation = "eager"
    model = LayerLockViTForPretraining(config)
    model.freeze_for(stage)
    with FlopCounterMode(display=False) as counter:
        model(
            torch.rand(1, 4, 3, 16, 16),
            torch.randperm(32)[None, :num_context],
            target_ids=torch.randperm(32)[None],
            stage=stage,
        ).loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("num_context", [4, 12])
@pytest.mark.parametrize("fraction", [1.0, 0.25])
def test_pixel_stage_is_what_pytorch_counts(tiny_config, num_context, fraction):
    (stage,) = mae(6, patch_fraction=fraction)
    assert step_flops(tiny_config, stage, [(num_context, None)]) == measured(tiny_config, stage, num_context)


@pytest.mark.parametrize("fraction", [1.0, 0.25])
@pytest.mark.parametrize("num_frozen", range(1, 7))
def test_latent_stages_are_what_pytorch_counts(tiny_config, num_frozen, fraction):
    stage = Stage(1, num_frozen, (Objective(6, Latents(num_frozen), patch_fraction=fraction),))
    assert step_flops(tiny_config, stage, [(8, None)]) == measured(tiny_config, stage, 8)


def test_flops_fall_with_freezing_alone(tiny_config):
    stages = locked(mae(6), FreezeSchedule(1, 1, num_freezes=6), predict_latents=False)
    counts = [step_flops(tiny_config, stage, [(8, None)]) for stage in stages]
    assert all(after < before for before, after in zip(counts, counts[1:], strict=False)), counts
    real = [measured(tiny_config, stage, 8) for stage in stages]
    assert all(after < before for before, after in zip(real, real[1:], strict=False)), real


def test_flops_of_another_grid(tiny_config):
    (stage,) = mae(6)
    assert step_flops(tiny_config, stage, [(8, None)], 32) == step_flops(tiny_config, stage, [(8, None)])
    assert step_flops(tiny_config, stage, [(8, None)], 64) > step_flops(tiny_config, stage, [(8, None)])


# ---- predictors, teachers, blocks, several types of mask


PREDICTOR = {
    "decoder": "predictor",
    "predictor_hidden_size": 24,
    "predictor_num_attention_heads": 2,
    "position_embedding": "sincos",
    "use_final_norm": True,
    "num_mask_tokens": 2,
}
SIZES = [(8, 20), (5, 11)]  # context and target tokens of each type of mask


def count(model, stage, sizes, teacher=None, settle_blocks=False):
    orders = [torch.randperm(32)[None] for _ in sizes]
    masks = {
        "context_ids": [order[:, :seen] for order, (seen, _) in zip(orders, sizes, strict=True)],
        "target_ids": [order[:, -wanted:] for order, (_, wanted) in zip(orders, sizes, strict=True)],
    }
    model.freeze_for(stage)
    with FlopCounterMode(display=False) as counter:
        video = torch.rand(1, 4, 3, 16, 16)
        model(video, **masks, stage=stage, teacher=teacher, settle_blocks=settle_blocks).loss.backward()
    return counter.get_total_flops()


def make_model(tiny_sizes, **kwargs):
    config = LayerLockViTConfig.from_preset("tiny", **tiny_sizes, **{**PREDICTOR, **kwargs})
    config._attn_implementation = "eager"
    return LayerLockViTForPretraining(config), config


@pytest.mark.parametrize("sizes", [SIZES[:1], SIZES])
@pytest.mark.parametrize("num_frozen", [0, 2, 6])
def test_predictor_is_what_pytorch_counts(tiny_sizes, sizes, num_frozen):
    model, config = make_model(tiny_sizes)
    stage = Stage(0, num_frozen, (Objective(6, Pixels(True)),))
    assert step_flops(config, stage, sizes) == count(model, stage, sizes)


@pytest.mark.parametrize("sizes", [SIZES[:1], SIZES])
@pytest.mark.parametrize("num_frozen, depth", [(0, 6), (2, 2), (4, 1)])
def test_moving_teacher_is_what_pytorch_counts(tiny_sizes, sizes, num_frozen, depth):
    model, config = make_model(tiny_sizes)
    stage = Stage(0, num_frozen, teacher_latents(6, depth)[0].objectives)
    teacher = EMATeacher(model.encoder).network
    assert step_flops(config, stage, sizes, teacher=teacher.config) == count(model, stage, sizes, teacher)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_teacher_of_another_size_is_what_pytorch_counts(tiny_sizes, fraction):
    model, config = make_model(tiny_sizes, teacher_hidden_size=48)
    sizes = {**tiny_sizes, "hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 3}
    theirs = LayerLockViTConfig.from_preset("tiny", **sizes)
    theirs._attn_implementation = "eager"
    (objective,) = teacher_latents(6, 3)[0].objectives
    stage = Stage(0, 0, (replace(objective, patch_fraction=fraction),))
    found = count(model, stage, SIZES, LayerLockViTModel(theirs))
    assert step_flops(config, stage, SIZES, teacher=theirs) == found


def test_foreign_teacher_is_what_pytorch_counts(tiny_sizes):
    model, config = make_model(tiny_sizes, teacher_hidden_size=48)
    theirs = VideoMAEConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=80,
        image_size=16,
        patch_size=4,
        num_frames=4,
        attn_implementation="eager",
    )
    teacher, (stage,) = as_teacher(VideoMAEModel(theirs)), teacher_latents(6, 3)
    teacher.grid_size(torch.rand(1, 4, 3, 16, 16))  # which is measured once, before anything is counted
    assert step_flops(config, stage, SIZES, teacher=sizes_of(teacher.config)) == count(model, stage, SIZES, teacher)


@pytest.mark.parametrize("settle_blocks", [False, True])
@pytest.mark.parametrize("overlap", [0, 1, 2, 3])
@pytest.mark.parametrize("sizes", [SIZES[:1], SIZES])
def test_blocks_are_what_pytorch_counts(tiny_sizes, sizes, overlap, settle_blocks):
    model, config = make_model(tiny_sizes, predictor_depths=[2, 4, 6])
    (stage,) = blockwise([2, 4, 6], overlap=overlap)
    assert step_flops(config, stage, sizes) == count(model, stage, sizes, settle_blocks=settle_blocks)


def test_blocks_in_sequence_are_what_pytorch_counts(tiny_sizes):
    model, config = make_model(tiny_sizes, predictor_depths=[2, 4, 6])
    for stage in blockwise_in_sequence([2, 4, 6], 5):
        assert step_flops(config, stage, SIZES) == count(model, stage, SIZES)


@pytest.mark.parametrize("decoder", ["trunk", "predictor"])
def test_several_targets_are_what_pytorch_counts(tiny_sizes, decoder):
    model, config = make_model(tiny_sizes, decoder=decoder, latent_head_depths=[2, 4])
    unfrozen = mae_and_latents(6, [2, 4])
    kept = locked(mae(6), FreezeSchedule(1, 1, 2, num_freezes=2), keep_targets=True)
    for stage in (*unfrozen, *kept):
        assert step_flops(config, stage, SIZES) == count(model, stage, SIZES), stage


# ---- what a batch computes


def flops_of_batch(model, stage, sizes, num_clips, teacher=None) -> tuple[int, int]:
    """Of the forward passes, and of the whole step, of a batch with its own masks for every clip."""
    orders = [torch.stack([torch.randperm(32) for _ in range(num_clips)]) for _ in sizes]
    masks = {
        "context_ids": [order[:, :seen] for order, (seen, _) in zip(orders, sizes, strict=True)],
        "target_ids": [order[:, -wanted:] for order, (_, wanted) in zip(orders, sizes, strict=True)],
    }
    model.freeze_for(stage)
    with FlopCounterMode(display=False) as counter:
        loss = model(torch.rand(num_clips, 4, 3, 16, 16), **masks, stage=stage, teacher=teacher).loss
        in_forward = counter.get_total_flops()
        loss.backward()
    return in_forward, counter.get_total_flops()


EVERY_STAGE = locked(mae(6), FreezeSchedule(1, 1, num_freezes=6))
# Nothing frozen, the first layer, all that see the context alone, and layers that decode
SOME_STAGES = [EVERY_STAGE[num_frozen] for num_frozen in (0, 1, 4, 5, 6)]
SOME, BOTH = [(8, 20)], [(8, 32), (5, 11)]


@pytest.mark.parametrize("decoder", ["trunk", "predictor"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("sizes", [SOME, BOTH])
def test_batches_are_what_pytorch_counts(tiny_sizes, decoder, checkpointing, sizes):
    """Stages, and one of a fraction of the tokens; of the shared tokens a batch computes less than its clips."""
    model, config = make_model(tiny_sizes, decoder=decoder)
    model.train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    fraction = locked(mae(6), FreezeSchedule(1, 1, num_freezes=1), patch_fraction=0.25)[1:]
    for stage in [*SOME_STAGES, *fraction]:
        in_forward, in_step = flops_of_batch(model, stage, sizes, 3)
        counted = executed_flops(config, stage, sizes, 3, checkpointing=checkpointing)
        assert counted == in_step, stage
        alone = 3 * step_flops(config, stage, sizes)
        is_shared = decoder == "trunk" and sizes != SOME and stage not in fraction
        if not checkpointing:
            assert (counted < alone) if is_shared else (counted == alone)
        assert (in_forward < 3 * forward_flops(config, stage, sizes)) == is_shared
        assert in_forward <= 3 * forward_flops(config, stage, sizes)


@pytest.mark.parametrize("decoder", ["trunk", "predictor"])
def test_forward_passes_are_what_pytorch_counts(tiny_sizes, decoder):
    model, config = make_model(tiny_sizes, decoder=decoder)
    for stage in EVERY_STAGE:
        in_forward, in_step = flops_of_batch(model, stage, BOTH, 1)
        assert (forward_flops(config, stage, BOTH), step_flops(config, stage, BOTH)) == (in_forward, in_step)
        assert executed_flops(config, stage, BOTH, 1) == in_step
