"""Addresses of videos within shards: tars and parquet files.

They come from headers and footers: no video is read.
"""

import contextlib
import functools
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet
from tqdm import tqdm

from . import files
from .addresses import DEPTH_COLUMN, LABEL_COLUMN, address_table, combine, is_text, join_all, label_array
from .clips import one_line


PATH_COLUMNS = ("path", "video", "file", "video_path", "file_path", "filepath", "file_name", "filename")

# Of members of a tar that are videos, as opposed to labels, texts, sounds and what not
VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".m2v"),
    *(".wmv", ".asf", ".flv", ".f4v", ".ogv", ".3gp", ".3g2", ".vob", ".y4m", ".mjpeg", ".mxf", ".ivf", ".h264"),
)
# Bytes of a member of a tar that may hold a label; larger ones are not looked at
MAX_LABEL_SIZE = 2**20
TAR_BLOCK = tarfile.BLOCKSIZE

# Bytes that are read at once of a local row group
PARQUET_BLOCK = 2**20

# Shards that are indexed at once, and from how many on a terminal shows progress
NUM_THREADS = 16
MANY_SHARDS = 16


def index_shards(index: Callable[[str], pyarrow.Table], shards: list[str]) -> pyarrow.Table:
    """The videos of all shards; several shards are indexed at a time.

    Raises:
        ValueError: naming a shard that cannot be read.
    """

    def index_one(shard: str) -> pyarrow.Table:
        try:
            return index(shard)
        except files.FileError as error:
            raise ValueError(f"{shard!r} cannot be read: {error}") from error

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        try:
            is_quiet = None if len(shards) >= MANY_SHARDS else True  # None: unless this is a terminal
            tables = list(tqdm(pool.map(index_one, shards), "Indexing", len(shards), unit="shard", disable=is_quiet))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return combine(tables)


def index_tar(path: str, wanted: str | None = None) -> pyarrow.Table:
    """The videos of a tar, in order.

    Members belong together as in WebDataset: by their folder and name up to its first dot. A label is the integer in
    KEY.cls, or "label" in KEY.json; labels are kept if every video has one.

    Raises:
        ValueError: if the tar is compressed, damaged or truncated, or a label is invalid.
        FileError: if it cannot be read.
    """
    names, offsets, sizes, keys, labels = [], [], [], [], {}
    with files.open_file(path, files.INDEX_BLOCK) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    key, extension = _key(member.name)
                    if f".{extension}".endswith(VIDEO_SUFFIXES) and not member.isdir():
                        if not member.isreg() or member.issparse():
                            raise ValueError(
                                f"{path!r}: {member.name!r} is a link or a sparse file: store it as a plain file"
                            )
                        names.append(member.name)
                        offsets.append(member.offset_data)
                        sizes.append(member.size)
                        keys.append(key)
                    elif extension in LABELS and member.isreg() and member.size <= MAX_LABEL_SIZE:
                        label = _label(path, member.name, extension, tar.extractfile(member).read())
                        if label is not None:
                            labels[key] = label
                _check_end(path, file, tar.offset)
        except tarfile.TarError as error:
            raise ValueError(f"{path!r} is damaged, truncated, or not an uncompressed tar: {error}") from error
    found = [labels.get(key) for key in keys]
    label = {} if None in found else {LABEL_COLUMN: label_array(path, found)}
    return address_table(pyarrow.repeat(path, len(names)), offset=offsets, size=sizes, name=names, **label)


def is_header_of(block: bytes, size: int) -> bool:
    """Whether a block of a tar is what precedes a member of this size."""
    try:
        return tarfile.TarInfo.frombuf(block, tarfile.ENCODING, "surrogateescape").size == size
    except tarfile.HeaderError:
        return False


def _key(name: str) -> tuple[str, str]:
    """What the members of a sample share, and the rest of the name. Hidden files belong to no sample."""
    match = re.fullmatch(r"((?:.*/)?[^./][^./]*)\.([^/]*)", name, re.DOTALL)
    return (match[1], match[2].lower()) if match else (name, "")


def _label_in_json(data: bytes) -> int | str | None:
    facts = json.loads(data)
    label = facts.get(LABEL_COLUMN) if isinstance(facts, dict) else None
    return label if isinstance(label, (int, str)) else None


LABELS = {"cls": int, "json": _label_in_json}


def _label(path: str, name: str, extension: str, data: bytes) -> int | str | None:
    try:
        return LABELS[extension](data)
    except ValueError as error:
        raise ValueError(f"{path!r}: {name!r} cannot be read: {error}") from error


def _check_end(path: str, file, end: int):
    """Raise a `ValueError` if a tar does not end here: after the first member, tarfile takes damage for its end."""
    file.seek(end)
    block = file.read(TAR_BLOCK)
    if block != bytes(TAR_BLOCK):
        what = "is damaged" if len(block) == TAR_BLOCK else "is truncated"
        raise ValueError(f"{path!r} {what}: at byte {end} there is neither a member nor the end of the archive")


