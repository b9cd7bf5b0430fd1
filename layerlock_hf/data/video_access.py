"""From a row of a list of videos to the path or the bytes of its video."""

import itertools
import os
from collections.abc import Sequence

import datasets
import pyarrow
import pyarrow.compute

from . import files
from .clips import DecodingError, one_line
from .indexes import TAR_BLOCK, bytes_leaf, chunk_of, is_header_of, open_parquet


# What a row without a value stands for
NO_VIDEO = {"path": None, "bytes": None}


def fetch(row: dict) -> str | bytes:
    """The path of a video that is a local file of its own, else its bytes.

    Safe to call from several threads at once, and in forked processes.

    Args:
        row: of a dataset of `load_videos`; a column "video" is enough.

    Raises:
        DecodingError: if the video cannot be read, over a network after several attempts. Its kind is "missing",
            "changed" (during the run), "too large", "network" or "unreadable".
    """
    video = row["video"] or NO_VIDEO
    path = video["path"]
    if video["bytes"] is not None:
        return video["bytes"]
    if path is None:
        raise DecodingError("the row has no video", "missing")
    read = _reader(row)
    if read is None:
        return path
    try:
        return read(row)
    except files.FileError as error:
        raise DecodingError(_reason(error, is_shard=read is not _read_file), error.kind) from error


def is_remote(row: dict) -> bool:
    """Whether `fetch` needs the network for a row."""
    video = row["video"] or NO_VIDEO
    return video["bytes"] is None and video["path"] is not None and files.is_url(video["path"])


def is_any_there(paths: Sequence[str]) -> bool:
    """Whether any of these local paths exists."""
    # Names are looked for only in folders that exist: a list may have 200,000, and its folder half a dozen places
    is_folder = {folder: os.path.isdir(folder) for folder in {os.path.dirname(path) for path in paths}}
    return any(is_folder[os.path.dirname(path)] and os.path.exists(path) for path in paths)


def check_present(videos: datasets.Dataset, source: str):
    """Raise a `ValueError` if all videos are local files, and none of them exists.

    Args:
        videos: of `load_videos`.
        source: the name of the list, for the message.
    """
    column = videos.data.column("video")
    if pyarrow.compute.struct_field(column, "bytes").null_count < len(column):
        return
    paths = pyarrow.compute.struct_field(column, "path").drop_null().to_pylist()
    if paths and not any(map(files.is_url, paths)) and not is_any_there(paths):
        raise ValueError(
            f"none of the videos that {source!r} names exists, such as {paths[0]!r}: paths are relative to the folder "
            "of the list"
        )


def name_of(row: dict, index: int) -> str:
    """The name of a video in reports: its path or URL, or its name in a shard, or its number."""
    video = row["video"] or NO_VIDEO
    path = video["path"]
    # The path of embedded bytes is a mere file name, which several rows may share
    if video["bytes"] is not None or path is None:
        return f"row {index} ({path})"
    if row.get("name") is not None:
        return f"{path}/{row['name']}"
    if row.get("row") is not None:
        return f"{path}/row group {row['row_group']}, row {row['row']}"
    return path


def _reader(row: dict):
    """What reads the video of a row, or None if it is a local file."""
    if row.get("offset") is not None:
        return _read_tar
    if row.get("row") is not None:
        return _read_parquet
    return _read_file if files.is_url(row["video"]["path"]) else None


def _reason(error: files.FileError, is_shard: bool) -> str:
    if is_shard and isinstance(error, files.MissingFile):
        return "no such shard"
    return f"shard {error}" if is_shard and isinstance(error, files.ChangedFile) else str(error)


def _read_file(row: dict) -> bytes:
    return files.read(row["video"]["path"])


def _read_tar(row: dict) -> bytes:
    offset, size = row["offset"], row["size"]
    if size > files.MAX_SIZE:
        raise files.TooLarge(size)
    # With its header, by which another tar under the same name is told
    data = files.read(row["video"]["path"], offset - TAR_BLOCK, offset + size)
    if not is_header_of(data[:TAR_BLOCK], size):
        raise files.ChangedFile(f"changed: no video of {size} bytes begins at byte {offset}")
    return data[TAR_BLOCK:]


def _read_parquet(row: dict) -> bytes:
    group, number = row["row_group"], row["row"]
    try:
        with open_parquet(row["video"]["path"]) as parquet:
            leaf = bytes_leaf(parquet, row["column"])
            if leaf is None or group >= parquet.num_row_groups or number >= parquet.metadata.row_group(group).num_rows:
                raise files.ChangedFile(f"changed: row {number} of row group {group} is not there")
            size = chunk_of(parquet, group, leaf).total_uncompressed_size
            if size > files.MAX_SIZE:
                raise files.TooLarge(size)
            # One row at a time: a whole row group may have more bytes than an array of Arrow
            batches = parquet.iter_batches(batch_size=1, row_groups=[group], columns=[leaf], use_threads=False)
            value = next(itertools.islice(batches, number, None)).column(0)[0].as_py()
    except ValueError as error:
        raise files.ChangedFile(f"changed: {one_line(error)}") from error
    data = value["bytes"] if isinstance(value, dict) else value
    if data is None:
        raise DecodingError("the row has no video", "missing")
    if row.get("size") not in (None, len(data)):
        raise files.ChangedFile(f"changed: row {number} of row group {group} has {len(data)} bytes, not {row['size']}")
    return data
