"""Configuration of other people's encoders: a model of Transformers, and the clips it takes."""

import copy
from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .configuration_layerlock_readout import LayerLockReadoutConfig


@strict
class TransformersEncoderConfig(LayerLockReadoutConfig):
    """A video or image model of Transformers as an encoder of clips, and the readouts of it.

    Args:
        encoder_config: configuration of the model, or the dictionary of it with its `model_type`.
        pixel_mean: subtracted from pixels in [0, 1], one value per colour.
        pixel_std: what they are divided by then.
        use_final_norm: read the last layer after the norm that follows it, as teachers are (V-JEPA 2, SALT).

    The other arguments are those of `LayerLockReadoutConfig`.

    Raises:
        ValueError: if the model does not state its layers or its width, or if sizes contradict each other.
    """

    model_type = "layerlock_any_encoder"  # in saved files
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_transformers_encoder.TransformersEncoderConfig",
        "AutoModel": "modeling_transformers_encoder.TransformersEncoder",
        "AutoModelForDepthEstimation": "modeling_transformers_encoder.TransformersEncoderForDepthEstimation",
        "AutoModelForVideoClassification": "modeling_transformers_encoder.TransformersEncoderForVideoClassification",
        "AutoVideoProcessor": "video_processing_layerlock.LayerLockVideoProcessor",
    }
    sub_configs: ClassVar[dict[str, type]] = {"encoder_config": AutoConfig}

    encoder_config: dict | PreTrainedConfig | None = None
    pixel_mean: list[float] | tuple[float, ...] = (0.0, 0.0, 0.0)
    pixel_std: list[float] | tuple[float, ...] = (1.0, 1.0, 1.0)
    use_final_norm: bool = False

    def __post_init__(self, **kwargs):
        if isinstance(self.encoder_config, dict):
            self.encoder_config = AutoConfig.for_model(**self.encoder_config)
        # That of a model which is there already must not lose its choice of attention, as follows in Transformers
        self.encoder_config = copy.deepcopy(self.encoder_config)
        super().__post_init__(**kwargs)
        self.pixel_mean, self.pixel_std = list(self.pixel_mean), list(self.pixel_std)  # as JSON has them
        if len(self.pixel_mean) != len(self.pixel_std) or min(self.pixel_std) <= 0:
            raise ValueError(
                "pixel_mean and pixel_std must have one value per colour, with deviations above 0, got "
                f"{self.pixel_mean} and {self.pixel_std}"
            )
        if self.encoder_config is not None:  # Transformers compares with a configuration of defaults
            for name in ("num_hidden_layers", "hidden_size"):
                if not isinstance(getattr(self.encoder_config, name, None), int):
                    raise ValueError(
                        f"a {self.encoder_config.model_type} model cannot be read, as its configuration has no "
                        f"{name}: an encoder needs layers that all have tokens of one width"
                    )
            self.check_readout()

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the encoder."""
        return self.encoder_config.num_hidden_layers

    @property
    def hidden_size(self) -> int:
        """Width of the encoder."""
        return self.encoder_config.hidden_size

    def to_dict(self) -> dict:
        """Without `use_final_norm` where it is not set, as files were before there was the field: features that are
        kept on disk are known by this."""
        fields = super().to_dict()
        return fields if self.use_final_norm else {name: fields[name] for name in fields if name != "use_final_norm"}
