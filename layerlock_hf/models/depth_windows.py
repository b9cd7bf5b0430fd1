"""Videos of any length through a model of depth: windows, clips that interlock in them, and depth in its place.

The model sees clips of T frames at the pace that it was trained on, K frames apart. K such clips interlock in a window
of K * T frames: clip k has every K-th frame, from frame k on, so that every frame of the video is in one clip.
N frames of a window, H and W pixels of the frames, S side of the square that the model takes.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from transformers.modeling_outputs import DepthEstimatorOutput

from .modeling_layerlock_readout import post_process_depth_estimation
from .video_processing_layerlock import LayerLockVideoProcessor


@dataclass(frozen=True)
class Window:
    """Consecutive frames of a video as the model sees them.

    Attributes:
        clips: float32, (K, T, 3, S, S); fewer than K where there are fewer frames.
        num_frames: N. Clips that lack frames repeat their last one.
        frame_size: H and W.
        box: top, left, height and width of what the clips show of the frames, in pixels of the frames.
    """

    clips: torch.Tensor
    num_frames: int
    frame_size: tuple[int, int]
    box: tuple[int, int, int, int]


AnyWindow = TypeVar("AnyWindow", bound=Window)


def check_processor(processor):
    """Raise a `ValueError` unless it is one that tells how clips are cut, and of what part of the frames."""
    # By what it can do: loaded with its code from a local folder, its class is another copy of the one known here
    if not (hasattr(processor, "stride_at") and hasattr(processor, "shown_box")):
        found = "none that loads" if processor is None else f"a {type(processor).__name__}"
        raise ValueError(
            f"processor must be a LayerLockVideoProcessor, got {found}: save the one used in training beside the "
            "model, with LayerLockVideoProcessor.from_config(model.config, size=..., "
            "frame_stride=...).save_pretrained(FOLDER)"
        )


def window_of(
    frames: torch.Tensor, pixel_aspect: float, processor: LayerLockVideoProcessor, num_frames: int, stride: int
) -> Window:
    """The window of frames, uint8 or floats in [0, 1], (N, 3, H, W), for clips of `num_frames` frames, `stride` apart.

    Raises:
        ValueError: as of the processor.
    """
    settings = {
        "input_data_format": "channels_first",
        "pixel_aspect": pixel_aspect,
        "do_rescale": processor.do_rescale and frames.dtype == torch.uint8,
        # Sampling repeats the last frame where there are too few
        "do_sample_frames": True,
        "num_frames": num_frames,
        "frame_stride": 1,
    }
    parts = [frames[first::stride] for first in range(min(stride, len(frames)))]
    clips = torch.cat([processor(part, **settings)["pixel_values_videos"] for part in parts])
    size = tuple(frames.shape[-2:])
    return Window(clips, len(frames), size, processor.shown_box(*size, pixel_aspect))


def estimate_windows(
    predict: Callable[[torch.Tensor], torch.Tensor], windows: Iterable[AnyWindow], batch_size: int
) -> Iterator[tuple[AnyWindow, torch.Tensor]]:
    """Every window with the depth of its frames, float32 (N, S, S), in order.

    Args:
        predict: from clips (B, T, 3, S, S) to their depth in metres, (B, T, S, S).
        windows: of one video or of several.
        batch_size: clips that `predict` is given at once, of several windows where one has fewer.
    """
    group, num_clips = [], 0
    for window in windows:
        group.append(window)
        num_clips += len(window.clips)
        if num_clips >= batch_size:
            yield from _estimate(predict, group, batch_size)
            group, num_clips = [], 0
    if group:
        yield from _estimate(predict, group, batch_size)


def _estimate(predict, group: list[AnyWindow], batch_size: int) -> Iterator[tuple[AnyWindow, torch.Tensor]]:
    clips = torch.cat([window.clips for window in group])
    depths = torch.cat([predict(some) for some in clips.split(batch_size)])
    for window, depth in zip(group, depths.split([len(window.clips) for window in group]), strict=True):
        # Frame k + K i is frame i of clip k
        yield window, depth.transpose(0, 1).flatten(0, 1)[: window.num_frames]


def depth_of_frames(depth: torch.Tensor, window: Window) -> torch.Tensor:
    """The depth of the box in the place that it has in whole frames, NaN around it: (N, S, S) -> (N, H, W)"""
    top, left, rows, columns = window.box
    output = DepthEstimatorOutput(predicted_depth=depth.unsqueeze(0))
    (resized,) = post_process_depth_estimation(output, [(rows, columns)])
    whole = depth.new_full((len(depth), *window.frame_size), math.nan)
    whole[:, top : top + rows, left : left + columns] = resized["predicted_depth"]
    return whole
