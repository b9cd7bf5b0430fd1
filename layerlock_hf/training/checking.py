"""What must hold of the first batches, before a step is made of them."""

from ..models.modeling_layerlock_pretraining import LayerLockViTForPretraining
from .processes import raise_together


def check_masks(model: LayerLockViTForPretraining, batches: list[dict]):
    """Raise a `ValueError` on all processes if the masks of one do not belong to its clips."""
    error = None
    try:
        for batch in batches:
            video = batch["pixel_values_videos"]
            model.check_grid(video, batch.get("grid_size"))
            model.check_ids(video, batch["context_ids"], batch.get("target_ids"))
    except ValueError as caught:
        error = caught
    raise_together(error)
