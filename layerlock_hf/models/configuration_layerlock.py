"""Configuration of the LayerLock video ViT, and the sizes that the papers name."""

import dataclasses
from typing import ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .configuration_layerlock_readout import LayerLockReadoutConfig


MAX_TOKENS = 2**22  # of a clip; the papers' have 1,568


@strict
class LayerLockViTConfig(LayerLockReadoutConfig):
    """Shape of a LayerLock video ViT. The defaults are those of `4ds-b`, the base size of the 4DS family.

    Args:
        num_channels: colour channels.
        pixel_mean, pixel_std: what the encoder itself subtracts from pixels in [0, 1], and then divides by: one
            value per channel, or one for all. 0 and 1, which change nothing, are what 4DS has; V-JEPA, SALT and
            blockwise training have those of ImageNet. Clips and targets of pixels stay in [0, 1].
        patch_size: height and width of a token's box, in pixels.
        tubelet_size: depth in time of a token's box, in frames.
        hidden_size: width of the transformer.
        num_hidden_layers: number of layers; with the trunk decoder the last `num_decoder_layers` of them decode.
        num_attention_heads: attention heads per layer.
        intermediate_size: hidden width of the MLPs.
        position_embedding: `"rope"` rotates the output of the first norm of every layer (LayerLock, sec. 3.1),
            `"rope_attention"` the queries and keys alone; `"learned"` adds a learned table to the embedded tokens
            (the released 4DS weights), `"sincos"` a fixed one (V-JEPA), `"none"` does nothing.
        rope_theta: longest wavelength of the rotary embedding (LayerLock, Table 8).
        rope_axis_fractions: shares of the channels that encode time, height and width; the rest carries no position.
        use_final_norm: layer norm after the last layer. The 4DS models have none.
        decoder: `"trunk"` decodes with the last layers of the ViT itself (4DS), `"predictor"` with a narrow
            transformer of its own (V-JEPA, SALT, blockwise).
        num_decoder_layers: layers that decode: of the ViT, or of each predictor.
        decoding_tokens: content of the tokens to decode: `"rope"`, a vector of ones rotated to its position
            (LayerLock, Alg. 1), or `"learned"`, a learned table. Only for the trunk decoder.
        predictor_hidden_size: width of a predictor, whose MLPs are four times as wide.
        predictor_num_attention_heads: its attention heads.
        predictor_depths: depths of the ViT that are read by a predictor each; None: the last layer only.
        num_mask_tokens: mask tokens of a predictor, one per type of mask.
        teacher_hidden_size: width of the latents that are predicted; None: `hidden_size`.
        latent_head_depths: depths whose latents have a head of their own, for ablations that predict several at once.
        extra_heads: name and width of heads for targets of your own.
        num_frozen_layers: leading layers frozen by the run that wrote this checkpoint. Only a record: loading a
            checkpoint freezes nothing.
        image_size, num_frames, hidden_act, layer_norm_eps, initializer_range: those of `LayerLockReadoutConfig`, as
            are `readout_*`, `decoding_patch_size` and `train_encoder`.

    Raises:
        ValueError: if the sizes contradict each other.
    """

    model_type = "layerlock"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_layerlock.LayerLockViTConfig",
        "AutoModel": "modeling_layerlock.LayerLockViTModel",
        "AutoModelForDepthEstimation": "modeling_layerlock_readout.LayerLockViTForDepthEstimation",
        "AutoModelForPreTraining": "modeling_layerlock_pretraining.LayerLockViTForPretraining",
        "AutoModelForVideoClassification": "modeling_layerlock_readout.LayerLockViTForVideoClassification",
        "AutoVideoProcessor": "video_processing_layerlock.LayerLockVideoProcessor",
    }
    base_model_fsdp_plan: ClassVar[dict[str, str]] = {"layers.*": "free_full_weight"}

    num_channels: int = 3
    pixel_mean: list[float] | tuple[float, ...] = (0.0,)
    pixel_std: list[float] | tuple[float, ...] = (1.0,)
    patch_size: int = 16
    tubelet_size: int = 2
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    position_embedding: Literal["rope", "rope_attention", "learned", "sincos", "none"] = "rope"
    rope_theta: float | int = 10_000.0
    rope_axis_fractions: list[float] | tuple[float, ...] = (0.10, 0.25, 0.25)
    use_final_norm: bool = False
    decoder: Literal["trunk", "predictor"] = "trunk"
    num_decoder_layers: int = 4
    decoding_tokens: Literal["rope", "learned"] = "rope"
    predictor_hidden_size: int = 384
    predictor_num_attention_heads: int = 12
    predictor_depths: list[int] | None = None
    num_mask_tokens: int = 1
    teacher_hidden_size: int | None = None
    latent_head_depths: list[int] | tuple[int, ...] = ()
    extra_heads: dict[str, int] | None = None
    num_frozen_layers: int = 0

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for name in ("pixel_mean", "pixel_std"):
            values = list(getattr(self, name))
            setattr(self, name, values * self.num_channels if len(values) == 1 else values)
        self.rope_axis_fractions = list(self.rope_axis_fractions)  # as JSON has it
        self.latent_head_depths = list(self.latent_head_depths)
        self.check_sizes()

    def check_sizes(self):
        """Raise a `ValueError` that names the fields if the sizes contradict each other."""
        for name, kind in architecture_fields().items():
            if kind is int and name != "num_frozen_layers" and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.rope_theta <= 0 or self.layer_norm_eps <= 0:
            raise ValueError(
                f"rope_theta and layer_norm_eps must be positive, got {self.rope_theta}, {self.layer_norm_eps}"
            )
        for name in ("pixel_mean", "pixel_std"):
            values = getattr(self, name)
            if len(values) != self.num_channels:
                raise ValueError(f"{name} must be 1 or num_channels={self.num_channels} numbers, got {values}")
            if not all(0 <= value <= 1 for value in values):
                raise ValueError(f"{name} must be between 0 and 1, as pixels are, got {values}: divide bytes by 255")
        if min(self.pixel_std) <= 0:
            raise ValueError(f"pixel_std must be positive, got {self.pixel_std}")
        for whole, part in (
            ("image_size", "patch_size"),
            ("num_frames", "tubelet_size"),
            ("hidden_size", "num_attention_heads"),
            ("predictor_hidden_size", "predictor_num_attention_heads"),
        ):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"{whole} must be a multiple of {part}={getattr(self, part)}, got {getattr(self, whole)}"
                )
        depths = self.predictor_depths
        if depths is not None and (self.decoder == "trunk" or sorted({*depths}) != depths or not depths):
            raise ValueError(f"predictor_depths needs decoder='predictor' and ascending depths, got {depths}")
        for name in ("predictor_depths", "latent_head_depths"):
            if any(not 1 <= depth <= self.num_hidden_layers for depth in getattr(self, name) or ()):
                raise ValueError(
                    f"{name} must lie between 1 and the {self.num_hidden_layers} layers of the ViT, got "
                    f"{getattr(self, name)}"
                )
        if self.decoder == "trunk" and self.num_decoder_layers >= self.num_hidden_layers:
            raise ValueError(
                f"num_decoder_layers must leave at least one of the {self.num_hidden_layers} layers to the encoder, "
                f"got {self.num_decoder_layers}"
            )
        if not 0 <= self.num_frozen_layers <= self.num_hidden_layers:
            raise ValueError(
                f"num_frozen_layers must be between 0 and the {self.num_hidden_layers} layers of the ViT, got "
                f"{self.num_frozen_layers}"
            )
        if self.num_tokens > MAX_TOKENS:
            raise ValueError(
                f"num_tokens of a clip must be at most {MAX_TOKENS}, got {self.num_tokens} from "
                f"image_size={self.image_size} and num_frames={self.num_frames}: make the clips smaller or shorter"
            )
        self.check_readout()
        fractions = self.rope_axis_fractions
        if len(fractions) != 3 or min(fractions) < 0 or sum(fractions) > 1:
            raise ValueError(
                "rope_axis_fractions must be three shares (time, height, width) that sum to 1 at most, "
                f"got {fractions}"
            )

    @property
    def grid_size(self) -> tuple[int, int, int]:
        """Tokens along time, height and width of a clip of the configured size."""
        side = self.image_size // self.patch_size
        return self.num_frames // self.tubelet_size, side, side

    @property
    def num_tokens(self) -> int:
        """Tokens of a clip of the configured size."""
        t, h, w = self.grid_size
        return t * h * w

    @property
    def values_per_token(self) -> int:
        """Pixel values in the box of one token."""
        return self.tubelet_size * self.patch_size**2 * self.num_channels

    @property
    def rotary_width(self) -> int:
        """Channels over which the axes of the rotary embedding are shared: all, those of a head, or none."""
        head_width = self.hidden_size // self.num_attention_heads
        return {"rope": self.hidden_size, "rope_attention": head_width}.get(self.position_embedding, 0)

    @property
    def decoder_depths(self) -> list[int]:
        """Depths that a prediction is read from: the objectives' sources."""
        return self.predictor_depths or [self.num_hidden_layers]

    @property
    def head_widths(self) -> dict[str, int]:
        """Width of every head of a decoder."""
        latent_width = self.teacher_hidden_size or self.hidden_size
        own = {f"latents_{depth}": latent_width for depth in self.latent_head_depths}
        return {"pixels": self.values_per_token, "latents": latent_width, **own, **(self.extra_heads or {})}

    @property
    def predictor_intermediate_size(self) -> int:
        """Width of the MLPs of a predictor's layers."""
        return 4 * self.predictor_hidden_size

    def for_predictor(self) -> "LayerLockViTConfig":
        """The configuration of a predictor's layers."""
        sizes = _size(
            self.predictor_hidden_size,
            self.num_decoder_layers,
            self.predictor_intermediate_size,
            self.predictor_num_attention_heads,
        )
        fields = {name: getattr(self, name) for name in architecture_fields()} | sizes
        fields |= {"predictor_depths": None, "latent_head_depths": (), "extra_heads": None, "num_frozen_layers": 0}
        config = type(self)(**fields)
        config._attn_implementation = self._attn_implementation
        return config

    @classmethod
    def from_preset(cls, name: str, **overrides) -> "LayerLockViTConfig":
        """The configuration of a named size, with some fields changed.

        >>> LayerLockViTConfig.from_preset("4ds-g", position_embedding="learned").hidden_size
        1664

        Raises:
            ValueError: for an unknown preset or an unknown field.
        """
        if name not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
        unknown = sorted(set(overrides) - set(architecture_fields()))
        if unknown:
            raise ValueError(f"LayerLockViTConfig has no field(s) {', '.join(unknown)}: check the spelling")
        return cls(**{**PRESETS[name], **overrides})


