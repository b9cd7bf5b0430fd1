"""What a rank writes: shards of rows, and a record by which it goes on after being killed, byte for byte.

A shard has so many windows, however they come, and is written at once; then the record says that it is there, and how
far the videos are read. The manifest of all ranks is written by the last one.
"""

import fcntl
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..data.preparing.journal import check_identity
from ..utils.files import remove_left_over, write_aside
from ..utils.records import write_record
from ..utils.version import VERSION


MANIFEST, DATA, RANKS = "manifest.json", "data", "ranks"
COUNTS = ("windows", "rows", "videos", "unreadable", "partial")
MAX_SHARD = 256 * 2**20  # bytes, which lie in memory until they are written
SPAN = {
    "start_seconds": pa.float64(),
    "end_seconds": pa.float64(),
    "first_frame": pa.int64(),
    "num_frames": pa.int64(),
}


def column_of(depth: int) -> str:
    return f"depth_{depth}"


def schema_of(depths: Sequence[int]) -> pa.Schema:
    """The columns of the shards."""
    about = {"video": pa.string(), "window": pa.int64(), "step": pa.int64(), **SPAN}
    return pa.schema({**about, **{column_of(depth): pa.list_(pa.float32()) for depth in depths}})


@contextmanager
def locked(path: Path, refusal: str | None = None) -> Iterator[None]:
    """A lock that no two processes hold at once, and that goes with its process.

    Args:
        path: a file beside what is locked, which stays.
        refusal: what to say where another process holds it, instead of waiting.

    Raises:
        ValueError: with the refusal.
    """
    with open(path, "w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
        except OSError as error:
            raise ValueError(refusal) from error
        yield


class RankWriter:
    """The shards of one rank, and its record.

    Args:
        folder: of all ranks.
        rank, world_size: which share of the videos this is.
        about: what goes into the manifest as it is; "settings" in it is what a run that goes on must have in common.
        depths: of the vectors.
        num_lanes: that read videos by turns.

    Attributes:
        counts: by the names of `COUNTS`, of what is in the record.
        position: {"turn", "lanes"} up to which all is in the shards: the lane whose turn is next and, of every lane,
            how many videos are done, and how many windows of the next.

    Raises:
        ValueError: if the folder holds what other settings made, or has lost a shard.
    """

    def __init__(self, folder: Path, rank: int, world_size: int, about: dict, depths: Sequence[int], num_lanes: int):
        self.folder, self.schema = folder, schema_of(depths)
        self.name = f"{rank:05d}-of-{world_size:05d}"
        self.path = folder / RANKS / f"{self.name}.json"
        record = {**about, "is_complete": False, "counts": dict.fromkeys(COUNTS, 0), "shards": []}
        record["position"] = {"turn": 0, "lanes": [[0, 0] for _ in range(num_lanes)]}
        if self.path.is_file():
            record = read_record(folder, self.name)
        remove_left_over(self.path)
        self._record = record
        self.counts, self.position = record["counts"], record["position"]
        for shard in record["shards"]:
            if not (folder / shard["file"]).is_file():
                raise ValueError(f"OUT has lost {shard['file']}: bring it back, or delete {folder} to start again")

    @property
    def is_complete(self) -> bool:
        return self._record["is_complete"]

    def write(self, rows: list[dict], counts: dict[str, int], position: dict, is_last: bool = False):
        """A finished shard, if there are rows; after the last the record is complete.

        Args:
            rows: by the names of columns. They are put into the order of videos, windows and steps.
            counts: of all that is done.
            position: likewise.
            is_last: whether this is all.
        """
        shards = self._record["shards"]
        if rows:
            shards = [*shards, self._write_shard(rows, len(shards))]
        self._record |= {"counts": counts, "position": position, "shards": shards, "is_complete": is_last}
        write_record(self.path, self._record)

    def _write_shard(self, rows: list[dict], number: int) -> dict:
        path = self.folder / DATA / f"{self.name}-{number:06d}.parquet"
        remove_left_over(path)
        rows.sort(key=lambda row: (row["index"], row["window"], row["step"]))
        columns = {name: [row[name] for row in rows] for name in self.schema.names}
        arrays = [
            _lists(columns[field.name]) if pa.types.is_list(field.type) else pa.array(columns[field.name], field.type)
            for field in self.schema
        ]
        with write_aside(path) as aside:
            # Vectors do not get smaller
            table = pa.Table.from_arrays(arrays, schema=self.schema)
            pq.write_table(table, aside, compression="none", use_dictionary=["video"], write_statistics=False)
            digest = hashlib.sha256(aside.read_bytes()).hexdigest()
        return {"file": f"{DATA}/{path.name}", "rows": len(rows), "sha256": digest}


def _lists(vectors: list[np.ndarray]) -> pa.Array:
    ends = np.cumsum([0, *map(len, vectors)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(np.concatenate(vectors)))


def check_settings(folder: Path, world_size: int, settings: dict):
    """Raise a `ValueError` if the folder holds vectors that other settings made, or as many ranks as are not these."""
    for path in sorted((folder / RANKS).glob("*.json")):
        record = json.loads(path.read_text())
        if not path.stem.endswith(f"-of-{world_size:05d}"):
            raise ValueError(f"{path} was written with a world_size other than {world_size}: choose another OUT")
        check_identity(str(folder), record["settings"], settings)


def read_record(folder: Path, name: str) -> dict:
    """What a rank has done so far."""
    return json.loads((folder / RANKS / f"{name}.json").read_text())


def read_records(folder: Path) -> list[dict]:
    """What the ranks have done so far.

    Raises:
        ValueError: if the folder holds no such thing.
    """
    paths = sorted((folder / RANKS).glob("*.json"))
    if not paths:
        raise ValueError(f"{folder} holds no vectors: give the OUT of `layerlock embed`")
    return [read_record(folder, path.stem) for path in paths]


def read_manifest(folder: Path) -> dict:
    """The manifest, or what will become it, as far as the ranks are.

    Raises:
        ValueError: as `read_records`.
    """
    path = folder / MANIFEST
    return json.loads(path.read_text()) if path.is_file() else merged(read_records(folder))


def write_manifest(folder: Path, world_size: int) -> dict | None:
    """The manifest of all ranks, once all are complete; None before. Whoever comes last writes it."""
    with locked(folder / RANKS / ".merging"):
        records = read_records(folder)
        if len(records) < world_size or not all(record["is_complete"] for record in records):
            return None
        manifest = merged(records)
        remove_left_over(folder / MANIFEST)
        write_record(folder / MANIFEST, manifest)
    return manifest


def merged(records: list[dict]) -> dict:
    """The manifest of several ranks."""
    common = {name: value for name, value in records[0].items() if name not in ("position", "counts", "shards")}
    counts = {name: sum(record["counts"][name] for record in records) for name in COUNTS}
    shards = [shard for record in records for shard in record["shards"]]
    is_complete = all(record["is_complete"] for record in records)
    return {**common, "is_complete": is_complete, "counts": counts, "shards": shards, "version": VERSION}
