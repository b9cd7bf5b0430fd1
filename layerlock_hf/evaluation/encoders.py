"""Frozen encoders from our and other people's checkpoints, all with the methods of `LayerLockViTModel`."""

import pickle

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.video_processing_auto import get_video_processor_config
from transformers.utils import logging

from ..models import LayerLockReadoutConfig, TransformersEncoder, TransformersEncoderConfig
from ..models.pixel_statistics import pixel_statistics
from ..utils.hub_names import check_checkpoint


logger = logging.get_logger(__name__)

# How configurations tell the size and the length of clips
SIZE_FIELDS = ("image_size", "crop_size")
LENGTH_FIELDS = ("num_frames", "frames_per_clip")
NUM_FRAMES_OF_IMAGE_MODELS = 16


def load_encoder(
    name_or_path: str,
    random_weights: bool = False,
    image_size: int | None = None,
    num_frames: int | None = None,
) -> PreTrainedModel:
    """A frozen float32 encoder in eval mode, from a folder or the Hub.

    It offers `tap(video, depths)`, `grid_size(video)` and `config.{num_hidden_layers, hidden_size, num_frames,
    image_size}`, and takes clips (B, T, C, H, W) in [0, 1]. Checkpoints of ours, those of pretraining and of readouts
    included, give a `LayerLockViTModel` or the `TransformersEncoder` that was read; every other model of Transformers
    gives a `TransformersEncoder`. Of models with vision and other parts, such as CLIP, only the vision part is loaded.

    Args:
        name_or_path: a folder with a `config.json`, or the id of a repository on the Hub.
        random_weights: initialise the weights randomly, from the global generator, instead of loading them: a control.
        image_size: height and width of the clips, in pixels; by default what the checkpoint was made for.
        num_frames: frames per clip; by default what the checkpoint was made for, and 16 for models of images.

    Raises:
        ValueError: if there is no such checkpoint, or if it cannot be read as an encoder of such clips.
    """
    try:
        name_or_path = check_checkpoint(name_or_path)
        # Code that comes with a checkpoint is not run, nor does anybody ask whether it may
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
        given = {"image_size": image_size, "num_frames": num_frames}
        given = {name: value for name, value in given.items() if value is not None}
        if isinstance(config, LayerLockReadoutConfig):
            _check_processor(name_or_path, config)
            config.update(given)
            encoder, missing = _load(name_or_path, config, random_weights)
        else:
            config = getattr(config, "vision_config", config)
            clips = {**_clip_sizes(config, given), **_pixel_statistics(name_or_path)}
            model, missing = _load(name_or_path, config, random_weights)
            encoder = TransformersEncoder(TransformersEncoderConfig(encoder_config=config, **clips), model)
            missing &= set(encoder.parameters_up_to(config.num_hidden_layers))  # the rest is not run
        if missing:
            raise ValueError(f"it lacks {len(missing)} arrays of the model, such as {min(missing)}")
        encoder.eval().requires_grad_(False)
        size = encoder.config.image_size
        encoder.tap(torch.zeros(1, encoder.config.num_frames, 3, size, size), [0])
    except pickle.UnpicklingError as error:  # whose message explains how to run the code
        raise ValueError(f"cannot load {name_or_path}: its weights hold more than arrays, do not trust it") from error
    except (OSError, KeyError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise ValueError(f"cannot load {name_or_path} as an encoder: {' '.join(str(error).split())}") from error
    return encoder


def _check_processor(name_or_path: str, config: LayerLockReadoutConfig):
    """An encoder that normalises pixels itself must not have them from its processor as well."""
    if config.normalizes_pixels and get_video_processor_config(name_or_path).get("do_normalize"):
        raise ValueError(
            "do_normalize must be False in its processor's file, got True: the encoder normalises pixels itself "
            "(pixel_mean, pixel_std)"
        )


def _pixel_statistics(name_or_path: str) -> dict[str, list[float]]:
    statistics = pixel_statistics(name_or_path)
    if statistics is None:
        logger.warning(f"{name_or_path} has no processor file: its pixels stay in [0, 1], not normalised")
    return statistics or {}


def _clip_sizes(config: PreTrainedConfig, given: dict[str, int]) -> dict[str, int]:
    """Size and length of clips for a model of Transformers: those given, else those that its configuration tells."""

    def told(names):
        return next((getattr(config, name) for name in names if getattr(config, name, None) is not None), None)

    sizes, length = told(SIZE_FIELDS), told(LENGTH_FIELDS)
    sizes = set(sizes) if isinstance(sizes, (list, tuple)) else {sizes}
    if "image_size" not in given and (len(sizes) != 1 or None in sizes):
        raise ValueError(
            f"image_size must be given, as the configuration of this {config.model_type} model names no square size: "
            "give it, if the model is a ViT at all"
        )
    if length is not None and given.get("num_frames", length) != length:
        logger.warning(
            f"num_frames={given['num_frames']} for a {config.model_type} model that was made for {length} frames: "
            "not every model that accepts them makes sense of them (TimeSformer mixes them up)"
        )
    return {"image_size": max(sizes), "num_frames": length or NUM_FRAMES_OF_IMAGE_MODELS, **given}


def _load(name_or_path: str, config: PreTrainedConfig, random_weights: bool) -> tuple[PreTrainedModel, set[str]]:
    """The model of a configuration, and the names of its arrays that the checkpoint does not hold."""
    if random_weights:
        return AutoModel.from_config(config, dtype=torch.float32), set()
    model, loading = AutoModel.from_pretrained(
        name_or_path,
        config=config,
        dtype=torch.float32,
        output_loading_info=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,  # told below
    )
    if loading["mismatched_keys"]:
        name, *shapes = min(loading["mismatched_keys"])
        raise ValueError(
            f"its array {name} must have the shape {tuple(shapes[1])} in this configuration, got {tuple(shapes[0])}: "
            "learned positions fit clips of one size, so leave image_size and num_frames as they are"
        )
    return model, set(loading["missing_keys"])