def architecture_fields() -> dict[str, type]:
    """Name and type of the fields that `LayerLockViTConfig` itself declares."""
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    return {field.name: field.type for field in dataclasses.fields(LayerLockViTConfig) if field.name not in inherited}


def _size(hidden_size, num_hidden_layers, intermediate_size, num_attention_heads, **others):
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": num_hidden_layers,
        "intermediate_size": intermediate_size,
        "num_attention_heads": num_attention_heads,
        **others,
    }


# Of V-JEPA's and VideoMAE's code
_IMAGENET = {"pixel_mean": tuple(IMAGENET_DEFAULT_MEAN), "pixel_std": tuple(IMAGENET_DEFAULT_STD)}

_VIDEOMAE = {
    **_IMAGENET,
    "position_embedding": "sincos",
    "hidden_act": "gelu",
    "use_final_norm": True,
    "decoder": "predictor",
    "predictor_hidden_size": 192,
    "predictor_num_attention_heads": 3,
}

# Widths, depths, MLPs and heads of the 4DS family ("Scaling 4D Representations"; LayerLock, sec. 3.4).
PRESETS = {
    "tiny": _size(128, 8, 512, 4, image_size=64, patch_size=8, readout_hidden_size=128, readout_num_attention_heads=4),
    "4ds-s": _size(384, 12, 1536, 6),
    "4ds-b": _size(768, 12, 3072, 12),
    "4ds-l": _size(1024, 24, 4096, 16),
    "4ds-h": _size(1280, 32, 5120, 16),
    "4ds-g": _size(1664, 48, 8192, 16),
    "4ds-e": _size(1792, 56, 15360, 16),
    # V-JEPA (facebookresearch/jepa): pixels normalised as ImageNet's, final norm, fixed positions, exact GELU, a
    # 12-layer predictor with the encoder's heads and a mask token per type of mask
    "vjepa-l": _size(
        *(1024, 24, 4096, 16),
        **_IMAGENET,
        position_embedding="sincos",
        hidden_act="gelu",
        use_final_norm=True,
        initializer_range=0.02,
        decoder="predictor",
        num_decoder_layers=12,
        predictor_hidden_size=384,
        predictor_num_attention_heads=16,
        num_mask_tokens=2,
    ),
    # For blockwise training (arXiv 2601.09040): sizes of DeiT; of VideoMAE ImageNet's pixels, final norm, fixed
    # positions and exact GELU; predictors of 4 layers of width 192
    "deit-tiny": _size(192, 12, 768, 3, **_VIDEOMAE),
    "deit-small": _size(384, 12, 1536, 6, **_VIDEOMAE),
}
