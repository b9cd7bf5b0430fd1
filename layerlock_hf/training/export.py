"""From a sharded checkpoint, with one part per process, to a model."""

import warnings
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from torch.distributed.checkpoint import load
from torch.distributed.checkpoint.api import CheckpointException
from transformers.utils import CONFIG_NAME

from ..models.configuration_layerlock import LayerLockViTConfig
from ..models.modeling_layerlock_pretraining import LayerLockViTForPretraining
from .checkpoints import fault
from .pickle_check import check_pickles
from .run_file import CheckpointRefused
from .sharding import SHARDED_MODEL


def load_sharded(checkpoint: str | Path) -> LayerLockViTForPretraining:
    """The model of a checkpoint written under FSDP with SHARDED_STATE_DICT, loaded in one process.

    Raises:
        CheckpointRefused: if it is another kind of folder, not complete, or could run code.
    """
    weights = Path(checkpoint) / SHARDED_MODEL
    if not Path(checkpoint).is_dir():
        raise CheckpointRefused(f"there is no checkpoint {checkpoint}")
    if not weights.is_dir():
        raise CheckpointRefused(
            f"{checkpoint} has no {SHARDED_MODEL}: only sharded checkpoints need an export, the Auto classes load "
            "all others"
        )
    if reason := fault(Path(checkpoint)):
        raise CheckpointRefused(f"{checkpoint} is not complete: {reason}")
    check_pickles(weights)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as it is meant
            model = LayerLockViTForPretraining(_read_config(Path(checkpoint)))
            load({"model": model.state_dict()}, checkpoint_id=weights, no_dist=True)  # into the model's own tensors
    except CheckpointException as error:
        reason = next(iter(error.failures.values()))[0]  # the text of the error itself is a traceback
        raise CheckpointRefused(f"{checkpoint} cannot be loaded: {reason}") from error
    except (OSError, ValueError, StrictDataclassError) as error:
        raise CheckpointRefused(f"{checkpoint} cannot be loaded: {error}") from error
    return model


def _read_config(checkpoint: Path) -> LayerLockViTConfig:
    """
    Raises:
        ValueError: if there is none, or it is that of another model.
    """
    if not (checkpoint / CONFIG_NAME).is_file():
        raise ValueError(f"it has no {CONFIG_NAME}: copy the one of its run there")
    fields, _ = LayerLockViTConfig.get_config_dict(checkpoint)
    if fields.get("model_type") != LayerLockViTConfig.model_type:
        raise ValueError(
            f"model_type in its {CONFIG_NAME} must be {LayerLockViTConfig.model_type}, got {fields.get('model_type')}"
        )
    return LayerLockViTConfig.from_dict(fields)
