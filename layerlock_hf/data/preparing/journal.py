"""The record of a long job, from which it can continue after being killed at any moment."""

import fcntl
import json
import os
from pathlib import Path


class Journal:
    """A JSON Lines file that only grows: what the job is, then the videos looked at and the shards finished.

    Args:
        path: the file; read if it exists. Its last line may be incomplete.
        identity: what two runs of the same job have in common.

    Attributes:
        videos: what is known about each video, by its index.
        shards: {"end", "rows"} of each shard: how many videos of the job's list it and those before it cover, and its
            rows of the manifest.

    Raises:
        ValueError: if the file belongs to another job, or is in use by another process.
    """

    def __init__(self, path: Path, identity: dict):
        self.path = path
        self.videos: dict[int, dict] = {}
        self.shards: list[dict] = []
        self._file = open(path, "a+b")
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process alone, and gone with it
        except OSError as error:
            self._file.close()
            raise ValueError(f"another process is working on {path}: wait for it to finish, or stop it") from error
        lines = self._read()
        if len(lines) > 1:
            try:
                check_identity(str(path), lines[0], identity)
            except ValueError:
                self._file.close()
                raise
        else:  # nothing is done yet, so that another job may begin
            self._file.truncate(0)
            self._write(identity)
        for line in lines[1:]:
            if "shard" in line:
                self.shards.append(line["shard"])
            else:
                self.videos[line["index"]] = line["video"]

    def add_video(self, index: int, video: dict) -> None:
        """Record a video. It counts if this process is killed; after a loss of power it may be missing."""
        self._write({"index": index, "video": video})
        self.videos[index] = video

    def add_shard(self, end: int, rows: list[dict]) -> None:
        """Record a finished shard, for good."""
        shard = {"end": end, "rows": rows}
        self._write({"shard": shard})
        os.fsync(self._file.fileno())
        self.shards.append(shard)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _read(self) -> list[dict]:
        """The lines that are whole; the rest is cut off."""
        self._file.seek(0)
        lines, end = [], 0
        for line in self._file:
            try:
                lines.append(json.loads(line) if line.endswith(b"\n") else None)
            except ValueError:
                lines.append(None)
            if lines[-1] is None:
                self._file.truncate(end)
                return lines[:-1]
            end += len(line)
        return lines

    def _write(self, line: dict):
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()


def check_identity(where: str, found: dict, wanted: dict):
    """Raise a `ValueError` that names what differs between two jobs."""
    for name, value in wanted.items():
        if found.get(name) != value:
            raise ValueError(
                f"{where} holds the results of another job: {name} was {found.get(name)!r} there, and is {value!r} "
                "now: choose another folder, or remove this one"
            )
