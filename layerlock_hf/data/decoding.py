"""Reading chosen frames of a video file: by PyAV, and by torchcodec where PyAV fails or the GPU decodes.

PyAV comes first because it can leave out frames that are neither wanted nor needed to decode others, and brings its
own FFmpeg.
"""

import io
import math
import os

import torch

from ..models.video_reading_opening import openable
from ..models.video_reading_pictures import read_pictures
from ..models.video_reading_timeline import Choose
from .clips import Clip, Crop, DecodingError, one_line
from .decoding_pyav import read_pyav
from .decoding_torchcodec import read_torchcodec


ENCRYPTED_TRACK = b"encv"  # the name of an encrypted video track's sample entry (ISO/IEC 23001-7)
HEADER = 2**20  # bytes at each end of a file that its header is sought in


def read_clip(
    source: str | bytes,
    choose: Choose,
    crop: Crop | None = None,
    frame_rate: float | None = None,
    device: str = "cpu",
) -> Clip:
    """Read the frames `choose(num_frames)` of the best video stream of a local file or of its bytes, or of a folder of
    pictures, a frame each.

    The frames are counted on a timeline of constant frame rate, the average one of the video: where the rate varies,
    a frame that is shown for long is counted several times.

    A file that one decoder cannot read goes to the other. A damaged file is read up to the damage;
    `choose` is then called again with the number of frames there are, and `note` of the clip says what happened.

    Args:
        source: path or bytes.
        choose: gives ascending indices for a number of frames.
        crop: what is kept of the frames; by default all.
        frame_rate: frames per second of the timeline, in place of the average.
        device: "cpu", or "cuda" to decode by NVDEC. The frames come back to the CPU.

    Raises:
        DecodingError: when nothing can be decoded.
    """
    if isinstance(source, str) and os.path.isdir(source):
        return _read_folder(source, choose, crop, frame_rate)
    first, second = (read_pyav, read_torchcodec) if device == "cpu" else (read_torchcodec, read_pyav)
    with openable(source) as file:
        try:
            return first(file, choose, crop, frame_rate, device)
        except DecodingError as error:
            try:
                clip = second(file, choose, crop, frame_rate, "cpu")
            except DecodingError:
                raise _explained(error, file) from None
            clip.note = clip.note or f"read by {second.__name__.removeprefix('read_')} alone: {error}"
            return clip


def _read_folder(folder: str, choose: Choose, crop: Crop | None, frame_rate: float | None) -> Clip:
    """Frames without times, which are counted as they come."""
    lengths = []

    def choose_and_count(num_frames: int) -> list[int]:
        lengths.append(num_frames)
        return choose(num_frames)

    try:
        frames = read_pictures(folder, choose_and_count, frame_rate)
    except ValueError as error:
        raise DecodingError(one_line(error), "unreadable") from error
    frames = frames if crop is None else crop.cut(frames)
    return Clip(frames, torch.full((len(frames),), math.nan, dtype=torch.float64), lengths[-1])


def _explained(error: DecodingError, file: str | io.BytesIO) -> DecodingError:
    """A better reason than that nothing decodes, where there is one."""
    if error.kind not in ("damaged", "unsupported"):
        return error
    with open(file, "rb") if isinstance(file, str) else io.BytesIO(file.getvalue()) as stream:
        head = stream.read(HEADER)
        stream.seek(-min(HEADER, stream.seek(0, os.SEEK_END)), os.SEEK_END)
        if ENCRYPTED_TRACK in head + stream.read():
            return DecodingError("encrypted", "encrypted")
    return error
