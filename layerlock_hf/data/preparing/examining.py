"""Preparing one file: it is probed, and re-encoded if asked for."""

import errno
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import av
from datasets.utils.py_utils import convert_file_size_to_int

from ...utils.files import put_in_place
from ..clips import DecodingError, one_line
from ..isolation import Isolated
from .probing import VideoFacts, probe_video
from .shards import MAX_PARQUET_VIDEO, SHARDS
from .transcoding import needs_transcoding, transcode


DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
PROBES = ("all", "ends")
# What is left out by the choices of `bad`; what is too short or too large for a shard always is
LEFT_OUT = {
    "drop": {"short", "large", "bad"},
    "drop_partial": {"short", "large", "bad", "partial"},
    "keep": {"short", "large"},
}


@dataclass(frozen=True)
class PrepareArguments:
    """How to prepare videos. The help texts say what each setting does."""

    shard_format: str = field(
        default="tar", metadata={"help": "Format of the shards; tar is WebDataset.", "choices": list(SHARDS)}
    )
    shard_size: str = field(
        default="512MB", metadata={"help": "Size of the videos in a shard, such as 1GB or 256MiB."}
    )
    probe: str = field(
        default="all",
        metadata={
            "help": "Frames of every file to decode: all, as damage can be anywhere, or only a few at both ends.",
            "choices": list(PROBES),
        },
    )
    bad: str = field(
        default="drop",
        metadata={
            "help": "What to do with bad files: drop those that do not decode, drop_partial also those that decode "
            "only in part, or keep all of them as they are. All are reported.",
            "choices": list(LEFT_OUT),
        },
    )
    min_frames: int = field(default=1, metadata={"help": "Leave out videos with fewer frames."})
    short_side: int | None = field(
        default=None, metadata={"help": "Re-encode larger videos so that their shorter side has this many pixels."}
    )
    gop: int | None = field(
        default=None, metadata={"help": "Re-encode videos with more frames than this from one keyframe to the next."}
    )
    crf: int = field(default=23, metadata={"help": "Quality of re-encoded videos, from 0 (lossless) to 51."})
    timeout: float = field(default=600.0, metadata={"help": "Seconds before giving up on a file that hangs."})
    seed: int = field(default=0, metadata={"help": "Seed of the random order of the videos."})

    def __post_init__(self):
        for name, choices in (("shard_format", SHARDS), ("probe", PROBES), ("bad", LEFT_OUT)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        try:
            is_size = convert_file_size_to_int(self.shard_size) > 0
        except ValueError:
            is_size = False
        if not is_size:
            raise ValueError(f"shard_size must be a size such as 512MB, got {self.shard_size!r}")
        for name, least in (("min_frames", 1), ("short_side", 2), ("gop", 1)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.crf <= 51:
            raise ValueError(f"crf must be between 0 and 51, got {self.crf}")
        if self.crf != PrepareArguments.crf and self.short_side is None and self.gop is None:
            raise ValueError(
                "crf is set but short_side and gop are not, so nothing is re-encoded: set one of them, or leave crf "
                "out"
            )
        if not 0.1 <= self.timeout <= 1e6:
            raise ValueError(f"timeout must be between 0.1 and 1e6 seconds, got {self.timeout}")


class Examiner:
    """Examines one video after another, each in a process of its own, which the video may crash."""

    def __init__(self, arguments: PrepareArguments):
        self.arguments = arguments
        self._examine = Isolated(self._examine_here, arguments.timeout)

    def __call__(self, task: tuple[int, str, str]) -> tuple[int, dict]:
        index, path, target = task
        video = {"stamp": stamp(path), "status": "bad", "kind": None, "reason": None, "facts": None, "prepared": None}
        try:
            answer = self._examine(path, target)
        except DecodingError as error:
            video |= {"kind": error.kind, "reason": str(error).replace("(decode_timeout)", "(timeout)")}
        except RuntimeError as error:
            # No video stops the others, not even one that meets a mistake of ours
            video |= {"kind": "error", "reason": f"error: {str(error).strip().splitlines()[-1]}"}
        else:
            if "errno" in answer:
                raise OSError(answer["errno"], os.strerror(answer["errno"]), target)
            video |= answer
        return index, video

    def _examine_here(self, path: str, target: str) -> dict:
        arguments = self.arguments
        facts, damage = probe_video(path, arguments.probe == "all")
        answer = {"status": "ok", "facts": asdict(facts)}
        if damage is not None:
            answer |= {"status": "partial", "kind": "damaged", "reason": damage}
        if facts.num_frames < arguments.min_frames:
            return answer | {"status": "short", "kind": "too short", "reason": f"{facts.num_frames} frames"}
        if answer["status"] in LEFT_OUT[arguments.bad]:
            return answer
        if needs_transcoding(facts, damage, arguments.short_side, arguments.gop):
            if arguments.probe != "all":
                facts, _ = probe_video(path)
            try:
                answer["prepared"] = self._transcode(path, target, facts)
            except (av.FFmpegError, OSError) as error:
                if error.errno in DISK_FULL:
                    return {"errno": error.errno}
                raise DecodingError(f"cannot be re-encoded: {error.strerror}", "re-encoding") from error
            except (RuntimeError, ValueError) as error:
                raise DecodingError(f"cannot be re-encoded: {one_line(error)}", "re-encoding") from error
        size = answer["prepared"]["size"] if "prepared" in answer else os.path.getsize(path)
        if arguments.shard_format == "parquet" and size > MAX_PARQUET_VIDEO:
            reason = f"does not fit into parquet: {size} bytes; write tar"
            return answer | {"status": "large", "kind": "too large", "reason": reason}
        return answer

    def _transcode(self, path: str, target: str, facts: VideoFacts) -> dict:
        arguments, part = self.arguments, f"{target}.part"
        transcode(path, part, facts, arguments.short_side, arguments.gop, arguments.crf)
        new_facts, damage = probe_video(part)
        if damage is not None or new_facts.num_frames != facts.num_frames:
            raise ValueError(f"{new_facts.num_frames} of {facts.num_frames} frames arrived")
        put_in_place(part, target)
        return {"size": os.path.getsize(target), "facts": asdict(new_facts)}


def stamp(path: str | Path) -> list[int] | None:
    """Size in bytes and time of the last change in nanoseconds; None without the file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]
