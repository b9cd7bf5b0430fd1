"""What a model makes of the parts of clips that it is not shown."""

from dataclasses import replace

import torch

from ..data.masks import MaskStrategy
from ..models import LayerLockViTConfig, Objective, Stage, patchify, unpatchify


GREY = 0.5  # of what is not shown


def masked(clips: torch.Tensor, masks: MaskStrategy, config: LayerLockViTConfig) -> torch.Tensor:
    """What the encoder sees of clips, everything else grey: floats in [0, 1], (B, T, C, H, W) -> the same shape.

    Of several types of mask the first is shown.
    """
    (context_ids, _), *_ = masks(config.grid_size, range(len(clips)), 0)
    boxes = patchify(clips, config.tubelet_size, config.patch_size)
    return unpatchify(_kept(boxes, context_ids), config.grid_size, config.tubelet_size, config.patch_size)


def _kept(boxes: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Patches (B, N, P) of which only those of the ids (B, K) are not grey."""
    seen = ids.unsqueeze(-1).expand(-1, -1, boxes.shape[-1])
    return torch.full_like(boxes, GREY).scatter(1, seen, boxes.gather(1, seen))


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
    target = target_ids.unsqueeze(-1).expand(-1, -1, boxes.shape[-1])
    if objective.target.normalize:
        # As `Pixels.compute` takes them
        true = boxes.gather(1, target).unflatten(-1, (-1, config.num_channels))
        mean, deviation = true.mean(dim=-2, keepdim=True), true.std(dim=-2, keepdim=True) + 1e-6
        predicted = (predicted.unflatten(-1, (-1, config.num_channels)) * deviation + mean).flatten(-2)
    shown = _kept(boxes, context_ids)
    completed = shown.scatter(1, target, predicted)
    sizes = config.grid_size, config.tubelet_size, config.patch_size
    return [unpatchify(patches, *sizes).clamp(0, 1) for patches in (shown, completed)]
