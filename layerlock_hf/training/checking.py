"""What must hold of the first batches, before a step is made of them."""

from ..models.modeling_layerlock_pretraining import LayerLockViTForPretraining
from ..models.video_processing_layerlock import MARGIN
from ..utils.processes import raised_together


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
                    f"{high:g}: neither normalise nor scale them, the encoder does what it needs"
                )
            model.check_masks(video, batch["context_ids"], batch.get("target_ids"), grid_size)
