"""The shape of a model in words, for its card."""

import math
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..models import LayerLockReadoutConfig


WEIGHTS_FILES = "model*.safetensors"
# From `position_embedding` of the configuration
POSITIONS = {
    "rope": "rotary, on the output of the first norm of every layer",
    "rope_attention": "rotary, on queries and keys",
    "learned": "a learned table",
    "sincos": "a fixed table of sines and cosines",
    "none": "none",
}


def count_parameters(files: Iterable[Path]) -> dict[str, int]:
    """The numbers in safetensors files, by the first part of their names, from the headers alone.

    Raises:
        ValueError: naming a file that is damaged.
    """
    counts = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():
                    part, size = name.partition(".")[0], math.prod(tensors.get_slice(name).get_shape())
                    counts[part] = counts.get(part, 0) + size
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged, or only half of it is there ({error}): take another") from error
    return counts


def parameter_row(counts: dict[str, int]) -> tuple[str, str]:
    """How many parameters there are, and how many of them are the encoder's."""
    encoder = counts.get("encoder")
    share = "" if encoder in (None, sum(counts.values())) else f", of which {encoder:,} are the encoder's"
    return ("parameters", f"{sum(counts.values()):,}{share}")


def clip_row(config: LayerLockReadoutConfig, processor: dict | None) -> tuple[str, str]:
    """What the model takes."""
    side, pace = config.image_size, ""
    if processor is not None and processor.get("frame_stride", 1) > 1:
        pace = f", one in {processor['frame_stride']} of the video's"
    if processor is not None and processor.get("frame_rate") is not None:
        pace += f" at {processor['frame_rate']:g} frames per second"
    return ("clip", f"{config.num_frames} frames of {side} × {side} pixels{pace}; colours from 0 to 1")


def layerlock_rows(config, decodes: bool) -> list[tuple[str, str]]:
    """Of our ViT (`LayerLockViTConfig`).

    Args:
        decodes: whether the model has the decoder of its pretraining.
    """
    t, h, w = config.grid_size
    rows = [
        (
            "encoder",
            f"ViT of {config.num_hidden_layers} layers of width {config.hidden_size:,}, {config.num_attention_heads} "
            f"attention heads, MLPs of width {config.intermediate_size:,}"
            + (", a norm after the last layer" if config.use_final_norm else ""),
        ),
        (
            "tokens",
            f"boxes of {config.tubelet_size} frames × {config.patch_size} × {config.patch_size} pixels; a clip has "
            f"{config.num_tokens:,} ({t} × {h} × {w})",
        ),
        ("positions", POSITIONS[config.position_embedding]),
    ]
    return [*rows, ("decoder", _decoder(config))] if decodes else rows


def _decoder(config) -> str:
    if config.decoder == "trunk":
        return f"the last {config.num_decoder_layers} layers of the encoder itself, and a linear head per target"
    depths = ", ".join(map(str, config.decoder_depths))
    return (
        f"a transformer of {config.num_decoder_layers} layers of width {config.predictor_hidden_size} "
        + (f"after each of the layers {depths}" if len(config.decoder_depths) > 1 else f"after layer {depths}")
        + ", and a linear head per target"
    )


def other_rows(config) -> list[tuple[str, str]]:
    """Of other people's encoders (`TransformersEncoderConfig`)."""
    kind = config.encoder_config.model_type
    return [
        ("encoder", f"`{kind}` of Transformers: {config.num_hidden_layers} layers of width {config.hidden_size:,}")
    ]


def readout_row(config: LayerLockReadoutConfig) -> tuple[str, str]:
    """The head of a model for a task."""
    depth = config.num_hidden_layers if config.readout_depth is None else config.readout_depth
    return (
        "readout",
        f"one layer of attention of width {config.readout_hidden_size:,} with "
        f"{config.readout_num_attention_heads} heads, on the output of layer {depth}",
    )
