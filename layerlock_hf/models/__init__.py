from .configuration_layerlock import PRESETS, LayerLockViTConfig
from .modeling_layerlock import LayerLockViTModel, LayerLockViTPreTrainedModel, patchify, unpatchify
from .modeling_layerlock_pretraining import LayerLockViTForPretraining, LayerLockViTForPretrainingOutput
from .objectives import Latents, Objective, Pixels, Stage
from .video_processing_layerlock import LayerLockVideoProcessor


__all__ = [
    "PRESETS",
    "LayerLockViTConfig",
    "LayerLockViTForPretraining",
    "LayerLockViTForPretrainingOutput",
    "LayerLockViTModel",
    "LayerLockViTPreTrainedModel",
    "LayerLockVideoProcessor",
    "Latents",
    "Objective",
    "Pixels",
    "Stage",
    "patchify",
    "unpatchify",
]
