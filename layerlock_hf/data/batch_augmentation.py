"""`Augmentation` for a whole batch, on its device."""

import torch

from .transforms import LUMA, UNCHANGED, Augmentation, ColorChange, repeat_last_frame, resize


class BatchAugmentation:
    """Resize, flip and recolour the crops of a batch of `PretrainingCollator` on their device, such as a GPU.

    Agrees with `Augmentation.finish` exactly on a CPU without changes of colour. On a GPU resized frames are computed
    in floating point and may differ by 1 of 255; a change of colour multiplies that by its contrast and saturation.

    Args:
        image_size: side S of the frames in pixels.
        num_frames: frames T of a clip; the last frame of crops with fewer is repeated.
    """

    def __init__(self, image_size: int, num_frames: int):
        self.image_size = image_size
        self.num_frames = num_frames

    def __call__(self, batch: dict) -> dict:
        """
        Args:
            batch: with `crops`, `crop_shapes` and `augmentations`; it is left as it is.

        Returns:
            The batch with `pixel_values_videos`, uint8 of shape (B, T, C, S, S), in place of these.
        """
        rest = dict(batch)
        shapes, augmentations = rest.pop("crop_shapes"), rest.pop("augmentations")
        flat = rest.pop("crops").split([torch.Size(shape).numel() for shape in shapes])
        crops = [pixels.view(shape) for pixels, shape in zip(flat, shapes, strict=True)]
        resized = [repeat_last_frame(resize(crop, self.image_size), self.num_frames) for crop in crops]
        lengths = [len(crop) for crop in crops]
        return {"pixel_values_videos": _finish(torch.stack(resized), lengths, augmentations), **rest}


def _finish(videos: torch.Tensor, lengths: list[int], augmentations: list[Augmentation]) -> torch.Tensor:
    """Flip and recolour uint8 (B, T, C, S, S), of which the first frames, `lengths` in number, are no repetitions."""
    flips = torch.tensor([augmentation.is_flipped for augmentation in augmentations])
    if flips.any():
        videos = torch.where(flips.to(videos.device).view(-1, 1, 1, 1, 1), videos.flip(-1), videos)
    colors = [augmentation.color for augmentation in augmentations]
    if all(color is None for color in colors):
        return videos
    return _recolor(videos, lengths, [color or UNCHANGED for color in colors])


def _recolor(videos: torch.Tensor, lengths: list[int], colors: list[ColorChange]) -> torch.Tensor:
    device = videos.device
    # Small tensors are made on the CPU, where an operation on them is cheaper than its launch on a GPU.
    matrices = torch.stack([color.matrix() for color in colors]).unsqueeze(1).to(device)
    contrast = torch.tensor([color.contrast for color in colors]).to(device)
    brightness = torch.tensor([color.brightness for color in colors]).to(device)
    is_own = (torch.arange(videos.shape[1]) < torch.tensor(lengths).unsqueeze(1)).float()
    weights = (is_own / is_own.sum(dim=1, keepdim=True)).to(device)
    pixels = videos.flatten(3).float()  # (B, T, 3, S * S)
    grey = (weights * (pixels.mean(dim=3) @ LUMA.to(device))).sum(dim=1)
    shift = (1 - contrast) * grey + brightness
    changed = (matrices @ pixels).add_(shift.view(-1, 1, 1, 1))
    return changed.round_().clamp_(0, 255).to(torch.uint8).view_as(videos)
