from .configuration_any_encoder import AnyEncoderConfig
from .configuration_layerlock import PRESETS, LayerLockViTConfig
from .configuration_layerlock_readout import LayerLockReadoutConfig, readout_depth_from_fraction
from .modeling_any_encoder import AnyEncoder, AnyEncoderForDepthEstimation, AnyEncoderForVideoClassification
from .modeling_layerlock import LayerLockViTModel, LayerLockViTPreTrainedModel, patchify, unpatchify
from .modeling_layerlock_pretraining import LayerLockViTForPretraining, LayerLockViTForPretrainingOutput
from .modeling_layerlock_readout import (
    AttentionReadout,
    LayerLockViTForDepthEstimation,
    LayerLockViTForVideoClassification,
    post_process_depth_estimation,
)
from .objectives import Latents, Objective, Pixels, Stage
from .pipeline_video_depth import VideoDepthEstimationPipeline
from .video_processing_layerlock import LayerLockVideoProcessor


__all__ = [
    "PRESETS",
    "AnyEncoder",
    "AnyEncoderConfig",
    "AnyEncoderForDepthEstimation",
    "AnyEncoderForVideoClassification",
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
