"""From videos in any form to the clips that the encoder takes, without torchvision.

B batch, T frames, C channels, H and W pixels. Frames are chosen before they are decoded, and stay uint8 until they are
cropped and resized.
"""

import math
import os
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from transformers import BatchFeature
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import logging
from transformers.video_processing_utils import VideoProcessorMixin

from .remote_code import write_code
from .video_frames import given_frames, list_videos, to_rgb
from .video_reading import read_file, read_windows
from .video_reading_torchcodec import read_decoder


logger = logging.get_logger(__name__)

MAX_FRAME_RATE = 1000
WINDOW = 32  # frames that are held at their full size where a whole video is asked for
MARGIN = 0.01  # by which resizing may pass the ends of [0, 1]
SIDES = ("height", "width")
AUTO_MAP = {"AutoVideoProcessor": "video_processing_layerlock.LayerLockVideoProcessor"}
# What the library itself writes into the file of a processor.
LIBRARY_KEYS = {"auto_map", "image_processor_type", "processor_class", "video_processor_type"}


class LayerLockVideosKwargs(TypedDict, total=False):
    """Arguments of `LayerLockVideoProcessor`, of its `from_pretrained` and of a call; described there."""

    num_frames: int
    frame_stride: int
    frame_rate: float | None
    do_sample_frames: bool | None
    do_resize: bool
    size: float | dict[str, float]
    do_center_crop: bool
    crop_size: int | dict[str, int] | None
    do_rescale: bool
    do_normalize: bool
    image_mean: list[float] | tuple[float, ...]
    image_std: list[float] | tuple[float, ...]


