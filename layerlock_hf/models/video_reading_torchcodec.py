"""Reading chosen frames with torchcodec, from a given decoder or from a file that PyAV cannot read.

T frames, H and W pixels.
"""

import functools
import logging
import math
from collections.abc import Callable, Iterator

import torch

from .video_reading_opening import one_line
from .video_reading_rgb import sensible_aspect
from .video_reading_timeline import Choose


logger = logging.getLogger(__name__)


@functools.cache
def torchcodec_decoder() -> type | None:
    """torchcodec's VideoDecoder, or None when it does not load on this machine."""
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError, OSError) as error:
        logger.warning(f"torchcodec does not load, so only PyAV decodes the videos: {one_line(error)}")
        return None
    return VideoDecoder


def read_decoder(decoder, choose: Choose | None = None, frame_rate: float | None = None) -> tuple[torch.Tensor, float]:
    """`read_file` of a `VideoDecoder`, with the frames in the order of dimensions that it was made with."""
    check_decoder(decoder)
    if choose is None:
        frames = decoder.get_frames_at(list(range(len(decoder)))).data
    else:
        # It does not tell when its frames are shown, but finds those that are shown at some times
        begin, end = decoder.metadata.begin_stream_seconds, decoder.metadata.end_stream_seconds
        tick = (end - begin) / len(decoder) if frame_rate is None else 1 / frame_rate
        last = math.nextafter(end, begin)
        indices = choose(max(1, round((end - begin) / tick)))
        frames = decoder.get_frames_played_at([min(begin + (index + 0.5) * tick, last) for index in indices]).data
    return frames, decoder_aspect(decoder, frames)


def read_decoder_windows(
    decoder, count: Callable[[float | None], int]
) -> Iterator[tuple[torch.Tensor, float, float | None]]:
    """`read_windows` of a `VideoDecoder`, with the frames in the order of dimensions that it was made with."""
    check_decoder(decoder)
    rate = decoder.metadata.average_fps
    for window in torch.arange(len(decoder)).split(count(rate)):
        frames = decoder.get_frames_at(window.tolist()).data
        yield frames, decoder_aspect(decoder, frames), rate


def check_decoder(decoder):
    """Before any frame is asked for.

    Raises:
        ValueError: if there is none.
    """
    if len(decoder) == 0:
        raise ValueError("no frames")
    if decoder.metadata.codec == "h264" and "444" in (decoder.metadata.pixel_format or ""):
        # Only the first frame names the x264 version, without which FFmpeg garbles 4:4:4 files of old versions
        decoder.get_frame_at(0)


def decoder_aspect(decoder, frames: torch.Tensor) -> float:
    """Width over height of a pixel of the frames as they come, turned upright."""
    shown_height = frames.shape[-2 if frames.shape[1] == 3 else -3]
    aspect = sensible_aspect(decoder.metadata.pixel_aspect_ratio)
    return aspect if decoder.metadata.height == shown_height else 1 / aspect
