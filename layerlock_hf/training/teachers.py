"""Networks whose latents are predicted: the moving average of the encoder, or one that was trained before."""

import copy
import functools
import pickle
from pathlib import Path

import torch
from accelerate import Accelerator
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
from ..models.modeling_layerlock_pretraining import LayerLockViTForPretraining
from ..models.modeling_transformers_encoder import TransformersEncoder
from ..models.objectives import Stage
from ..models.pixel_statistics import pixel_statistics
from ..utils.hub_names import check_checkpoint
from ..utils.weight_hash import hash_weights
from .sharding import load_whole_state, local, shard_teacher, whole_state
from .weight_index import check_weight_names


logger = logging.get_logger(__name__)

TEACHER_FOLDER = "teacher"


class Teacher:
    """A network whose latents are predicted, as a value: the trainer does the same with each, whichever it is.

    Attributes:
        network: has the verb `tap`; None for no teacher.
        sizes: those of the network, in the words of our configuration; None where it tells none.
        weight_hash: of weights that a resumed run must share with the one that wrote its checkpoint, None where there
            are none to compare.
    """

    weight_hash: str | None = None

    def __init__(self, network: nn.Module | None):
        self.network = network
        self.sizes = sizes_of(getattr(network, "config", None))

    def to(self, device: torch.device):
        """Bring the network there."""
        if self.network is not None:
            self.network.to(device)

    def shard(self, accelerator: Accelerator):
        """Called under FSDP: what must lie as the encoder does is sharded, everything else is held whole."""

    def update(self, encoder: LayerLockViTModel, momentum: float):
        """Called after every optimizer step: what moves, moves."""

    def save(self, checkpoint: str, is_main: bool):
        """Write what a checkpoint must hold of it; every process must call it, and the main one writes."""

    def load(self, checkpoint: str):
        """The inverse of `save`."""

    def diagnostics(self, encoder: LayerLockViTModel) -> dict[str, torch.Tensor]:
        """What there is to log of it beside the encoder, by name."""
        return {}


class NoTeacher(Teacher):
    """That of a run which predicts no teacher's latents."""

    def __init__(self):
        super().__init__(None)


class FixedTeacher(Teacher):
    """A network that was trained before and never moves (SALT), in eval mode.

    Args:
        network: has the verb `tap`, and a configuration if its tokens and layers are to be checked.

    Raises:
        ValueError: if it is a model of Transformers whose configuration does not tell its sizes.
    """

    def __init__(self, network: nn.Module):
        super().__init__(network.eval().requires_grad_(False))

    @functools.cached_property
    def weight_hash(self) -> str:
        return hash_weights(self.network)


class EMATeacher(Teacher):
    """The exponential moving average of the encoder (V-JEPA), in eval mode. It starts as a copy.

    Args:
        encoder: what it starts from.
    """

    def __init__(self, encoder: LayerLockViTModel):
        super().__init__(copy.deepcopy(encoder).eval().requires_grad_(False))

    def shard(self, accelerator: Accelerator):
        """As accelerate shards the encoder, so that a process updates its parts from its parts."""
        self.network = shard_teacher(self.network, accelerator)

    @torch.no_grad()
    def update(self, encoder: LayerLockViTModel, momentum: float):
        """teacher <- momentum * teacher + (1 - momentum) * encoder, where the encoder learns; elsewhere not by one
        bit."""
        averages = dict(self.network.named_parameters())
        learning = [
            (averages[name], parameter) for name, parameter in encoder.named_parameters() if parameter.requires_grad
        ]
        if learning and momentum < 1:
            averages, parameters = zip(*learning, strict=True)
            torch._foreach_lerp_(list(map(local, averages)), list(map(local, parameters)), 1 - momentum)

    def save(self, checkpoint: str, is_main: bool):
        state = whole_state(self.network)
        if is_main:
            self.network.save_pretrained(Path(checkpoint) / TEACHER_FOLDER, state_dict=state)

    def load(self, checkpoint: str):
        load_whole_state(self.network, load_file(Path(checkpoint) / TEACHER_FOLDER / SAFE_WEIGHTS_NAME))

    @torch.no_grad()
    def diagnostics(self, encoder: LayerLockViTModel) -> dict[str, torch.Tensor]:
        """`teacher_distance`: norm of the difference of their parameters, over the norm of the encoder's, ()."""
        pairs = list(zip(self.network.parameters(), encoder.parameters(), strict=True))
        difference = sum((average.float() - parameter.float()).square().sum() for average, parameter in pairs)
        norm = sum(parameter.float().square().sum() for _, parameter in pairs)
        return {"teacher_distance": (difference / norm).sqrt()}


