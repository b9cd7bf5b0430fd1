"""From videos in any form to the clips that the encoder takes. Notable: needs no torchvision.

B batch, T frames, C channels, H and W pixels. Frames are chosen before they are decoded, and stay uint8 until they are
resized and cropped.
"""

import os
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from transformers import BatchFeature
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, to_numpy_array
from transformers.utils import is_numpy_array, is_torch_tensor
from transformers.video_processing_utils import VideoProcessorMixin

from .video_reading import Choose, read_decoder, read_file


# What the library itself writes into the file of a processor.
LIBRARY_KEYS = {"auto_map", "image_processor_type", "processor_class", "video_processor_type"}


class LayerLockVideosKwargs(TypedDict, total=False):
    """What may be given to `LayerLockVideoProcessor`, to its `from_pretrained` and to a call; described there."""

    num_frames: int
    frame_stride: int
    do_sample_frames: bool | None
    do_resize: bool
    size: int | dict[str, int]
    do_center_crop: bool
    crop_size: int | dict[str, int] | None
    do_rescale: bool
    do_normalize: bool
    image_mean: list[float] | tuple[float, ...]
    image_std: list[float] | tuple[float, ...]


class LayerLockVideoProcessor(VideoProcessorMixin):
    """Cuts clips out of videos, resizes and crops their frames, and brings the pixels to [0, 1].

    >>> processor = LayerLockVideoProcessor.from_config(model.config)
    >>> list(processor(["cat.mp4", "https://example.org/dog.mp4"]).pixel_values_videos.shape)
    [2, 16, 3, 224, 224]

    Args:
        num_frames: frames T of a sampled clip.
        frame_stride: frames from one sampled frame to the next.
        do_sample_frames: cut a clip of `num_frames` frames out of the middle of every video, whose last frame is
            repeated where it is too short. By default files, URLs and decoders are sampled, and frames that are given
            as such are a clip already, unless the call names `num_frames` or `frame_stride`.
        do_resize: resize the shortest side to `size`, bilinear and antialiased; the other side keeps the proportions.
        size: shortest side in pixels, or `{"shortest_edge": pixels}`.
        do_center_crop: take the middle `crop_size` of the frames.
        crop_size: side of a square in pixels, or `{"height": pixels, "width": pixels}`; by default a square of `size`.
        do_rescale: divide uint8 pixels by 255. Frames of floats need `do_rescale=False`.
        do_normalize: subtract `image_mean` and divide by `image_std`. The 4DS models take [0, 1] as it is.
        image_mean: one value per colour, for pixels in [0, 1].
        image_std: one value per colour, for pixels in [0, 1].

    Raises:
        ValueError: for an unknown or impossible setting.
    """

    valid_kwargs = LayerLockVideosKwargs

    def __init__(
        self,
        num_frames: int = 16,
        frame_stride: int = 2,
        do_sample_frames: bool | None = None,
        do_resize: bool = True,
        size: int | dict[str, int] = 224,
        do_center_crop: bool = True,
        crop_size: int | dict[str, int] | None = None,
        do_rescale: bool = True,
        do_normalize: bool = False,
        image_mean: list[float] | tuple[float, ...] = tuple(IMAGENET_DEFAULT_MEAN),
        image_std: list[float] | tuple[float, ...] = tuple(IMAGENET_DEFAULT_STD),
        **kwargs,
    ):
        unknown = sorted(set(kwargs) - LIBRARY_KEYS)
        if unknown:
            known = ", ".join(self.valid_kwargs.__annotations__)
            raise ValueError(f"unknown setting(s) of {type(self).__name__}: {', '.join(unknown)}; known are {known}")
        super().__init__(**kwargs)
        for name, value in (("num_frames", num_frames), ("frame_stride", frame_stride)):
            if not _is_count(value):
                raise ValueError(f"{name} is {value!r}; give an integer of at least 1")
        for name, values in (("image_mean", image_mean), ("image_std", image_std)):
            if not isinstance(values, (list, tuple)) or len(values) != 3:
                raise ValueError(f"{name} is {values}; give one value for each of the 3 colours")
        if min(image_std) <= 0:
            raise ValueError(f"image_std is {image_std}; give values above 0")
        self.num_frames = num_frames
        self.frame_stride = frame_stride
        self.do_sample_frames = do_sample_frames
        self.do_resize = do_resize
        self.size = _size("size", size, ("shortest_edge",))
        self.do_center_crop = do_center_crop
        crop_size = self.size["shortest_edge"] if crop_size is None else crop_size
        self.crop_size = _size("crop_size", crop_size, ("height", "width"))
        self.do_rescale = do_rescale
        self.do_normalize = do_normalize
        self.image_mean = list(image_mean)  # as JSON has it
        self.image_std = list(image_std)

    @classmethod
    def from_config(cls, config, **overrides) -> "LayerLockVideoProcessor":
        """The processor of clips of the size and length that a `LayerLockViTConfig` names, with some settings changed.

        `size` alone changes how much of the frames the crop shows, not the size of the clips.
        """
        settings = {"num_frames": config.num_frames, "size": config.image_size, "crop_size": config.image_size}
        return cls(**{**settings, **overrides})

    def sample_frames(self, num_frames: int) -> list[int]:
        """Indices of the clip in the middle of a video of `num_frames` frames, fewer where the video is too short."""
        span = (self.num_frames - 1) * self.frame_stride + 1
        start = max(0, num_frames - span) // 2
        return list(range(start, num_frames, self.frame_stride))[: self.num_frames]

    def preprocess(
        self, videos, return_tensors: str | None = None, input_data_format: str | None = None, **overrides
    ) -> BatchFeature:
        """Clips ready for the encoder: `pixel_values_videos`, float32 of shape (B, T, C, H, W).

        Args:
            videos: one video or a list of videos. A video is a path, a URL, the bytes of a file, a `VideoDecoder` of
                torchcodec, a tensor or array (T, C, H, W) or (T, H, W, C), or a list of frames: images of PIL, or
                tensors or arrays (C, H, W) or (H, W, C). A tensor or array of five dimensions is a batch of videos.
            return_tensors: `"np"` for arrays; tensors by default.
            input_data_format: `"channels_first"` or `"channels_last"`, where the shape of the frames leaves it open.
            overrides: settings of the processor, for this call.

        Raises:
            ValueError: naming the video that cannot be read, or that does not fit into a batch with the others.
        """
        processor = type(self)(**{**self._settings(), **overrides}) if overrides else self
        is_asked_for = bool({"num_frames", "frame_stride"} & set(overrides))
        if is_asked_for and overrides.get("do_sample_frames") is False:
            raise ValueError("num_frames and frame_stride sample frames, which do_sample_frames=False forbids")
        clips = []
        for index, video in enumerate(_as_list(videos)):
            try:
                clips.append(processor._clip(video, is_asked_for, input_data_format))
            except ValueError as error:
                raise ValueError(f"video {index}: {error}") from error
        shapes = sorted({tuple(clip.shape) for clip in clips})
        if len(shapes) > 1:
            raise ValueError(
                f"clips of different shapes (T, C, H, W) make no batch: {', '.join(map(str, shapes))}; pass "
                "do_sample_frames=True for one length, do_resize=True and do_center_crop=True for one size"
            )
        return BatchFeature({"pixel_values_videos": torch.stack(clips)}, tensor_type=return_tensors)

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.valid_kwargs.__annotations__}

    def _clip(self, video, is_asked_for: bool, input_data_format: str | None) -> torch.Tensor:
        """The clip of one video: float32, shape (T, C, H, W)."""
        is_encoded = isinstance(video, (str, bytes, os.PathLike)) or hasattr(video, "get_frames_at")
        sampled = (is_encoded or is_asked_for) if self.do_sample_frames is None else self.do_sample_frames
        frames = _load(video, self.sample_frames if sampled else _all_frames, input_data_format)
        frames = self._center_crop(self._resize(frames))
        if sampled and len(frames) < self.num_frames:
            frames = torch.cat([frames, frames[-1:].expand(self.num_frames - len(frames), -1, -1, -1)])
        return self._rescale_and_normalize(frames)

    def _resize(self, frames: torch.Tensor) -> torch.Tensor:
        height, width = frames.shape[-2:]
        side, shortest = self.size["shortest_edge"], min(height, width)
        if not self.do_resize or shortest == side:
            return frames
        size = (side * height // shortest, side * width // shortest)
        return F.interpolate(frames, size=size, mode="bilinear", antialias=True)

    def _center_crop(self, frames: torch.Tensor) -> torch.Tensor:
        if not self.do_center_crop:
            return frames
        height, width = frames.shape[-2:]
        crop_height, crop_width = self.crop_size["height"], self.crop_size["width"]
        if crop_height > height or crop_width > width:
            raise ValueError(
                f"a crop of {crop_height}x{crop_width} pixels exceeds the frame of {height}x{width} pixels; raise "
                "size or lower crop_size"
            )
        top, left = round((height - crop_height) / 2), round((width - crop_width) / 2)
        return frames[..., top : top + crop_height, left : left + crop_width]

    def _rescale_and_normalize(self, frames: torch.Tensor) -> torch.Tensor:
        if self.do_rescale:
            if frames.dtype != torch.uint8:
                raise ValueError(
                    f"do_rescale divides uint8 frames by 255, these are {frames.dtype}; pass do_rescale=False if "
                    "their pixels lie in [0, 1] already"
                )
            frames = frames.float() / 255
        frames = frames.float().contiguous()
        if self.do_normalize:
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.image_mean, self.image_std))
            frames = (frames - mean) / std
        return frames


