"""LayerLock and its relatives: self-supervised pretraining of video ViTs with progressive freezing.

Importing the package registers the models with the Auto classes of Transformers, and the pipelines for depth and
classes of videos.
"""

from .utils import parents  # noqa: F401  # isort: skip  # which must come first
import importlib

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
from .utils.version import VERSION


# What takes longer to import than the models, and is imported when it is first asked for
_FUNCTIONS = {
    "build_trainer": "pretraining.build",
    "embed": "embedding.run",
    "export": "pretraining.exporting",
    "export_graph": "pretraining.graphs",
    "health": "pretraining.health",
    "load_recipe": "recipes",
    "pretrain": "pretraining.run",
    "push": "pretraining.pushing",
    "report": "reporting.writing",
    "search": "embedding.search",
    "train_readouts": "evaluation.run",
}
__version__ = VERSION


def __getattr__(name: str):
    if name not in _FUNCTIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FUNCTIONS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_FUNCTIONS})


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
    "build_trainer",
    "embed",
    "export",
    "export_graph",
    "health",
    "load_recipe",
    "post_process_depth_estimation",
    "pretrain",
    "push",
    "readout_depth_from_fraction",
    "report",
    "search",
    "train_readouts",
]