def teacher_of_run(
    given: nn.Module | None, model: LayerLockViTForPretraining, stages: list[Stage], momentum: float
) -> Teacher:
    """The teacher of a run: the network that is given, else the average of the encoder where a stage predicts a
    teacher's latents.

    Raises:
        ValueError: if stages, momentum and the given contradict each other, or the network cannot teach this model.
    """
    targets = [objective.target for stage in stages for objective in stage.objectives]
    depths = [target.depth for target in targets if target.of == "teacher"]
    if given is not None and momentum != 1:
        raise ValueError(f"teacher_momentum must be 1 for a given teacher, which never moves, got {momentum:g}")
    if given is not None and not depths:
        raise ValueError(
            "teacher is set but no stage predicts its latents: choose another method, or leave teacher out"
        )
    if given is None and depths and momentum == 1:
        raise ValueError(
            "teacher_momentum must be below 1 for an EMA teacher, got 1: lower it, or set teacher to a network that "
            "is trained already"
        )
    if not depths:
        return NoTeacher()
    teacher = EMATeacher(model.encoder) if given is None else FixedTeacher(given)
    check_teacher(teacher, max(depths), model.config)
    return teacher


def check_teacher(teacher: Teacher, depth: int, config: LayerLockViTConfig):
    """Raise a `ValueError` unless the teacher, as far as it tells its sizes, has this depth and the tokens of a model
    of this configuration."""
    theirs = teacher.sizes
    if theirs is None:
        return
    if depth > theirs.num_hidden_layers:
        raise ValueError(
            f"target_layer must be at most {theirs.num_hidden_layers}, the number of layers of the teacher, got "
            f"{depth}"
        )
    boxes = [f"patch_size={c.patch_size}, tubelet_size={c.tubelet_size}" for c in (theirs, config)]
    if boxes[0] != boxes[1]:
        raise ValueError(f"teacher must have the tokens of the model ({boxes[1]}), got {boxes[0]}")


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
        raise ValueError(
            f"teacher: its configuration is not that of a video ViT with tokens like ours: {error}"
        ) from error


def teacher_sizes(path: str) -> LayerLockViTConfig:
    """The sizes of a teacher in a folder or on the Hub, from its configuration alone.

    Raises:
        ValueError: if it has none that can be read, or one that does not tell its sizes.
    """
    try:
        config = AutoConfig.from_pretrained(check_checkpoint(path), trust_remote_code=False)
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"teacher: cannot read the sizes of {path}: {' '.join(str(error).split())}") from error
    is_ours = isinstance(config, LayerLockViTConfig)
    return config if is_ours else sizes_of(TransformersEncoderConfig(encoder_config=config, use_final_norm=True))


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
        raise ValueError(f"teacher: cannot load {path}: its weights hold more than arrays, do not trust it") from error
    absent = sorted(loading["missing_keys"]) + sorted(str(key) for key in loading["mismatched_keys"])
    if absent:
        raise ValueError(f"teacher: {path} lacks {len(absent)} arrays of the model, such as {absent[0]}")
    is_ours = isinstance(config, LayerLockViTConfig)
    if is_ours:
        return model.eval().requires_grad_(False), config.num_hidden_layers, config.hidden_size
    statistics = pixel_statistics(path)
    if statistics is None:
        logger.warning(f"{path} has no processor: its pixels are normalised with the mean and deviation of ImageNet")
    return as_teacher(model, **(statistics or {})), config.num_hidden_layers, config.hidden_size
