"""From clips to vectors: a frozen encoder read at several depths, and what of its tokens is kept.

B clips, T frames, t steps of time, h x w tokens of a step, S side of the frames, D width.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from transformers.models.auto.image_processing_auto import get_image_processor_config
from transformers.models.auto.video_processing_auto import get_video_processor_config

from ..data import ClipTransform
from ..models import readout_depth_from_fraction


# What of the tokens (B, t, h, w, D) is kept: vectors (B, steps, ..., D)
POOLS = {
    "window": lambda tokens: tokens.mean(dim=(1, 2, 3)).unsqueeze(1),
    "frame": lambda tokens: tokens.mean(dim=(2, 3)),
    "grid": lambda tokens: tokens,
}


def find_depths(depths: Sequence[str | int | float] | None, num_layers: int) -> list[int]:
    """The depths that a user means, in order: numbers of layers passed, or fractions as the 4DS code has them; by
    default the last.

    Raises:
        ValueError: naming what is neither, or no depth of this encoder.
    """
    found = set()
    for depth in depths or [num_layers]:
        try:
            is_fraction = isinstance(depth, float) or "." in str(depth)
            layers = readout_depth_from_fraction(num_layers, float(depth)) if is_fraction else int(depth)
        except ValueError as error:
            raise ValueError(
                f"depths must be layers passed, such as 12, or fractions, such as 0.95: {error}"
            ) from None
        if not 0 <= layers <= num_layers:
            raise ValueError(f"depths must be between 0 and the {num_layers} layers of this encoder, got {depth}")
        found.add(layers)
    return sorted(found)


def transform_for(name_or_path: str, image_size: int) -> ClipTransform:
    """What of a frame an encoder is shown, by the file of its processor: the square at the centre, or the whole frame
    squeezed into one.

    Args:
        name_or_path: of the model.
        image_size: side of what it is shown, in pixels.
    """
    settings = get_video_processor_config(name_or_path) or get_image_processor_config(name_or_path)
    size, crop = (settings.get(name) for name in ("size", "crop_size"))
    size = size if isinstance(size, dict) else {"shortest_edge": size}
    edge = size.get("shortest_edge") or size.get("height")
    crop = crop.get("height") if isinstance(crop, dict) else crop
    is_cropped = bool(settings.get("do_center_crop") and edge and crop)
    return ClipTransform(image_size, max(1.0, edge / crop) if is_cropped else 1.0, ignores_aspect="height" in size)


class WindowEncoder:
    """Reads vectors from clips.

    Args:
        encoder: of `load_encoder`, on its device.
        depths: where it is read.
        pool: a key of `POOLS`.
        bf16: compute in bfloat16.

    Attributes:
        num_steps: steps of time of a clip that have vectors of their own.
        shape: of a vector, without batch and steps.
        vector_size: numbers in a vector.
    """

    def __init__(self, encoder: nn.Module, depths: Sequence[int], pool: str, bf16: bool):
        self.encoder, self.depths, self.pool, self.bf16 = encoder, list(depths), pool, bf16
        config = encoder.config
        clip = torch.zeros(1, config.num_frames, 3, config.image_size, config.image_size, device=encoder.device)
        self.grid_size = encoder.grid_size(clip)
        kept = POOLS[pool](torch.empty(1, *self.grid_size, config.hidden_size, device="meta")).shape
        self.num_steps, self.shape = kept[1], tuple(kept[2:])
        self.vector_size = math.prod(self.shape)

    @torch.inference_mode()
    def __call__(self, clips: torch.Tensor) -> list[np.ndarray]:
        """uint8 (B, T, 3, S, S) -> of every depth float32 (B, steps, values)

        Raises:
            ValueError: if there are NaNs or infinities among them.
        """
        device = self.encoder.device
        video = clips.to(device, non_blocking=True).float() / 255
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            taps = self.encoder.tap(video, self.depths)
        pooled = (POOLS[self.pool](tokens.float().unflatten(1, self.grid_size)) for tokens in taps)
        vectors = [vectors.flatten(2).cpu().numpy() for vectors in pooled]
        if not all(np.isfinite(values).all() for values in vectors):
            raise ValueError(
                "model must give finite vectors, got NaN or infinity: take a checkpoint from before it diverged"
                + (", or leave bf16 out" if self.bf16 else "")
            )
        return vectors