def index_parquet(path: str, wanted: str | None = None) -> pyarrow.Table:
    """The videos of a parquet file: addresses of those that it holds, paths of those that it names.

    Args:
        path: path or URL.
        wanted: the column of the videos, if it does not have a usual name.

    Raises:
        ValueError: if it has no such column, or names files that it may not, see `files.join`.
        FileError: if it cannot be read.
    """
    with open_parquet(path) as parquet:
        schema = parquet.schema_arrow
        features = datasets.Features.from_arrow_schema(schema)
        typed = [name for name, feature in features.items() if isinstance(feature, datasets.Video)]
        column = video_column(path, schema.names, wanted or next(iter(typed), None))
        others = [name for name in (LABEL_COLUMN, DEPTH_COLUMN) if name in schema.names and name != column]
        known = {name: parquet.read(columns=[name]).column(0) for name in others}
        if DEPTH_COLUMN in known and is_text(known[DEPTH_COLUMN].type):
            known[DEPTH_COLUMN] = _joined(path, known[DEPTH_COLUMN].to_pylist())
        else:  # a depth file within a parquet file has no address
            known.pop(DEPTH_COLUMN, None)
        leaf = bytes_leaf(parquet, column)
        if leaf is None and not is_text(schema.field(column).type):
            kind = schema.field(column).type
            raise ValueError(f"{path!r}: column {column} must hold bytes, {{bytes, path}} or paths, got {kind}")
        if leaf is None:
            return address_table(_joined(path, parquet.read(columns=[column]).column(0).to_pylist()), **known)
        groups = [_index_group(path, parquet, group, column, leaf) for group in range(parquet.num_row_groups)]
    table = combine(groups) if groups else address_table([])
    for name, values in known.items():
        table = table.append_column(name, values)
    return table


@contextlib.contextmanager
def open_parquet(path: str) -> Iterator[pyarrow.parquet.ParquetFile]:
    """A parquet file at a path or URL, for reading a row group at a time. Its footer is read once per process.

    Raises:
        ValueError: if it is none, or damaged; also while it is read.
        FileError: if it cannot be read.
    """
    is_url = files.is_url(path)
    try:
        size, metadata = _footer(path, None if is_url else (files.size_of(path), os.stat(path).st_mtime_ns))
        source = files.Ranges(path, size) if is_url else path
        # A row group at a URL comes by one request, a local one only as far as it is looked at
        block = 0 if is_url else PARQUET_BLOCK
        with pyarrow.parquet.ParquetFile(source, metadata=metadata, buffer_size=block, pre_buffer=False) as parquet:
            yield parquet
    except (pyarrow.ArrowException, OSError) as error:
        message = one_line(error)
        raise ValueError(f"{path!r} is damaged, truncated, or not a parquet file: {message}") from error


def forget_footers():
    """Read all footers again: files at URLs may have changed since."""
    _footer.cache_clear()


@functools.lru_cache(maxsize=64)
def _footer(path: str, stamp: tuple | None) -> tuple[int, pyarrow.parquet.FileMetaData]:
    """The size of a file and its footer; `stamp` tells a local one from what it was before."""
    with files.open_file(path) as file:
        size = file.seek(0, os.SEEK_END)
        return size, pyarrow.parquet.ParquetFile(file, pre_buffer=False).metadata


def bytes_leaf(parquet: pyarrow.parquet.ParquetFile, column: str) -> str | None:
    """The name in parquet of the bytes of a column, which holds {bytes, path} or bytes; None if it holds none."""
    leaves = map(parquet.schema.column, range(len(parquet.schema)))
    named = {leaf.path: leaf for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"}
    is_plain = column in named and named[column].logical_type.type == "NONE"
    return f"{column}.bytes" if f"{column}.bytes" in named else column if is_plain else None


def chunk_of(parquet: pyarrow.parquet.ParquetFile, group: int, leaf: str) -> pyarrow.parquet.ColumnChunkMetaData:
    """The facts of a column in a row group."""
    facts = parquet.metadata.row_group(group)
    return next(c for c in map(facts.column, range(facts.num_columns)) if c.path_in_schema == leaf)


def _index_group(path: str, parquet: pyarrow.parquet.ParquetFile, group: int, column: str, leaf: str) -> pyarrow.Table:
    count = parquet.metadata.row_group(group).num_rows
    paths, groups, columns = (pyarrow.repeat(value, count) for value in (path, group, column))
    rows = pyarrow.array(np.arange(count))
    statistics = chunk_of(parquet, group, leaf).statistics
    if statistics is not None and statistics.null_count:  # some videos are not in the file, but named by it
        batches = parquet.iter_batches(batch_size=16, row_groups=[group], columns=[column], use_threads=False)
        found = [_found(value.as_py()) for batch in batches for value in batch.column(0)]
        is_inside = pyarrow.array([is_inside for is_inside, _ in found])
        outside = _joined(path, [None if is_inside else name for is_inside, name in found])
        paths = pyarrow.compute.if_else(is_inside, paths, outside)
        rows, groups, columns = (
            pyarrow.compute.if_else(is_inside, values, pyarrow.scalar(None, values.type))
            for values in (rows, groups, columns)
        )
    return address_table(paths, row_group=groups, row=rows, column=columns)


def _found(value: dict | bytes | None) -> tuple[bool, str | None]:
    """Whether a value holds a video, and the path that it names."""
    if isinstance(value, dict):
        return value["bytes"] is not None, value.get("path")
    return value is not None, None


def _joined(path: str, names: list[str | None]) -> pyarrow.Array:
    return pyarrow.array(join_all(path, files.folder_of(path), names), pyarrow.string())


def video_column(source: str, present: list[str], wanted: str | None, setting: str = "video_column=NAME") -> str:
    """The name of the column that holds the videos.

    Args:
        setting: how the user can name it, for the message.

    Raises:
        ValueError: if there is none.
    """
    if wanted in present:
        return wanted
    if wanted is None:
        spelt = {name.lower(): name for name in reversed(present)}
        found = [spelt[name] for name in PATH_COLUMNS if name in spelt]
        if found:
            return found[0]
    sought = repr(wanted) if wanted else " or ".join(PATH_COLUMNS[:3])
    raise ValueError(
        f"{source!r} has no column {sought}, only {', '.join(present)}: name the column of the videos with {setting}"
    )
