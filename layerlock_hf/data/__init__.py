"""The data of pretraining: lists of videos, decoding, clips, masks, batches and the report of bad videos."""

from .batch_augmentation import BatchAugmentation
from .clips import Clip, Crop, DecodingError
from .collator import PretrainingCollator
from .datasets import DECODE_TIMEOUT, MAX_ATTEMPTS, PretrainingClips, check_window, isolated
from .decoding import read_clip
from .isolation import DecoderLost, Isolated
from .masks import MASKS, FutureMask, MaskArguments, MultiBlockMasks, RandomMask, TubeMask
from .reports import BadData, BadVideos
from .sources import load_videos
from .transforms import RESIZE_FACTOR, Augmentation, ClipTransform, center_crop, generator_for, repeat_last_frame
from .video_access import check_present, fetch, is_any_there, is_remote, name_of


__all__ = [
    "Augmentation",
    "BadData",
    "BadVideos",
    "BatchAugmentation",
    "Clip",
    "ClipTransform",
    "Crop",
    "DECODE_TIMEOUT",
    "DecoderLost",
    "DecodingError",
    "FutureMask",
    "Isolated",
    "MASKS",
    "MAX_ATTEMPTS",
    "MaskArguments",
    "MultiBlockMasks",
    "PretrainingClips",
    "PretrainingCollator",
    "RESIZE_FACTOR",
    "RandomMask",
    "TubeMask",
    "center_crop",
    "check_present",
    "check_window",
    "fetch",
    "generator_for",
    "is_any_there",
    "is_remote",
    "isolated",
    "load_videos",
    "name_of",
    "read_clip",
    "repeat_last_frame",
]
