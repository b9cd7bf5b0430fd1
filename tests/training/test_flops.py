import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from layerlock_hf.models import LayerLockViTForPretraining
from layerlock_hf.training import FreezeSchedule, Latents, Objective, Stage, locked, mae, step_flops


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
