"""The data of pretraining: lists of videos, decoding, clips, masks, batches and the report of bad videos."""

from .clips import Clip, DecodingError
from .collating import PretrainingCollator
from .datasets import DECODE_TIMEOUT, PretrainingClips
from .decoding import read_clip
from .isolation import Isolated
from .masking import MASKS, MaskArguments, MultiBlockMasks, RandomMask, TubeMask
from .reports import BadData, BadVideos
from .sources import load_videos
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
    "generator_for",
    "load_videos",
    "random_crop",
    "random_flip",
    "random_resized_crop",
    "read_clip",
    "repeat_last_frame",
]
