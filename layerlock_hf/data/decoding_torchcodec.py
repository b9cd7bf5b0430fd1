"""Reading chosen frames with torchcodec, which finds FFmpeg on the machine and can decode on the GPU."""

import io
import re

import numpy as np
import torch

from ..models.video_reading_pyav import seconds_of_frames
from ..models.video_reading_timeline import Choose, choose_by_time
from ..models.video_reading_torchcodec import check_decoder, decoder_aspect, torchcodec_decoder
from .clips import Clip, Crop, DecodingError, one_line


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
        check_decoder(decoder)
        chosen, num_frames = choose_by_time(_seconds(file, decoder), choose, frame_rate)
        batch = decoder.get_frames_at(chosen)
    except (RuntimeError, ValueError, IndexError) as error:
        # The messages begin with a function and a line of the C++ sources
        raise DecodingError(one_line(re.sub(r"^\w+, \S+\.cpp:\d+, ", "", str(error)))) from error
    aspect = decoder_aspect(decoder, batch.data)
    frames = batch.data if crop is None else crop.cut(batch.data, aspect)
    return Clip(frames.cpu(), batch.pts_seconds.cpu(), num_frames, aspect)


def _seconds(file: str | io.BytesIO, decoder) -> torch.Tensor:
    """When each frame appears. torchcodec knows and does not tell: PyAV is asked, or the rate taken for constant."""
    try:
        seconds = seconds_of_frames(file)
    except DecodingError:
        seconds = None
    if seconds is not None and len(seconds) == len(decoder):
        return seconds
    begin, end = decoder.metadata.begin_stream_seconds, decoder.metadata.end_stream_seconds
    return torch.from_numpy(np.linspace(begin, end, len(decoder)))
