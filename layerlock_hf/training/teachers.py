"""Networks whose latents are predicted: a copy that follows the encoder, or one that was trained before."""

import copy
import pickle
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import SAFE_WEIGHTS_NAME, logging

from ..models.configuration_layerlock import LayerLockViTConfig
from ..models.configuration_transformers_encoder import TransformersEncoderConfig
from ..models.modeling_layerlock import LayerLockViTModel
from ..models.modeling_transformers_encoder import TransformersEncoder
from ..models.objectives import Stage
from ..models.pixel_statistics import pixel_statistics
from ..utils.hub_names import check_checkpoint
from .foreign import check_weight_names
from .sharding import load_whole_state, local, whole_state


logger = logging.get_logger(__name__)

TEACHER_FOLDER = "teacher"


def copy_of(encoder: LayerLockViTModel) -> LayerLockViTModel:
    """A teacher that starts as the encoder is, in eval mode, and never learns by gradient."""
    teacher = copy.deepcopy(encoder)
    return teacher.eval().requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, encoder: nn.Module, momentum: float):
    """teacher <- momentum * teacher + (1 - momentum) * encoder, where the encoder learns; elsewhere not by one bit."""
    teachers = dict(teacher.named_parameters())
    learning = [
        (teachers[name], parameter) for name, parameter in encoder.named_parameters() if parameter.requires_grad
    ]
    if learning and momentum < 1:
        followers, leaders = zip(*learning, strict=True)
        torch._foreach_lerp_(list(map(local, followers)), list(map(local, leaders)), 1 - momentum)


def save_teacher(teacher: PreTrainedModel, checkpoint: str, is_main: bool):
    """Beside the model a teacher that may be sharded; every process must call it, and the main one writes."""
    state = whole_state(teacher)
    if is_main:
        teacher.save_pretrained(Path(checkpoint) / TEACHER_FOLDER, state_dict=state)


def restore_teacher(teacher: PreTrainedModel, checkpoint: str):
    """The inverse of `save_teacher`."""
    load_whole_state(teacher, load_file(Path(checkpoint) / TEACHER_FOLDER / SAFE_WEIGHTS_NAME))


@torch.no_grad()
def distance(teacher: nn.Module, encoder: nn.Module) -> torch.Tensor:
    """Norm of the difference of their parameters, over the norm of the encoder's: ()."""
    pairs = list(zip(teacher.parameters(), encoder.parameters(), strict=True))
    difference = sum((ours.float() - theirs.float()).square().sum() for ours, theirs in pairs)
    return (difference / sum(theirs.float().square().sum() for _, theirs in pairs)).sqrt()


def as_teacher(
    model: PreTrainedModel, pixel_mean=IMAGENET_DEFAULT_MEAN, pixel_std=IMAGENET_DEFAULT_STD
) -> TransformersEncoder:
    """A video model of Transformers as a teacher, read after its final norm.

    Args:
        model: a ViT with tokens like ours.
        pixel_mean, pixel_std: what its pixels are normalised with, per channel; by default those of ImageNet, as
            VideoMAE and V-JEPA have it.

    Raises:
        ValueError: if its configuration does not tell its sizes.
    """
    config = TransformersEncoderConfig(
        encoder_config=model.config, use_final_norm=True, pixel_mean=list(pixel_mean), pixel_std=list(pixel_std)
    )
    sizes_of(config)
    return TransformersEncoder(config, model).eval().requires_grad_(False)


def sizes_of(config: PreTrainedConfig | None) -> LayerLockViTConfig | None:
    """The sizes of a teacher in the words of our configuration, to check and to count with; None if it tells nothing,
    for it need have nothing but `tap`.

    Raises:
        ValueError: if it is a model of Transformers whose configuration does not tell its sizes.
    """
    if not isinstance(config, TransformersEncoderConfig):
        return config
    config = config.encoder_config
    try:
        mlp_width = getattr(config, "intermediate_size", None) or round(config.mlp_ratio * config.hidden_size)
        return LayerLockViTConfig(
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=mlp_width,
            patch_size=config.patch_size,
            tubelet_size=config.tubelet_size,
            image_size=config.patch_size,
            num_frames=config.tubelet_size,
            decoder="predictor",
        )
    except (AttributeError, StrictDataclassError) as error:
        raise ValueError(f"teacher: no video ViT with tokens like ours, by its configuration: {error}") from error


def check_teacher(teacher: nn.Module | None, stages: list[Stage], config: LayerLockViTConfig):
    """Raise a `ValueError` unless the stages of a model of this configuration can be taught by the teacher."""
    targets = [objective.target for stage in stages for objective in stage.objectives]
    depths = [target.depth for target in targets if target.of == "teacher"]
    theirs = sizes_of(getattr(teacher, "config", None))
    if teacher is not None and not depths:
        raise ValueError("a teacher is given, but no stage predicts its latents")
    if theirs is None:
        return
    if depths and max(depths) > theirs.num_hidden_layers:
        raise ValueError(f"layer {max(depths)} is predicted, but the teacher has {theirs.num_hidden_layers}")
    boxes = [f"patch_size={c.patch_size}, tubelet_size={c.tubelet_size}" for c in (theirs, config)]
    if boxes[0] != boxes[1]:
        raise ValueError(f"the teacher's tokens ({boxes[0]}) are not those of the model ({boxes[1]})")


def load_teacher(path: str) -> tuple[nn.Module, int, int]:
    """A teacher from a folder or the Hub, its number of layers and its width.

    Raises:
        ValueError: if it cannot be loaded.
    """
    try:
        path = check_checkpoint(path)
        # Code that comes with a teacher is not run, nor does anybody ask whether it may
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        check_weight_names(path)
        model, loading = AutoModel.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise ValueError(f"teacher: cannot load {path}: {' '.join(str(error).split())}") from error
    except pickle.UnpicklingError as error:  # whose message explains how to run the code
        raise ValueError(f"teacher: cannot load {path}: its weights hold more than arrays; do not trust it") from error
    absent = sorted(loading["missing_keys"]) + sorted(str(key) for key in loading["mismatched_keys"])
    if absent:
        raise ValueError(f"teacher: {path} lacks {len(absent)} arrays of the model, such as {absent[0]}")
    is_ours = isinstance(config, LayerLockViTConfig)
    if is_ours:
        return model.eval().requires_grad_(False), config.num_hidden_layers, config.hidden_size
    statistics = pixel_statistics(path)
    if statistics is None:
        logger.warning(f"{path} has no processor: its pixels are normalised with ImageNet's mean and deviation")
    return as_teacher(model, **(statistics or {})), config.num_hidden_layers, config.hidden_size
