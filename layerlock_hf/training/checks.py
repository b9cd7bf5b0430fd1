"""What must hold of masks before a run, and of its first batches before a step is made of them."""

from ..models.configuration_layerlock import LayerLockViTConfig
from ..models.modeling_layerlock_pretraining import LayerLockViTForPretraining
from ..models.video_processing_layerlock import MARGIN
from ..utils.processes import raised_together
from .arguments import LayerLockTrainingArguments


def check_batches(
    model: LayerLockViTForPretraining, batches: list[dict], grid_size: tuple[int, int, int] | None = None
):
    """Raise a `ValueError` on all processes if one has clips that are no pixels in [0, 1], or masks of other clips."""
    with raised_together():
        for batch in batches:
            video = batch["pixel_values_videos"]
            low, high = (bound.item() for bound in video.aminmax())
            if video.is_floating_point() and (low < -MARGIN or high > 1 + MARGIN):
                raise ValueError(
                    f"pixel_values_videos must be bytes, or floats in [0, 1], got {video.dtype} from {low:g} to "
                    f"{high:g}: do not normalise or scale them, the encoder does what it needs"
                )
            model.check_masks(video, batch["context_ids"], batch.get("target_ids"), grid_size)


def check_masks(collator, config: LayerLockViTConfig, args: LayerLockTrainingArguments):
    """Raise a `ValueError` unless the masks of a collator of ours suit the model and the batch size. Other collators
    do not tell their masks before the first batch."""
    masks = getattr(collator, "masks", None)
    if masks is None:
        return
    batch_size = args.per_device_train_batch_size
    group_size = getattr(masks, "group_size", batch_size)
    if group_size % batch_size:
        raise ValueError(
            f"mask_group_size must be a multiple of per_device_train_batch_size={batch_size}, got {group_size}: the "
            "clips of a batch must belong to one group"
        )
    num_mask_types = len(masks(collator.grid_size, [0], args.seed))
    if config.decoder == "predictor" and num_mask_types != config.num_mask_tokens:
        raise ValueError(
            f"num_mask_tokens must be {num_mask_types}, the number of mask types in mask_blocks, got "
            f"{config.num_mask_tokens}"
        )