class LayerLockVideoProcessor(VideoProcessorMixin):
    """Cuts clips out of videos, crops and resizes their frames, and scales the pixels to [0, 1].

    Examples:
        >>> processor = LayerLockVideoProcessor.from_config(model.config)
        >>> list(processor(["cat.mp4", "https://example.org/dog.mp4"]).pixel_values_videos.shape)
        [2, 16, 3, 224, 224]

    `pipeline("video-classification", model=FOLDER)` finds it. With a `batch_size` above 1 Transformers 5.23
    batches only what has an image processor: give it as `image_processor=processor`, too.

    Args:
        num_frames: frames T of a sampled clip.
        frame_stride: frames from one sampled frame to the next.
        frame_rate: frames per second that `frame_stride` counts, as in pretraining; by default the average of each
            video. Frames that are given as such have no times, and are counted as they come.
        do_sample_frames: cut a clip of `num_frames` frames out of the middle of every video, whose last frame is
            repeated where it is too short. By default files, URLs and decoders are sampled, and frames that are given
            as such are a clip already, unless the call names `num_frames` or `frame_stride`.
        do_resize: resize to `size`, bilinear and antialiased.
        size: shortest side in pixels, or `{"shortest_edge": pixels}`: the other side keeps the proportions of what a
            player shows. With `{"height": pixels, "width": pixels}` frames are squeezed to that, whatever their shape.
            It may have fractions, for only the crop comes to be: 257.6 is 1.15 times a crop of 224.
        do_center_crop: take the middle `crop_size` of the frames of this size. As in pretraining and in readouts, what
            it shows is cut out of the frames first and resized then: see `shown_box`.
        crop_size: side of a square in pixels, or `{"height": pixels, "width": pixels}`; by default `size`.
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
        frame_rate: float | None = None,
        do_sample_frames: bool | None = None,
        do_resize: bool = True,
        size: float | dict[str, float] = 224,
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
            raise ValueError(
                f"unknown setting(s) of {type(self).__name__}: {', '.join(unknown)}: choose among {known}"
            )
        super().__init__(**kwargs)
        for name, value in (("num_frames", num_frames), ("frame_stride", frame_stride)):
            if not _is_count(value):
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        if frame_rate is not None and not (_is_number(frame_rate) and 0 < frame_rate <= MAX_FRAME_RATE):
            raise ValueError(
                f"frame_rate must be above 0 and at most {MAX_FRAME_RATE} frames per second, or None, got "
                f"{frame_rate!r}"
            )
        for name, values in (("image_mean", image_mean), ("image_std", image_std)):
            if not isinstance(values, (list, tuple)) or len(values) != 3:
                raise ValueError(f"{name} must be one value for each of the 3 colours, got {values}")
        if min(image_std) <= 0:
            raise ValueError(f"image_std must be above 0, got {image_std}")
        self.num_frames = num_frames
        self.frame_stride = frame_stride
        self.frame_rate = frame_rate
        self.do_sample_frames = do_sample_frames
        self.do_resize = do_resize
        self.size = _size("size", size, ("shortest_edge",), SIDES)
        self.do_center_crop = do_center_crop
        if crop_size is None:
            crop_size = {side: int(self.size.get(side) or self.size["shortest_edge"]) for side in SIDES}
        self.crop_size = _size("crop_size", crop_size, SIDES)
        if not all(map(_is_count, self.crop_size.values())):
            raise ValueError(f"crop_size must be whole pixels, got {crop_size}")
        self.do_rescale = do_rescale
        self.do_normalize = do_normalize
        self.image_mean = list(image_mean)  # as JSON has it
        self.image_std = list(image_std)

    @classmethod
    def from_config(cls, config, **overrides) -> "LayerLockVideoProcessor":
        """The processor of clips of the size and length that a `LayerLockViTConfig` names, with some settings changed.

        `size` alone changes how much of the frames the crop shows, not the size of the clips.

        Raises:
            ValueError: if pixels would be normalised twice.
        """
        if overrides.get("do_normalize") and getattr(config, "normalizes_pixels", False):
            raise ValueError("do_normalize must be False, got True: the encoder normalises its pixels itself")
        settings = {"num_frames": config.num_frames, "size": config.image_size, "crop_size": config.image_size}
        return cls(**{**settings, **overrides})

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "auto_map": AUTO_MAP}

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> list[str]:
        """As in Transformers, and beside it the code that loads the processor where the package is not installed."""
        write_code(save_directory, AUTO_MAP.values())
        return super().save_pretrained(save_directory, push_to_hub, **kwargs)

    def sample_frames(self, num_frames: int) -> list[int]:
        """Indices of the clip in the middle of a video of `num_frames` frames, fewer where the video is too short."""
        span = (self.num_frames - 1) * self.frame_stride + 1
        start = max(0, num_frames - span) // 2
        return list(range(start, num_frames, self.frame_stride))[: self.num_frames]

    def stride_at(self, frame_rate: float | None) -> int:
        """Frames from one frame of a clip to the next in a video of so many frames per second, None if unknown: those
        that come closest to the pace of `frame_stride` at `self.frame_rate`."""
        if self.frame_rate is None or frame_rate is None:
            return self.frame_stride
        return max(1, round(self.frame_stride * frame_rate / self.frame_rate))

    def shown_box(self, height: int, width: int, pixel_aspect: float = 1.0) -> tuple[int, int, int, int]:
        """Top, left, height and width of what clips show of frames, in pixels of the frames.

        Args:
            height: of the frames, in pixels.
            width: likewise.
            pixel_aspect: width of a pixel over its height.

        Raises:
            ValueError: if the crop exceeds the frames.
        """
        if not self.do_center_crop:
            return 0, 0, height, width
        shown_width, per, resized = self._resizing(height, width, pixel_aspect)
        crop_height, crop_width = self.crop_size["height"], self.crop_size["width"]
        if crop_height * per > height * resized or crop_width * per > shown_width * resized:
            raise ValueError(
                "crop_size must be at most the size of the frame, "
                f"{height * resized / per:g}x{shown_width * resized / per:g} pixels, got {crop_height}x{crop_width}: "
                "raise size or lower crop_size"
            )
        rows, columns = (max(1, round(side * per / resized)) for side in (crop_height, crop_width))
        top, left = round((height - rows) / 2), round((shown_width - columns) / 2)
        columns = min(width, max(1, round(columns * width / shown_width)))
        return top, min(width - columns, round(left * width / shown_width)), rows, columns

    def preprocess(
        self,
        videos,
        return_tensors: str | None = None,
        input_data_format: str | None = None,
        pixel_aspect: float = 1.0,
        **overrides,
    ) -> BatchFeature:
        """Clips ready for the encoder: `pixel_values_videos`, float32 of shape (B, T, C, H, W).

        Args:
            videos: one video or a list of videos. A video is a path, a URL, the bytes of a file, a `VideoDecoder` of
                torchcodec, a tensor or array (T, C, H, W) or (T, H, W, C), or a list of frames: images of PIL, or
                tensors or arrays (C, H, W) or (H, W, C). A tensor or array of five dimensions is a batch of videos.
            return_tensors: `"np"` for arrays; tensors by default.
            input_data_format: `"channels_first"` or `"channels_last"`, where the shape of the frames leaves it open.
            pixel_aspect: width of a pixel over its height in frames that are given as such; files and decoders tell
                their own.
            overrides: settings of the processor, for this call.

        Raises:
            ValueError: naming the video that cannot be read, or that does not fit into a batch with the others.
        """
        processor = type(self)(**{**self._settings(), **overrides}) if overrides else self
        is_asked_for = bool({"num_frames", "frame_stride"} & set(overrides))
        if is_asked_for and overrides.get("do_sample_frames") is False:
            raise ValueError(
                "num_frames and frame_stride sample frames, but do_sample_frames is False: leave them out"
            )
        clips = []
        for index, video in enumerate(list_videos(videos)):
            try:
                clips.append(processor._clip(video, is_asked_for, input_data_format, pixel_aspect))
            except ValueError as error:
                raise ValueError(f"video {index}: {error}") from error
        shapes = sorted({tuple(clip.shape) for clip in clips})
        if len(shapes) > 1:
            raise ValueError(
                f"clips must have one shape (T, C, H, W) to make a batch, got {', '.join(map(str, shapes))}: pass "
                "do_sample_frames=True for one length, do_resize=True and do_center_crop=True for one size"
            )
        return BatchFeature({"pixel_values_videos": torch.stack(clips)}, tensor_type=return_tensors)

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.valid_kwargs.__annotations__}

    def _clip(self, video, is_asked_for: bool, input_data_format: str | None, pixel_aspect: float) -> torch.Tensor:
        """The clip of one video: float32, shape (T, C, H, W)."""
        is_file, is_decoder = isinstance(video, (str, bytes, os.PathLike)), hasattr(video, "get_frames_at")
        is_sampled = self.do_sample_frames
        if is_sampled is None:
            is_sampled = is_file or is_decoder or is_asked_for
        choose = self.sample_frames if is_sampled else None
        if is_file and not is_sampled and not os.path.isdir(video):
            return self._rescale_and_normalize(self._whole(video))
        if is_file:
            frames, pixel_aspect = read_file(video, choose, self.frame_rate)
        elif is_decoder:
            frames, pixel_aspect = read_decoder(video, choose, self.frame_rate)
            frames = to_rgb(frames.cpu(), input_data_format)
        else:
            frames = to_rgb(given_frames(video, choose or _all_frames), input_data_format)
        frames = self._crop_and_resize(frames, pixel_aspect)
        if is_sampled and len(frames) < self.num_frames:
            logger.warning_once(
                f"a video has only {len(frames)} frames where num_frames={self.num_frames}: its last frame is repeated"
            )
            frames = torch.cat([frames, frames[-1:].expand(self.num_frames - len(frames), -1, -1, -1)])
        return self._rescale_and_normalize(frames)

    def _whole(self, video: str | bytes | os.PathLike) -> torch.Tensor:
        """Every frame of a file, cropped and resized a window at a time: together they may not fit into memory."""
        windows = read_windows(video, lambda frame_rate: WINDOW)
        return torch.cat([self._crop_and_resize(frames, aspect) for frames, aspect, _ in windows])

    def _crop_and_resize(self, frames: torch.Tensor, pixel_aspect: float) -> torch.Tensor:
        height, width = frames.shape[-2:]
        top, left, rows, columns = self.shown_box(height, width, pixel_aspect)
        if not self.do_resize:
            size = (rows, columns)
        elif self.do_center_crop:
            size = (self.crop_size["height"], self.crop_size["width"])
        elif "shortest_edge" in self.size:
            shown_width, per, resized = self._resizing(height, width, pixel_aspect)
            size = tuple(int(resized * side // per) for side in (height, shown_width))
        else:
            size = (int(self.size["height"]), int(self.size["width"]))
        frames = frames[..., top : top + rows, left : left + columns]
        return frames if size == (rows, columns) else F.interpolate(frames, size=size, mode="bilinear", antialias=True)

    def _resizing(self, height: int, width: int, pixel_aspect: float) -> tuple[int, int, float]:
        """The width of frames once their pixels are as square as those of the resized ones, at the same height; and
        how many of these pixels become how many."""
        if not self.do_resize:
            return width, 1, 1
        if "shortest_edge" in self.size:
            shown_width = max(1, round(width * pixel_aspect))
            return shown_width, min(height, shown_width), self.size["shortest_edge"]
        return max(1, round(height * self.size["width"] / self.size["height"])), height, self.size["height"]

    def _rescale_and_normalize(self, frames: torch.Tensor) -> torch.Tensor:
        if self.do_rescale:
            if frames.dtype != torch.uint8:
                raise ValueError(
                    f"frames must be uint8 for do_rescale, which divides by 255, got {frames.dtype}: pass "
                    "do_rescale=False if their pixels are in [0, 1] already"
                )
            frames = frames.float() / 255
        elif frames.is_floating_point():
            low, high = (bound.item() for bound in frames.aminmax())
            if low < -MARGIN or high > 1 + MARGIN:
                raise ValueError(
                    f"frames of floats must be between 0 and 1, got {low:g} to {high:g}: divide them by their "
                    "largest possible value"
                )
        frames = frames.float().contiguous()
        if self.do_normalize:
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.image_mean, self.image_std))
            frames = (frames - mean) / std
        return frames


def _is_count(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _size(name: str, size: float | dict[str, float], *forms: tuple[str, ...]) -> dict[str, float]:
    """A size in pixels with exactly the keys of one of the forms; one number stands for all keys of the first."""
    sizes = size if isinstance(size, dict) else dict.fromkeys(forms[0], size)
    if set(sizes) not in map(set, forms) or not all(_is_number(v) and 1 <= v < math.inf for v in sizes.values()):
        known = " or ".join(map(" and ".join, forms))
        raise ValueError(f"{name} must be pixels, or a dictionary with {known}, got {size}")
    # 1.15 * 224 is a little less than 257.6
    sizes = {key: round(value, 6) for key, value in sizes.items()}
    return {key: int(value) if value == int(value) else value for key, value in sizes.items()}


def _all_frames(num_frames: int) -> list[int]:
    return list(range(num_frames))
