"""What a model makes of the parts of clips that it is not shown."""

from dataclasses import replace

import torch

from ..data.masks import MaskStrategy
from ..models import LayerLockViTConfig, Objective, Stage, patchify, unpatchify


GREY = 0.5  # of what is not shown


@torch.inference_mode()
def reconstruct(model, clips: torch.Tensor, masks: MaskStrategy, objective: Objective) -> list[torch.Tensor]:
    """What the encoder sees of clips, everything else grey; and that with what is predicted in its place.

    Pixels that were normalised to be predicted get mean and deviation of the true ones back, which the model does not
    know. Of several types of mask the first is shown.

    Args:
        model: `LayerLockViTForPretraining`.
        clips: floats in [0, 1], (B, T, C, H, W).
        masks: of the run.
        objective: with `Pixels`; all of the patches to predict are predicted, whatever its fraction.

    Returns:
        Two of the shape of `clips`.
    """
    config: LayerLockViTConfig = model.config
    (context_ids, target_ids), *_ = masks(config.grid_size, range(len(clips)), 0)
    boxes = patchify(clips, config.tubelet_size, config.patch_size)
    stage = Stage(0, 0, (replace(objective, patch_fraction=1.0),))
    (predicted,) = model(clips, context_ids, target_ids, stage).predictions
    seen, target = (ids.unsqueeze(-1).expand(-1, -1, boxes.shape[-1]) for ids in (context_ids, target_ids))
    if objective.target.normalize:
        # As `Pixels.compute` takes them
        true = boxes.gather(1, target).unflatten(-1, (-1, config.num_channels))
        mean, deviation = true.mean(dim=-2, keepdim=True), true.std(dim=-2, keepdim=True) + 1e-6
        predicted = (predicted.unflatten(-1, (-1, config.num_channels)) * deviation + mean).flatten(-2)
    shown = torch.full_like(boxes, GREY).scatter(1, seen, boxes.gather(1, seen))
    completed = shown.scatter(1, target, predicted)
    sizes = config.grid_size, config.tubelet_size, config.patch_size
    return [unpatchify(patches, *sizes).clamp(0, 1) for patches in (shown, completed)]
