"""What a rank writes: shards of rows, and a record by which it goes on after being killed, byte for byte.

A shard has so many windows, however they come, and is written at once; then the record says that it is there, and how
far the videos are read. So each can be made anew by itself, from where the one before it ends.
"""

import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path

from ..utils.files import remove_left_over, write_aside
from ..utils.records import write_record
from .records import COUNTS, DATA, RANKS, name_of_rank, read_record
from .shards import FORMATS, columns_of


class RankWriter:
    """The shards of one rank, and its record.

    Args:
        folder: of all ranks.
        rank, world_size: which share of the videos this is.
        about: what goes into the manifest as it is; "settings" in it is what a run that goes on must have in common.
        num_lanes: that read videos by turns.

    Attributes:
        name: of the rank, in the names of its files.
        counts: by the names of `COUNTS`, of what is in the record.
        position: {"turn", "lanes"} up to which all is in the shards: the lane whose turn is next and, of every lane,
            how many videos are done, and how many windows of the next.

    Raises:
        ValueError: if the record is damaged.
    """

    def __init__(self, folder: Path, rank: int, world_size: int, about: dict, num_lanes: int):
        self.folder, self.name = folder, name_of_rank(rank, world_size)
        self.path = folder / RANKS / f"{self.name}.json"
        self._beginning = {"turn": 0, "lanes": [[0, 0] for _ in range(num_lanes)]}
        record = {**about, "is_complete": False, "counts": dict.fromkeys(COUNTS, 0), "shards": []}
        record["position"] = self._beginning
        if self.path.is_file():
            record = read_record(folder, self.name)
        remove_left_over(self.path)
        self._record = record
        self.counts, self.position = record["counts"], record["position"]

    @property
    def is_complete(self) -> bool:
        return self._record["is_complete"]

    def write(self, rows: Sequence[dict], counts: dict[str, int], position: dict):
        """A finished shard.

        Args:
            rows: by the names of columns. They are put into the order of videos, windows and steps.
            counts: of all that is done.
            position: likewise.
        """
        shards = self._record["shards"]
        shard = self._write_shard(rows, len(shards)) | {"end": position}
        self._update(counts=counts, position=position, shards=[*shards, shard])

    def finish(self, counts: dict[str, int], position: dict):
        """All shards are written."""
        self._update(counts=counts, position=position, is_complete=True)

    def damaged(self, is_thorough: bool) -> list[int]:
        """Numbers of the shards that are missing or not as they were written, by their sizes or, if it is to be
        thorough, by every byte."""
        return [
            number
            for number, shard in enumerate(self._record["shards"])
            if not _is_whole(self.folder / shard["file"], shard, is_thorough)
        ]

    def start_of(self, number: int) -> dict:
        """The position where a shard begins."""
        return copy.deepcopy(self._record["shards"][number - 1]["end"] if number else self._beginning)

    def rewrite(self, number: int, rows: Sequence[dict], end: dict):
        """A shard that was made anew.

        Raises:
            ValueError: if it does not end where it did.
        """
        shards = list(self._record["shards"])
        if (len(rows), end) != (shards[number]["rows"], shards[number]["end"]):
            raise ValueError(
                f"{self.folder / shards[number]['file']} cannot be made anew, as its videos do not have the windows "
                "that they had: bring it back, or choose another OUT"
            )
        shards[number] = self._write_shard(rows, number) | {"end": end}
        self._update(shards=shards)

    def _update(self, **changed):
        self._record |= copy.deepcopy(changed)
        write_record(self.path, self._record)

    def _write_shard(self, rows: Sequence[dict], number: int) -> dict:
        kind = self._record["settings"]["format"]
        path = self.folder / DATA / f"{self.name}-{number:06d}.{kind}"
        remove_left_over(path)
        rows = sorted(rows, key=lambda row: (row["index"], row["window"], row["step"]))
        data = FORMATS[kind].encode(columns_of(rows, self._record["columns"]))
        with write_aside(path) as aside:
            aside.write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        return {"file": f"{DATA}/{path.name}", "rows": len(rows), "bytes": len(data), "sha256": digest}


def _is_whole(path: Path, shard: dict, is_thorough: bool) -> bool:
    if not path.is_file() or path.stat().st_size != shard["bytes"]:
        return False
    return not is_thorough or hashlib.sha256(path.read_bytes()).hexdigest() == shard["sha256"]
