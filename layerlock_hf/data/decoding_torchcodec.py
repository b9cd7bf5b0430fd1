"""Reading chosen frames with torchcodec, which finds FFmpeg on the machine and can decode on the GPU."""

import functools
import io
import logging
import re

import numpy as np

from .clips import Choose, Clip, Crop, DecodingError, one_line, pixel_aspect, shown_frames
from .decoding_pyav import timeline_seconds
from .transforms import resize


logger = logging.getLogger(__name__)


def read_torchcodec(
    file: str | io.BytesIO, choose: Choose, crop: Crop | None, frame_rate: float | None, device: str
) -> Clip:
    """`read_clip` by torchcodec alone, from a path or a file object.

    Raises:
        DecodingError: also where torchcodec does not load, on this machine.
    """
    decoder_class = torchcodec_decoder()
    if decoder_class is None:
        raise DecodingError("torchcodec does not load on this machine", "unsupported")
    try:
        decoder = decoder_class(file, num_ffmpeg_threads=1, seek_mode="exact", device=device)
        if len(decoder) == 0:
            raise DecodingError("no frames")
        if decoder.metadata.codec == "h264" and "444" in (decoder.metadata.pixel_format or ""):
            # Only the first frame names the x264 version, without which FFmpeg garbles 4:4:4 files of old versions
            decoder.get_frame_at(0)
        shown = shown_frames(_seconds(file, decoder), frame_rate)
        batch = decoder.get_frames_at(shown[choose(len(shown))].tolist())
    except (RuntimeError, ValueError, IndexError) as error:
        # The messages begin with a function and a line of the C++ sources
        raise DecodingError(one_line(re.sub(r"^\w+, \S+\.cpp:\d+, ", "", str(error)))) from error
    frames, aspect = batch.data, pixel_aspect(decoder.metadata.pixel_aspect_ratio)
    if (decoder.metadata.height, decoder.metadata.width) != tuple(frames.shape[-2:]):
        aspect = 1 / aspect  # lies on its side
    if crop is not None:
        top, left, height, width = crop.box(*frames.shape[-2:], aspect)
        frames = frames[..., top : top + height, left : left + width]
        frames = frames if crop.image_size is None else resize(frames, crop.image_size)
    return Clip(frames.cpu(), batch.pts_seconds.cpu(), len(shown), aspect)


@functools.cache
def torchcodec_decoder() -> type | None:
    """torchcodec's VideoDecoder, or None when it does not load on this machine."""
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError, OSError) as error:
        logger.warning("torchcodec does not load; PyAV alone decodes the videos: %s", one_line(error))
        return None
    return VideoDecoder


def _seconds(file: str | io.BytesIO, decoder) -> np.ndarray:
    """When each frame appears. torchcodec knows and does not tell: PyAV is asked, or the rate taken for constant."""
    try:
        seconds = timeline_seconds(file)
    except DecodingError:
        seconds = None
    if seconds is not None and len(seconds) == len(decoder):
        return seconds
    return np.linspace(decoder.metadata.begin_stream_seconds, decoder.metadata.end_stream_seconds, len(decoder))
