"""The data of pretraining: lists of videos, decoding, clips, masks, batches and the report of bad videos."""

from .collating import PretrainingCollator
from .datasets import DECODE_TIMEOUT, PretrainingClips
from .decoding import Clip, DecodingError, decoder_name, read_clip, read_clip_pyav
from .fetching import fetch, is_remote, name_of
from .isolation import Isolated
from .masking import MASKS, MaskArguments, MultiBlockMasks, RandomMask, TubeMask
from .reports import BadData, BadVideos
from .sources import count_per_source, load_videos
from .transforms import (
    center_crop,
    color_jitter,
    generator_for,
    random_crop,
    random_flip,
    random_resized_crop,
    repeat_last_frame,
)


__all__ = [
    "BadData",
    "BadVideos",
    "Clip",
    "DECODE_TIMEOUT",
    "DecodingError",
    "Isolated",
    "MASKS",
    "MaskArguments",
    "MultiBlockMasks",
    "PretrainingClips",
    "PretrainingCollator",
    "RandomMask",
    "TubeMask",
    "center_crop",
    "color_jitter",
    "count_per_source",
    "decoder_name",
    "fetch",
    "generator_for",
    "is_remote",
    "load_videos",
    "name_of",
    "random_crop",
    "random_flip",
    "random_resized_crop",
    "read_clip",
    "read_clip_pyav",
    "repeat_last_frame",
]
