"""Shards of vectors as files, in each of the formats that there are.

Columns are "video", a list of n names, and arrays whose first dimension is n: those of `TYPES`, and of every depth the
vectors (n, ...). A time that is unknown is NaN.
"""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors
import safetensors.numpy


TYPES = {
    "window": np.int64,
    "step": np.int64,
    "start_seconds": np.float64,
    "end_seconds": np.float64,
    "first_frame": np.int64,
    "num_frames": np.int64,
}
SPAN = ("start_seconds", "end_seconds", "first_frame", "num_frames")
VIDEOS = "videos"  # the key of the names in the header of safetensors
UNREADABLE = (pa.ArrowException, safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError)


@dataclass(frozen=True)
class Format:
    """A format of shards; its files end in its name.

    Attributes:
        encode: from columns to what the file holds, which they alone determine.
        read: from a file, the names of columns and a number to pieces of as many rows, by columns. The vectors may
            come flat, (n, values).
    """

    encode: Callable[[dict], bytes]
    read: Callable[[Path, Sequence[str], int], Iterator[dict]]


def column_of(depth: int) -> str:
    return f"depth_{depth}"


def columns_of(rows: Sequence[dict], shapes: dict[str, Sequence[int]]) -> dict:
    """The columns of rows, given the shapes of the vectors of each."""
    arrays = {name: np.array([row[name] for row in rows], kind) for name, kind in TYPES.items()}
    vectors = {name: np.stack([row[name] for row in rows]).reshape(-1, *shape) for name, shape in shapes.items()}
    return {"video": [row["video"] for row in rows], **arrays, **vectors}


def encode_parquet(columns: dict) -> bytes:
    table = pa.table({name: _to_arrow(name, values) for name, values in columns.items()})
    file = io.BytesIO()
    # Vectors do not get smaller
    pq.write_table(table, file, compression="none", use_dictionary=["video"], write_statistics=False)
    return file.getvalue()


def _to_arrow(name: str, values) -> pa.Array:
    if name == "video":
        return pa.array(values, pa.string())
    if name in TYPES:
        return pa.array(values, from_pandas=True)  # NaN is null
    ends = np.arange(len(values) + 1, dtype=np.int32) * (values.size // len(values))
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values.ravel()))


def read_parquet(path: Path, names: Sequence[str], size: int) -> Iterator[dict]:
    with pq.ParquetFile(path) as file:
        for rows in file.iter_batches(size, columns=names):
            yield {name: _from_arrow(name, rows.column(name)) for name in names}


def _from_arrow(name: str, values: pa.Array):
    if name == "video":
        return values.to_pylist()
    if name in TYPES:
        return values.to_numpy(zero_copy_only=False)
    return values.flatten().to_numpy().reshape(len(values), -1)


def encode_safetensors(columns: dict) -> bytes:
    """The names, each once, are a JSON list in the header, and the tensor "video" says which it is."""
    places = {name: place for place, name in enumerate(dict.fromkeys(columns["video"]))}
    video = np.array([places[name] for name in columns["video"]], np.int64)
    # With two keys their order in the file would be random
    return safetensors.numpy.save({**columns, "video": video}, {VIDEOS: json.dumps(list(places))})


def read_safetensors(path: Path, names: Sequence[str], size: int) -> Iterator[dict]:
    with safetensors.safe_open(path, "numpy") as file:
        videos = json.loads(file.metadata()[VIDEOS])
        slices = {name: file.get_slice(name) for name in names}
        (num_rows,) = file.get_slice("video").get_shape()
        for start in range(0, num_rows, size):
            end = min(start + size, num_rows)
            piece = {name: part[start:end] for name, part in slices.items()}
            if "video" in piece:
                piece["video"] = [videos[place] for place in piece["video"]]
            yield piece


FORMATS = {
    "parquet": Format(encode_parquet, read_parquet),
    "safetensors": Format(encode_safetensors, read_safetensors),
}


def read_pieces(path: Path, kind: str, names: Sequence[str], size: int) -> Iterator[dict]:
    """Pieces of so many rows of a shard, by columns.

    Raises:
        ValueError: if it is missing or damaged.
    """
    try:
        yield from FORMATS[kind].read(path, names, size)
    except UNREADABLE as error:
        raise ValueError(
            f"{path} is missing or damaged ({error}): the same `layerlock embed` command with --verify makes it anew"
        ) from error