def _is_count(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _size(name: str, size: int | dict[str, int], keys: tuple[str, ...]) -> dict[str, int]:
    """A size in pixels with exactly these keys, from such a size or from one number for all of them."""
    sizes = size if isinstance(size, dict) else dict.fromkeys(keys, size)
    if set(sizes) != set(keys) or not all(map(_is_count, sizes.values())):
        raise ValueError(f"{name} is {size}; give pixels, or a dictionary with {' and '.join(keys)}")
    return dict(sizes)


def _all_frames(num_frames: int) -> list[int]:
    return list(range(num_frames))


def _is_frame(item) -> bool:
    return hasattr(item, "convert") or ((is_torch_tensor(item) or is_numpy_array(item)) and item.ndim == 3)


def _as_list(videos) -> list:
    """The videos one by one; a list of frames is one video."""
    if (is_torch_tensor(videos) or is_numpy_array(videos)) and videos.ndim == 5:
        videos = list(videos)
    if not isinstance(videos, (list, tuple)):
        return [videos]
    if len(videos) == 0:
        raise ValueError("videos is empty; give at least one video")
    return [videos] if all(map(_is_frame, videos)) else list(videos)


def _load(video, choose: Choose, input_data_format: str | None) -> torch.Tensor:
    """The chosen frames of one video in any form: uint8, or float32 if given as floats, shape (T, 3, H, W)."""
    if isinstance(video, (str, bytes, os.PathLike)):
        return read_file(video, choose)
    if hasattr(video, "get_frames_at"):
        frames = read_decoder(video, choose).cpu()
    elif isinstance(video, (list, tuple)):
        if not video or not all(map(_is_frame, video)):
            raise ValueError("expected a list of frames: images of PIL, or tensors or arrays of 3 dimensions")
        frames = [_to_tensor(video[index]) for index in choose(len(video))]
        if len({frame.shape for frame in frames}) > 1:
            raise ValueError("the frames differ in shape")
        frames = torch.stack(frames)
    elif (is_torch_tensor(video) or is_numpy_array(video)) and video.ndim == 4:
        if len(video) == 0:
            raise ValueError(f"no frames in {tuple(video.shape)}")
        frames = _to_tensor(video[choose(len(video))])
    else:
        shape = f" of shape {tuple(video.shape)}" if hasattr(video, "shape") else ""
        raise ValueError(
            f"{type(video).__name__}{shape} is no video; give a path, a URL, bytes, a VideoDecoder, a list of frames, "
            "or a tensor or array (T, C, H, W) or (T, H, W, C)"
        )
    if frames.dtype != torch.uint8 and not frames.is_floating_point():
        raise ValueError(f"frames are {frames.dtype}; give uint8, or floats with do_rescale=False")
    frames = _channels_first(frames, input_data_format)
    # Antialiased resizing of half precision does not exist on the CPU
    frames = frames.float() if frames.is_floating_point() else frames
    return frames.expand(-1, 3, -1, -1)


def _to_tensor(pixels) -> torch.Tensor:
    """A frame or video as a tensor on the CPU, where uint8 can be resized."""
    if is_torch_tensor(pixels):
        return pixels.detach().cpu()
    if hasattr(pixels, "convert"):
        pixels = to_numpy_array(pixels.convert("RGB"))
    # A copy, because tensors can share neither read-only arrays nor negative strides
    return torch.from_numpy(pixels.copy())


def _channels_first(frames: torch.Tensor, input_data_format: str | None) -> torch.Tensor:
    """(T, C, H, W) or (T, H, W, C) -> (T, C, H, W), where C is 1 or 3."""
    layouts = {"channels_first": frames.shape[1], "channels_last": frames.shape[3]}
    if input_data_format is not None and input_data_format not in layouts:
        raise ValueError(f"input_data_format is {input_data_format!r}; known are {', '.join(layouts)}")
    fitting = [layout for layout, size in layouts.items() if size in (1, 3) and input_data_format in (None, layout)]
    if not fitting:
        raise ValueError(f"frames of shape {tuple(frames.shape)} have neither 1 nor 3 channels")
    if len(fitting) > 1:
        raise ValueError(
            f"frames of shape {tuple(frames.shape)} may have channels first or last; pass input_data_format"
        )
    return frames if fitting == ["channels_first"] else frames.permute(0, 3, 1, 2)
