"""Videos that are given as frames: images of PIL, arrays or tensors.

T frames, C channels, H and W pixels.
"""

import torch
from transformers.image_utils import to_numpy_array
from transformers.utils import is_numpy_array, is_torch_tensor

from .video_reading_timeline import Choose


def _is_frame(item) -> bool:
    return hasattr(item, "convert") or ((is_torch_tensor(item) or is_numpy_array(item)) and item.ndim == 3)


def list_videos(videos) -> list:
    """The videos one by one; a list of frames is one video."""
    if (is_torch_tensor(videos) or is_numpy_array(videos)) and videos.ndim == 5:
        videos = list(videos)
    if not isinstance(videos, (list, tuple)):
        return [videos]
    if len(videos) == 0:
        raise ValueError("videos must hold at least one video, got none")
    return [videos] if all(map(_is_frame, videos)) else list(videos)


def given_frames(video, choose: Choose) -> torch.Tensor:
    """The chosen ones of frames that are given as such, in the order of dimensions that they have."""
    if isinstance(video, (list, tuple)):
        if not video or not all(map(_is_frame, video)):
            raise ValueError("a list of frames must be PIL images, or tensors or arrays of 3 dimensions")
        frames = [_to_tensor(video[index]) for index in choose(len(video))]
        if len({frame.shape for frame in frames}) > 1:
            raise ValueError("frames of a video must have one shape")
        return torch.stack(frames)
    if (is_torch_tensor(video) or is_numpy_array(video)) and video.ndim == 4:
        if len(video) == 0:
            raise ValueError(f"a video must have at least one frame, got the shape {tuple(video.shape)}")
        return _to_tensor(video[choose(len(video))])
    shape = f" of shape {tuple(video.shape)}" if hasattr(video, "shape") else ""
    raise ValueError(
        "a video must be a path, a URL, bytes, a VideoDecoder, a list of frames, or a tensor or array (T, C, H, W) "
        f"or (T, H, W, C), got {type(video).__name__}{shape}"
    )


def to_rgb(frames: torch.Tensor, input_data_format: str | None) -> torch.Tensor:
    """uint8, or float32 if given as floats: (T, C, H, W) or (T, H, W, C) -> (T, 3, H, W), where C is 1 or 3."""
    if frames.dtype != torch.uint8 and not frames.is_floating_point():
        raise ValueError(f"frames must be uint8, or floats with do_rescale=False, got {frames.dtype}")
    frames = _channels_first(frames, input_data_format)
    # Antialiased resizing of half precision does not exist on the CPU
    frames = frames.float() if frames.is_floating_point() else frames
    return frames.expand(-1, 3, -1, -1)


def _to_tensor(pixels) -> torch.Tensor:
    """A frame or video as a tensor on the CPU, where uint8 can be resized."""
    if is_torch_tensor(pixels):
        return pixels.detach().cpu()
    if hasattr(pixels, "convert"):
        if pixels.mode.startswith(("I", "F")):  # whose conversion to RGB saturates
            raise ValueError(
                f"an image of mode {pixels.mode} has more than 8 bits per pixel: give it as an array of floats in "
                "[0, 1]"
            )
        pixels = to_numpy_array(pixels.convert("RGB"))
    # A copy, because tensors can share neither read-only arrays nor negative strides
    return torch.from_numpy(pixels.copy())


def _channels_first(frames: torch.Tensor, input_data_format: str | None) -> torch.Tensor:
    """(T, C, H, W) or (T, H, W, C) -> (T, C, H, W), where C is 1 or 3."""
    layouts = {"channels_first": frames.shape[1], "channels_last": frames.shape[3]}
    if input_data_format is not None and input_data_format not in layouts:
        raise ValueError(f"input_data_format must be one of {', '.join(layouts)}, got {input_data_format!r}")
    fitting = [layout for layout, size in layouts.items() if size in (1, 3) and input_data_format in (None, layout)]
    if not fitting:
        raise ValueError(f"frames must have 1 or 3 channels, got the shape {tuple(frames.shape)}")
    if len(fitting) > 1:
        raise ValueError(
            f"frames of shape {tuple(frames.shape)} may have their channels first or last: pass input_data_format"
        )
    return frames if fitting == ["channels_first"] else frames.permute(0, 3, 1, 2)
