"""A tree of videos as shards: every file is looked at, re-encoded where asked for, and packed."""

from .examining import PrepareArguments
from .probing import VideoFacts, probe_video
from .ranks import missing_ranks, prepare, read_report


__all__ = ["PrepareArguments", "VideoFacts", "missing_ranks", "prepare", "probe_video", "read_report"]
