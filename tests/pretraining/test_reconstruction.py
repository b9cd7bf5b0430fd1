"""Reconstructions: what was seen stays, what was predicted comes in its place."""

from types import SimpleNamespace

import pytest
import torch

from layerlock_hf import LayerLockViTForPretraining, Objective, Pixels
from layerlock_hf.data import MaskArguments
from layerlock_hf.models import patchify
from layerlock_hf.pretraining.reconstruction import GREY, reconstruct


MASKS = MaskArguments(mask="random", mask_ratio=0.75).build()


@pytest.mark.parametrize("normalize", [False, True])
def test_a_model_that_knows_the_target_reconstructs_the_clip(tiny_config, normalize):
    model, clips = LayerLockViTForPretraining(tiny_config), torch.rand(2, 4, 3, 16, 16)
    objective = Objective(tiny_config.decoder_depths[-1], Pixels(normalize), patch_fraction=0.5)

    def knows(video, context_ids, target_ids, stage):
        (one,) = stage.objectives
        return SimpleNamespace(predictions=[one.target.compute({"encoder": model.encoder}, video, target_ids)])

    knows.config = tiny_config
    seen, completed = reconstruct(knows, clips, MASKS, objective)
    torch.testing.assert_close(completed, clips, atol=1e-4, rtol=0)
    is_seen = (patchify(seen, 2, 4) == patchify(clips, 2, 4)).all(dim=-1)
    assert is_seen.sum(dim=1).tolist() == [8, 8]
    assert (patchify(seen, 2, 4)[~is_seen] == GREY).all()


def test_of_several_types_of_mask_the_first_is_shown(tiny_config):
    model, clips = LayerLockViTForPretraining(tiny_config).eval(), torch.rand(2, 4, 3, 16, 16)
    (objective,) = model.pixel_stage.objectives
    shown = reconstruct(model, clips, MaskArguments(mask="multiblock").build(), objective)
    assert [one.shape for one in shown] == [clips.shape, clips.shape]
