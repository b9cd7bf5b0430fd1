"""A trainer of a model of six layers, of four stages in ten steps, for the tests of the trainer."""

import copy

from toy_methods import SETTINGS, MaskedClips
from transformers import set_seed

from layerlock_hf.models import LayerLockViTForPretraining
from layerlock_hf.training import (
    FreezeSchedule,
    LayerLockTrainer,
    LayerLockTrainingArguments,
    locked,
    mae,
)


# Four stages in ten steps: pixels, then layers 2, 4 and 6 frozen and predicted from steps 3, 5 and 7 on
STAGES = locked(mae(6), FreezeSchedule(3, 2, 2, num_freezes=3), patch_fraction=0.5)
LATENTS = "decoders.6.heads.latents"
SWITCHES = (3, 5, 7)


def arguments(output_dir, **kwargs):
    return LayerLockTrainingArguments(output_dir=str(output_dir), **{**SETTINGS, **kwargs})


def make_trainer(config, output_dir, stages=STAGES, dataset=None, freezing=None, **kwargs):
    set_seed(0)
    model = LayerLockViTForPretraining(copy.deepcopy(config))
    return LayerLockTrainer(
        model, arguments(output_dir, **kwargs), stages, dataset or MaskedClips(), freezing=freezing
    )


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
