"""Reading chosen frames with PyAV, which makes only the part RGB that a crop keeps."""

import io

import av
import torch

from ..models.video_reading_opening import as_decoding_errors
from ..models.video_reading_pyav import read_frames
from ..models.video_reading_rgb import Upright, upright_size
from ..models.video_reading_timeline import Choose
from .clips import Clip, Crop, DecodingError, one_line
from .transforms import resize


# FFmpeg prints hundreds of lines per damaged file; the reason reaches the user through DecodingError and Clip.note.
av.logging.set_level(av.logging.PANIC)


def read_pyav(
    file: str | io.BytesIO, choose: Choose, crop: Crop | None, frame_rate: float | None, device: str = "cpu"
) -> Clip:
    """`read_clip` by PyAV alone, from a path or a file object.

    Raises:
        DecodingError: as `read_clip`.
    """
    try:
        with as_decoding_errors():
            found = read_frames(file, choose, frame_rate)
            frames = _cropped(found.frames, found.pixel_aspect, crop)
    except (RuntimeError, ValueError, MemoryError) as error:
        raise DecodingError(f"{type(error).__name__}: {one_line(error)}") from error
    is_partial = found.note is not None
    return Clip(frames, found.seconds, found.num_frames, found.pixel_aspect, found.note, is_partial)


def _cropped(frames: list[av.VideoFrame], pixel_aspect: float, crop: Crop | None) -> torch.Tensor:
    """The frames of a video, upright, in RGB and cropped: uint8, shape (T, 3, H, W)."""
    first = frames[0]
    height, width = upright_size(first)
    box = crop.box(height, width, pixel_aspect) if crop else (0, 0, height, width)
    upright = Upright(first, box)
    if crop is None or crop.image_size is None:  # pixel by pixel, as frames are stored and resized fastest
        pixels = torch.empty(len(frames), *box[2:], 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    else:
        pixels = torch.empty(len(frames), 3, crop.image_size, crop.image_size, dtype=torch.uint8)
    for index, frame in enumerate(frames):
        kept = upright(frame)
        # One by one, frames stay in the cache
        pixels[index] = kept if crop is None or crop.image_size is None else resize(kept[None], crop.image_size)[0]
    return pixels
