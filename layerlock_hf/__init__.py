"""LayerLock and its relatives: self-supervised pretraining of video ViTs with progressive freezing.

Importing the package registers the models with the Auto classes of Transformers, and the pipelines for depth and
classes of videos.
"""

from .utils import parents  # noqa: F401  # isort: skip  # which must come first
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForDepthEstimation,
    AutoModelForPreTraining,
    AutoModelForVideoClassification,
)

# The one at the root of Transformers is a placeholder where torchvision is missing
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .models import (
    Latents,
    LayerLockVideoProcessor,
    LayerLockViTConfig,
    LayerLockViTForDepthEstimation,
    LayerLockViTForPretraining,
    LayerLockViTForVideoClassification,
    LayerLockViTModel,
    Objective,
    Pixels,
    Stage,
    TransformersEncoder,
    TransformersEncoderConfig,
    TransformersEncoderForDepthEstimation,
    TransformersEncoderForVideoClassification,
    VideoDepthEstimationPipeline,
    post_process_depth_estimation,
    readout_depth_from_fraction,
)
from .models.pipeline_video_classification import HeedingVideoClassificationPipeline


__version__ = "0.1.0.dev0"

AutoConfig.register(LayerLockViTConfig.model_type, LayerLockViTConfig, exist_ok=True)
AutoModel.register(LayerLockViTConfig, LayerLockViTModel, exist_ok=True)
AutoModelForPreTraining.register(LayerLockViTConfig, LayerLockViTForPretraining, exist_ok=True)
AutoVideoProcessor.register(LayerLockViTConfig, LayerLockVideoProcessor, exist_ok=True)
AutoModelForVideoClassification.register(LayerLockViTConfig, LayerLockViTForVideoClassification, exist_ok=True)
AutoModelForDepthEstimation.register(LayerLockViTConfig, LayerLockViTForDepthEstimation, exist_ok=True)
# In the place of its parent; registering it would log that at every import
PIPELINE_REGISTRY.supported_tasks["video-classification"]["impl"] = HeedingVideoClassificationPipeline
PIPELINE_REGISTRY.register_pipeline(
    "video-depth-estimation", VideoDepthEstimationPipeline, pt_model=AutoModelForDepthEstimation, type="video"
)

AutoConfig.register(TransformersEncoderConfig.model_type, TransformersEncoderConfig, exist_ok=True)
AutoModel.register(TransformersEncoderConfig, TransformersEncoder, exist_ok=True)
AutoVideoProcessor.register(TransformersEncoderConfig, LayerLockVideoProcessor, exist_ok=True)
AutoModelForVideoClassification.register(
    TransformersEncoderConfig, TransformersEncoderForVideoClassification, exist_ok=True
)
AutoModelForDepthEstimation.register(TransformersEncoderConfig, TransformersEncoderForDepthEstimation, exist_ok=True)

__all__ = [
    "TransformersEncoder",
    "TransformersEncoderConfig",
    "TransformersEncoderForDepthEstimation",
    "TransformersEncoderForVideoClassification",
    "Latents",
    "LayerLockViTConfig",
    "LayerLockViTForDepthEstimation",
    "LayerLockViTForPretraining",
    "LayerLockViTForVideoClassification",
    "LayerLockViTModel",
    "LayerLockVideoProcessor",
    "Objective",
    "Pixels",
    "Stage",
    "VideoDepthEstimationPipeline",
    "post_process_depth_estimation",
    "readout_depth_from_fraction",
]
