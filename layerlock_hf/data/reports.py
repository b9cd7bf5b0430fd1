"""The report of videos that could not be used, or only in part."""

import fcntl
import json
import os
from collections import Counter
from typing import BinaryIO


NETWORK = "network"  # the kind of what may pass


class BadData(RuntimeError):
    """Too many videos are unusable for the run to continue; the message, one line, is for the user."""


class BadVideos:
    """A JSON Lines file of bad videos, {"path", "kind", "reason", "used"} each, shared by all processes on a machine.

    Args:
        path: the file; None keeps the report in the memory of this process.
        num_videos: number of videos of the data set.
        max_bad_fraction: `add` raises once more than this fraction of the videos is unusable.
    """

    def __init__(self, path: str | None, num_videos: int, max_bad_fraction: float = 0.5):
        if not 0 <= max_bad_fraction <= 1:
            raise ValueError(
                f"max_bad_fraction must be between 0 and 1, a fraction of the videos, got {max_bad_fraction}"
            )
        self.path = path
        self.num_videos = num_videos
        self.max_bad_fraction = max_bad_fraction
        self._names: set[str] = set()
        self._unusable: Counter[str] = Counter()  # by kind
        self._usable: Counter[str] = Counter()
        self._num_read = 0  # bytes of the file
        self._num_old = 0  # bytes that an earlier attempt at the run wrote
        if path is not None:
            os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
            self._num_old = os.path.getsize(path) if os.path.exists(path) else 0

    def add(self, name: str, reason: str, used: bool, kind: str = "damaged") -> None:
        """Report one video; repeated reports of it count once.

        Args:
            name: path of the video.
            reason: what is wrong with it.
            used: whether it is used all the same, because a part of it decodes or another decoder can read it.
            kind: a word or two by which reasons are counted.

        Raises:
            BadData: when more than `max_bad_fraction` of the videos are unusable.
        """
        if name not in self._names:
            self._record({"path": name, "kind": kind, "reason": reason, "used": used})
        unusable = self._unusable.total()
        if unusable > self.max_bad_fraction * self.num_videos:
            where = f"See {self.path}" if self.path else f"The last one is {name} ({reason})"
            advice = "repair or remove these videos"
            if self._unusable[NETWORK] > unusable / 2:
                advice = "once the network is back, resume from the last checkpoint"
            raise BadData(
                f"{unusable} of {self.num_videos} videos cannot be used ({_listed(self._unusable)}), more than "
                f"max_bad_fraction={self.max_bad_fraction} allows. {where}: {advice}."
            )

    def count(self) -> int:
        """The number of videos reported so far, by all processes that share the file."""
        return self.counts().total()

    def counts(self) -> Counter[str]:
        """The number of videos reported so far by kind, by all processes that share the file."""
        if self.path is not None and os.path.exists(self.path):
            with open(self.path, "rb") as file:
                self._read_on(file)
        return self._unusable + self._usable

    def summary(self) -> str:
        """The counts in words: "3 bad videos: 2 unreadable (1 damaged, 1 network), 1 read in part (1 damaged)"."""
        total = self.count()
        parts = (("unreadable", self._unusable), ("read in part", self._usable))
        told = [f"{counts.total()} {name} ({_listed(counts)})" for name, counts in parts if counts]
        return f"{total} bad video{'s' * (total != 1)}: {', '.join(told)}"

    def _record(self, entry: dict) -> None:
        if self.path is None:
            self._count(entry)
            return
        with open(self.path, "a+b") as file:
            # Held until the file is closed: no other process may add the same name in between.
            fcntl.flock(file, fcntl.LOCK_EX)
            self._read_on(file)
            if entry["path"] not in self._names:
                size = file.seek(0, os.SEEK_END)
                # Where a crash or a full disk cut the last line short, ours must not become its end
                file.write(b"\n" * (size > self._num_read) + json.dumps(entry).encode() + b"\n")
                file.flush()
                self._read_on(file)

    def _read_on(self, file: BinaryIO) -> None:
        """Count the whole lines that came since the last time; others may have written them."""
        if file.seek(0, os.SEEK_END) < self._num_read:  # emptied: a new run begins
            self._names, self._unusable, self._usable = set(), Counter(), Counter()
            self._num_read = self._num_old = 0
        file.seek(self._num_read)
        for line in file:
            if not line.endswith(b"\n"):
                break
            self._num_read += len(line)
            try:
                entry = json.loads(line)
            except ValueError:  # cut short
                continue
            # The network may be back since
            if self._num_read > self._num_old or entry.get("kind") != NETWORK:
                self._count(entry)

    def _count(self, entry: dict) -> None:
        if entry["path"] not in self._names:
            self._names.add(entry["path"])
            kinds = self._usable if entry["used"] else self._unusable
            kinds[entry.get("kind", "damaged")] += 1  # runs of earlier versions wrote no kind


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
