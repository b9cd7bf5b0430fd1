"""The pipeline "video-depth-estimation": videos of any length to the depth of all their frames.

T frames of a video, H and W pixels, S side of the square that the model takes.
"""

import functools
import os
from collections.abc import Callable, Iterator

import torch
from transformers import Pipeline

from .depth_windows import check_processor, depth_of_frames, estimate_windows, window_of
from .video_frames import given_frames, to_rgb
from .video_reading import read_windows
from .video_reading_torchcodec import read_decoder_windows


class VideoDepthEstimationPipeline(Pipeline):
    """Estimates the depth of every frame of a video, as far as the model sees it.

    What the model sees is what its video processor cuts out: of readouts the square in the middle that they were
    trained on, of a processor saved with `do_center_crop=False` and `size={"height": S, "width": S}` whole frames.

    The model takes clips of `config.num_frames` frames at the pace that it was trained on: `frame_stride` frames apart
    or, with a `frame_rate` of the processor, as many of the video as come closest to that. Such clips interlock, so
    that every frame is in one. The last clips repeat their last frame.

    Examples:
        >>> estimate = pipeline("video-depth-estimation", model="FOLDER", batch_size=4)
        >>> estimate("cat.mp4")["predicted_depth"]  # metres, (T, H, W), NaN where the model does not look

    Args:
        batch_size: clips that pass through the model at once, of one video.
        kwargs: of `Pipeline`, and what a call takes.

    Raises:
        ValueError: if the model has no `LayerLockVideoProcessor`, or does not tell the size of its clips.
    """

    _load_processor = False
    _load_image_processor = False
    _load_video_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args, batch_size: int | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.clips_per_pass = 1 if batch_size is None else batch_size
        check_processor(self.video_processor)
        for name in ("num_frames", "image_size"):
            if not isinstance(getattr(self.model.config, name, None), int):
                raise ValueError(
                    f"model must have config.{name}, got a {type(self.model).__name__} without: give a model of "
                    "clips of one size"
                )

    def __call__(self, videos, batch_size: int | None = None, **kwargs):
        """The depth of a video, or of each video of a list, generator or dataset.

        Args:
            videos: a video is a path, a URL, the bytes of a file, a `VideoDecoder` of torchcodec, or a tensor or array
                (T, C, H, W) or (T, H, W, C), of uint8, or of floats in [0, 1]. Files are read as they are needed, by
                PyAV: all frames that they have, whatever their times.
            batch_size: as of the pipeline, for this call.
            kwargs: `resize_to_video`, whether depth is brought to the size and place that it has in the frames (by
                default it is), and `frame_stride`, frames from one frame of a clip to the next (by default those of
                the processor).

        Returns:
            For each video

            predicted_depth: in metres, float32, (T, H, W), aligned with the frames, NaN around `box`. Without
                `resize_to_video` (T, S, S), what is in the box as the model gives it: for long videos in large
                pictures, which take 8 MB a frame in full HD.
            box: top, left, height and width of what the model sees of the frames, in pixels of the frames.

            A list of many long videos is better given as a generator, whose results come one by one.

        Raises:
            ValueError: naming the video that cannot be read, or the impossible setting.
        """
        if isinstance(videos, (list, tuple)) and not videos:
            raise ValueError("videos must hold at least one video, got none")
        clips_per_pass = self.clips_per_pass if batch_size is None else batch_size
        # For the library a batch holds several videos, which have different lengths
        return super().__call__(videos, batch_size=1, clips_per_pass=clips_per_pass, **kwargs)

    def _sanitize_parameters(self, clips_per_pass=None, frame_stride=None, resize_to_video=None):
        given = {"clips_per_pass": clips_per_pass, "frame_stride": frame_stride, "resize_to_video": resize_to_video}
        given = {name: value for name, value in given.items() if value is not None}
        for name, count in (("batch_size", clips_per_pass), ("frame_stride", frame_stride)):
            if count is not None and (not isinstance(count, int) or count < 1):
                raise ValueError(f"{name} must be an integer of at least 1, got {count!r}")
        return {}, given, {}

    def preprocess(self, video) -> dict:
        # Not as a tensor, which would be moved to the device whole
        return {"windows": functools.partial(windows_of, video)}

    def _forward(
        self, model_inputs, clips_per_pass: int = 1, frame_stride: int | None = None, resize_to_video: bool = True
    ) -> dict:
        num_frames = self.model.config.num_frames

        def stride(frame_rate: float | None) -> int:
            return self.video_processor.stride_at(frame_rate) if frame_stride is None else frame_stride

        windows = (
            window_of(frames, aspect, self.video_processor, num_frames, stride(rate))
            for frames, aspect, rate in model_inputs["windows"](lambda rate: num_frames * stride(rate))
        )
        depths, box = [], None
        for window, depth in estimate_windows(self._depth_of_clips, windows, clips_per_pass):
            depths.append(depth_of_frames(depth, window) if resize_to_video else depth)
            box = window.box
        return {"predicted_depth": torch.cat(depths), "box": box}

    def postprocess(self, model_outputs: dict) -> dict:
        return model_outputs

    def _depth_of_clips(self, clips: torch.Tensor) -> torch.Tensor:
        """float32 on the CPU: (B, num_frames, C, S, S) -> (B, num_frames, S, S)"""
        videos = clips.to(self.device, self.model.dtype)
        return self.model(pixel_values_videos=videos).predicted_depth.float().cpu()


def windows_of(video, count: Callable[[float | None], int]) -> Iterator[tuple[torch.Tensor, float, float | None]]:
    """All frames of a video in any form, a window at a time.

    Args:
        video: as of the pipeline.
        count: from the frames per second of the video, None if unknown, to the number of frames of a window.

    Yields:
        uint8, or float32 if given as floats, (T, 3, H, W); the width of a pixel over its height; frames per second.

    Raises:
        ValueError: as of the processor.
    """
    if isinstance(video, (str, bytes, os.PathLike)):
        yield from read_windows(video, count)
    elif hasattr(video, "get_frames_at"):
        for frames, aspect, rate in read_decoder_windows(video, count):
            yield to_rgb(frames.cpu(), None), aspect, rate
    else:
        frames = to_rgb(given_frames(video, lambda length: list(range(length))), None)
        yield from ((window, 1.0, None) for window in frames.split(count(None)))
