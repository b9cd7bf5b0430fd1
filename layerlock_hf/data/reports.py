"""The report of videos that could not be used, or only in part."""

import fcntl
import json
import os


class BadData(RuntimeError):
    """Too many videos cannot be used for the run to go on; the message, of one line, is for the user."""


class BadVideos:
    """A JSON Lines file of bad videos, {"path", "reason", "used"} each, shared by all processes of a machine.

    Args:
        path: the file; None keeps the report in the memory of this process.
        num_videos: number of videos of the data set.
        max_bad_fraction: `add` raises once more than this fraction of the videos is unusable.
    """

    def __init__(self, path: str | None, num_videos: int, max_bad_fraction: float = 0.5):
        if not 0 <= max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction is {max_bad_fraction}; give a fraction of the videos between 0 and 1")
        self.path = path
        self.num_videos = num_videos
        self.max_bad_fraction = max_bad_fraction
        self._used: dict[str, bool] = {}
        if path is not None:
            os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)

    def add(self, name: str, reason: str, used: bool) -> None:
        """Report one video, once however often it is met.

        Args:
            name: path of the video.
            reason: what is wrong with it.
            used: whether it is used all the same: a part of it decodes, or only the other decoder reads it.

        Raises:
            BadData: when more than `max_bad_fraction` of the videos are unusable.
        """
        if name not in self._used:
            self._record(name, reason, used)
        unusable = sum(not used for used in self._used.values())
        if unusable > self.max_bad_fraction * self.num_videos:
            where = f"See {self.path}" if self.path else f"The last one is {name} ({reason})"
            raise BadData(
                f"{unusable} of {self.num_videos} videos cannot be decoded, more than the fraction "
                f"{self.max_bad_fraction} that is tolerated. {where}; repair or remove these videos."
            )

    def count(self) -> int:
        """The number of videos reported so far, by all processes that share the file."""
        if self.path is None:
            return len(self._used)
        if not os.path.exists(self.path):
            return 0
        with open(self.path, encoding="utf-8") as file:
            return sum(1 for _ in file)

    def _record(self, name: str, reason: str, used: bool) -> None:
        if self.path is None:
            self._used[name] = used
            return
        with open(self.path, "a+", encoding="utf-8") as file:
            # Held until the file is closed: no other process may add the same name in between.
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            self._used = {entry["path"]: entry["used"] for entry in map(json.loads, file)}
            if name not in self._used:
                self._used[name] = used
                file.write(json.dumps({"path": name, "reason": reason, "used": used}) + "\n")
