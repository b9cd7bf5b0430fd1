"""From a tree of videos to shards: every file is checked, re-encoded if asked for, and packed."""

from .examining import PrepareArguments
from .probing import VideoFacts, probe_video
from .ranks import missing_ranks, prepare, read_report


__all__ = ["PrepareArguments", "VideoFacts", "missing_ranks", "prepare", "probe_video", "read_report"]
