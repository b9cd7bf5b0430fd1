"""What all configurations of models with readouts share, whichever encoder they read."""

import copy
import math
import os
from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .remote_code import IS_REMOTE, write_code


DEPTH_PIPELINE = {
    "video-depth-estimation": {
        "impl": "pipeline_video_depth.VideoDepthEstimationPipeline",
        "pt": ["AutoModelForDepthEstimation"],
        "type": "video",
    }
}
# What files say for where the package is not installed. It registers classes and pipelines itself, and Transformers
# would ask for `trust_remote_code` if it met the pipelines in a configuration
FOR_REMOTE_CODE = ("auto_map", "custom_pipelines")


@strict
class LayerLockReadoutConfig(PreTrainedConfig):
    """Clips and readouts. What derives from it also tells `hidden_size`, `num_hidden_layers`, `pixel_mean` and
    `pixel_std` of its encoder.

    Args:
        image_size: height and width of the clips, in pixels.
        num_frames: frames per clip.
        hidden_act: activation of the MLPs.
        layer_norm_eps: epsilon of the layer norms.
        initializer_range: initial standard deviation of the linear layers; None: as in the 4DS code.
        readout_depth: number of layers below the readouts, which read the output of the last of these; None: all.
            `readout_depth_from_fraction` gives the depth that the original code means by a fraction.
        readout_num_frames: steps of time that the readouts resize the features to; None is `num_frames`.
        readout_hidden_size: width of the readouts (LayerLock, Table 11).
        readout_num_attention_heads: attention heads of the readouts.
        readout_intermediate_size: hidden width of the readouts' MLP; None is four times their width.
        decoding_patch_size: frames, rows and columns of the box of pixels that a query of the depth readout predicts.
        train_encoder: train the encoder together with a readout. By default it is frozen and only the readout learns.
    """

    auto_classes: ClassVar[dict[str, str]]  # the `auto_map` of what is saved, of every class derived from this one

    image_size: int = 224
    num_frames: int = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    initializer_range: float | None = None
    readout_depth: int | None = None
    readout_num_frames: int | None = None
    readout_hidden_size: int = 1024
    readout_num_attention_heads: int = 16
    readout_intermediate_size: int | None = None
    decoding_patch_size: list[int] | tuple[int, ...] = (2, 8, 8)
    train_encoder: bool = False

    def __post_init__(self, **kwargs):
        if not IS_REMOTE:
            kwargs = {name: value for name, value in kwargs.items() if name not in FOR_REMOTE_CODE}
        super().__post_init__(**kwargs)
        self.decoding_patch_size = list(self.decoding_patch_size)  # as JSON has it

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs):
        """As in Transformers, and beside it the code that loads the model where the package is not installed."""
        saved = copy.copy(self)
        saved.auto_map = dict(self.auto_classes)
        classes = [*self.auto_classes.values()]
        if any(name.endswith("ForDepthEstimation") for name in self.architectures or ()):
            saved.custom_pipelines = DEPTH_PIPELINE
            classes += [pipeline["impl"] for pipeline in DEPTH_PIPELINE.values()]
        write_code(save_directory, classes, self)
        super(LayerLockReadoutConfig, saved).save_pretrained(save_directory, **kwargs)

    @property
    def normalizes_pixels(self) -> bool:
        """Whether the encoder changes pixels at all before it embeds them."""
        return any(self.pixel_mean) or any(value != 1 for value in self.pixel_std)

    def check_readout(self):
        """Raise a `ValueError` that names the fields if the sizes of the readouts contradict each other."""
        for name in ("image_size", "num_frames", "readout_hidden_size", "readout_num_attention_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.initializer_range is not None and not 0 <= self.initializer_range < math.inf:
            raise ValueError(f"initializer_range must be at least 0, or None, got {self.initializer_range}")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act must be a known activation, got {self.hidden_act!r}")
        if self.readout_hidden_size % self.readout_num_attention_heads:
            raise ValueError(
                "readout_hidden_size must be a multiple of "
                f"readout_num_attention_heads={self.readout_num_attention_heads}, got {self.readout_hidden_size}"
            )
        if self.readout_depth is not None and not 0 <= self.readout_depth <= self.num_hidden_layers:
            raise ValueError(
                f"readout_depth must be between 0 and the {self.num_hidden_layers} layers of the ViT, or None for "
                f"the last one, got {self.readout_depth}"
            )
        for name in ("readout_num_frames", "readout_intermediate_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, or None, got {getattr(self, name)}")
        if len(self.decoding_patch_size) != 3 or min(self.decoding_patch_size) < 1:
            raise ValueError(
                f"decoding_patch_size must be three counts (frames, rows, columns), got {self.decoding_patch_size}"
            )

    @property
    def decoding_grid_size(self) -> tuple[int, int, int]:
        """Boxes that the depth readout predicts along time, height and width of a clip of the configured size.

        Raises:
            ValueError: if the boxes do not tile the clip.
        """
        clip = (self.num_frames, self.image_size, self.image_size)
        if any(whole % part for whole, part in zip(clip, self.decoding_patch_size, strict=True)):
            raise ValueError(
                f"decoding_patch_size must tile the clip, num_frames={self.num_frames} by "
                f"image_size={self.image_size} squared, got {self.decoding_patch_size}"
            )
        t, h, w = (whole // part for whole, part in zip(clip, self.decoding_patch_size, strict=True))
        return t, h, w


def readout_depth_from_fraction(num_layers: int, fraction: float) -> int:
    """The depth that the 4DS code reads at a fraction of the layers.

    That code picks entry int((L + 1) * fraction) - 1 of a list that holds the embedded tokens twice, then the outputs
    of all layers but the last.

    Examples:
        >>> readout_depth_from_fraction(48, 0.95)
        44

    Raises:
        ValueError: if the fraction picks no entry.
    """
    if not (fraction <= 1 <= (num_layers + 1) * fraction):  # nor is NaN
        raise ValueError(
            f"fraction must be above 0 and at most 1, and name one of the {num_layers} layers, got {fraction}"
        )
    return max(int((num_layers + 1) * fraction) - 2, 0)
