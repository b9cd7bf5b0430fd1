"""The classes of models that cards are written for."""

from collections.abc import Callable
from dataclasses import dataclass

from . import snippets
from .snippets import Snippet, Source


FEATURES = (
    "Meant for features of short videos. Heads for classes, depth or retrieval are trained on them while the encoder "
    "stays as it is."
)


@dataclass(frozen=True)
class Kind:
    """A class of models.

    Args:
        title: of a model that has no name.
        summary: what it is.
        use: what it is meant for.
        pipeline_tag: where the Hub lists it.
        decodes: whether it has the decoder of its pretraining.
        snippet: code for its task.
    """

    title: str
    summary: str
    use: str
    pipeline_tag: str = "feature-extraction"
    decodes: bool = False
    snippet: Callable[[Source], Snippet] = snippets.new_readout

    @property
    def has_readout(self) -> bool:
        """Whether it has a head for a task."""
        return self.pipeline_tag != "feature-extraction"


CLASSIFIER = Kind(
    "Video classifier",
    "A video transformer and a readout, a small head on its features, which tells what happens in a video.",
    "Meant to tell which of {classes} a video shows.",
    "video-classification",
    snippet=snippets.classification,
)
DEPTH_ESTIMATOR = Kind(
    "Video depth estimator",
    "A video transformer and a readout, a small head on its features, which estimates the depth of every frame.",
    "Meant to estimate how far away everything in a video is, in metres.",
    "depth-estimation",
    snippet=snippets.depth,
)
# From `architectures` of config.json
KINDS = {
    "LayerLockViTModel": Kind(
        "LayerLock video encoder", "A video transformer that turns clips of a video into features.", FEATURES
    ),
    "LayerLockViTForPretraining": Kind(
        "LayerLock video encoder and decoder",
        "A video transformer that turns clips of a video into features, and the decoder of its self-supervised "
        "pretraining.",
        FEATURES,
        decodes=True,
    ),
    "LayerLockViTForVideoClassification": CLASSIFIER,
    "LayerLockViTForDepthEstimation": DEPTH_ESTIMATOR,
    "TransformersEncoder": Kind(
        "Video encoder", "A model of Transformers that turns clips of a video into features.", FEATURES
    ),
    "TransformersEncoderForVideoClassification": CLASSIFIER,
    "TransformersEncoderForDepthEstimation": DEPTH_ESTIMATOR,
}
