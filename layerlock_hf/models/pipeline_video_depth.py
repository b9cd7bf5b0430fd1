"""The pipeline "video-depth-estimation": videos of any length to the depth of all their frames.

T frames of a video, H and W pixels, S side of the frames that the model takes.
"""

import functools
import os
from collections.abc import Iterator

import torch
from transformers import Pipeline
from transformers.modeling_outputs import DepthEstimatorOutput

from .modeling_layerlock_readout import post_process_depth_estimation
from .video_processing_layerlock import given_frames, to_rgb
from .video_reading import read_windows


class VideoDepthEstimationPipeline(Pipeline):
    """Estimates the depth of every frame of a video, whole frames squeezed to the square that the model takes.

    The model sees clips of `config.num_frames` frames, one after the other. With a `frame_stride` above 1, clips of so
    many frames interlock, so that each has the pace that the model was trained on and every frame is in one. The last
    clip repeats its last frame. The frames of a file are those that it has, whatever their times.

    >>> estimate = pipeline("video-depth-estimation", model="FOLDER", batch_size=4)
    >>> estimate("cat.mp4")["predicted_depth"]  # metres, (T, S, S)

    Args:
        batch_size: clips that pass through the model at once, of one video.
        kwargs: of `Pipeline`, and what a call takes.

    Raises:
        ValueError: if the model does not tell the size of its clips.
    """

    _load_processor = False
    _load_image_processor = False
    _load_video_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args, batch_size: int | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.clips_per_pass = 1 if batch_size is None else batch_size
        if self.video_processor is None:
            raise ValueError("depth of videos needs a video processor; save a LayerLockVideoProcessor with the model")
        for name in ("num_frames", "image_size"):
            if not isinstance(getattr(self.model.config, name, None), int):
                raise ValueError(
                    f"{type(self.model).__name__} has no config.{name}; give a model of clips of one size"
                )

    def __call__(self, videos, batch_size: int | None = None, **kwargs):
        """The depth of a video, or of each video of a list, generator or dataset.

        Args:
            videos: a video is a path, a URL, the bytes of a file, a `VideoDecoder` of torchcodec, or a tensor or array
                (T, C, H, W) or (T, H, W, C). Files are read as they are needed, by PyAV.
            batch_size: as of the pipeline, for this call.
            kwargs: `resize_to_video`, whether depth is resized to the size of the video (by default it is not), and
                `frame_stride`, frames from one frame of a clip to the next (by default that of the processor).

        Returns:
            {"predicted_depth": float32, shape (T, S, S), or (T, H, W), in metres} for each video. A list of many long
            videos is better given as a generator, whose results come one by one.

        Raises:
            ValueError: naming the video that cannot be read, or the impossible setting.
        """
        if isinstance(videos, (list, tuple)) and not videos:
            raise ValueError("videos is empty; give at least one video")
        clips_per_pass = self.clips_per_pass if batch_size is None else batch_size
        # For the library a batch holds several videos, which have different lengths
        return super().__call__(videos, batch_size=1, clips_per_pass=clips_per_pass, **kwargs)

    def _sanitize_parameters(self, clips_per_pass=None, frame_stride=None, resize_to_video=None):
        given = {"clips_per_pass": clips_per_pass, "frame_stride": frame_stride, "resize_to_video": resize_to_video}
        given = {name: value for name, value in given.items() if value is not None}
        for name, count in (("batch_size", clips_per_pass), ("frame_stride", frame_stride)):
            if count is not None and (not isinstance(count, int) or count < 1):
                raise ValueError(f"{name} is {count!r}; give an integer of at least 1")
        return {}, given, {}

    def preprocess(self, video) -> dict:
        # Not as a tensor, which would be moved to the device whole
        return {"windows": functools.partial(windows_of, video)}

    def _forward(
        self, model_inputs, clips_per_pass: int = 1, frame_stride: int | None = None, resize_to_video: bool = False
    ) -> dict:
        stride = self.video_processor.frame_stride if frame_stride is None else frame_stride
        windows = model_inputs["windows"](self.model.config.num_frames * stride)
        depths, positions, batch, num_read, size = [], [], [], 0, None
        for window in windows:
            size = tuple(window.shape[-2:])
            for first in range(min(stride, len(window))):
                batch.append(squeezed_clip(window[first::stride], self.video_processor, self.model.config))
                positions.append(torch.arange(num_read + first, num_read + len(window), stride))
                if len(batch) == clips_per_pass:
                    depths += self._depths(batch)
                    batch = []
            num_read += len(window)
        depths += self._depths(batch) if batch else []
        depths = [depth[: len(kept)] for depth, kept in zip(depths, positions, strict=True)]
        predicted_depth = torch.cat(depths)[torch.cat(positions).argsort()]
        if resize_to_video:
            output = DepthEstimatorOutput(predicted_depth=predicted_depth.unsqueeze(0))
            return post_process_depth_estimation(output, [size])[0]
        return {"predicted_depth": predicted_depth}

    def postprocess(self, model_outputs: dict) -> dict:
        return model_outputs

    def _depths(self, clips: list[torch.Tensor]) -> list[torch.Tensor]:
        """Depth of each clip, float32 on the CPU, (num_frames, S, S)."""
        videos = torch.cat(clips).to(self.device, self.model.dtype)
        return list(self.model(pixel_values_videos=videos).predicted_depth.float().cpu())


def squeezed_clip(frames: torch.Tensor, processor, config) -> torch.Tensor:
    """What a model of depth sees of up to `num_frames` frames: (T', 3, H, W) -> (1, num_frames, 3, S, S)"""
    size = {"height": config.image_size, "width": config.image_size}
    settings = {"input_data_format": "channels_first", "do_resize": True, "size": size, "do_center_crop": False}
    # Sampling repeats the last frame where there are too few
    settings |= {"do_sample_frames": True, "num_frames": config.num_frames, "frame_stride": 1}
    return processor(frames, **settings)["pixel_values_videos"]


def windows_of(video, num_frames: int) -> Iterator[torch.Tensor]:
    """All frames of a video in any form, so many at a time: uint8, or float32 if given as floats, (T', 3, H, W).

    Raises:
        ValueError: as of the processor.
    """
    if isinstance(video, (str, bytes, os.PathLike)):
        yield from read_windows(video, num_frames)
    elif hasattr(video, "get_frames_at"):
        for start in range(0, len(video), num_frames):
            window = video.get_frames_at(list(range(start, min(start + num_frames, len(video)))))
            yield to_rgb(window.data.cpu(), None)
    else:
        yield from to_rgb(given_frames(video, lambda length: list(range(length))), None).split(num_frames)
