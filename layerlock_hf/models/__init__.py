from .configuration_layerlock import PRESETS, LayerLockViTConfig
from .configuration_layerlock_readout import LayerLockReadoutConfig, readout_depth_from_fraction
from .configuration_transformers_encoder import TransformersEncoderConfig
from .modeling_layerlock import LayerLockViTModel, LayerLockViTPreTrainedModel, patchify, unpatchify
from .modeling_layerlock_pretraining import LayerLockViTForPretraining, LayerLockViTForPretrainingOutput
from .modeling_layerlock_readout import (
    AttentionReadout,
    LayerLockViTForDepthEstimation,
    LayerLockViTForVideoClassification,
    post_process_depth_estimation,
)
from .modeling_transformers_encoder import (
    TransformersEncoder,
    TransformersEncoderForDepthEstimation,
    TransformersEncoderForVideoClassification,
)
from .objectives import Latents, Objective, Pixels, Stage
from .pipeline_video_depth import VideoDepthEstimationPipeline
from .video_processing_layerlock import LayerLockVideoProcessor


__all__ = [
    "PRESETS",
    "TransformersEncoder",
    "TransformersEncoderConfig",
    "TransformersEncoderForDepthEstimation",
    "TransformersEncoderForVideoClassification",
    "AttentionReadout",
    "LayerLockReadoutConfig",
    "LayerLockViTConfig",
    "LayerLockViTForDepthEstimation",
    "LayerLockViTForPretraining",
    "LayerLockViTForPretrainingOutput",
    "LayerLockViTForVideoClassification",
    "LayerLockViTModel",
    "LayerLockViTPreTrainedModel",
    "LayerLockVideoProcessor",
    "Latents",
    "Objective",
    "Pixels",
    "Stage",
    "VideoDepthEstimationPipeline",
    "patchify",
    "post_process_depth_estimation",
    "readout_depth_from_fraction",
    "unpatchify",
]
