"""Prepared folders: shards of videos, and manifests with the address of each."""

import os
import re

import numpy as np
import pyarrow
import pyarrow.compute

from . import files
from .addresses import DEPTH_COLUMN, LABEL_COLUMN, SCHEMA, address_table, join_all
from .indexes import TAR_BLOCK, index_shards, open_parquet


MANIFEST = re.compile(r"manifest-(\d{5})-of-(\d{5})\.parquet")
# Of videos in parquet shards
VIDEO_COLUMN = "video"


def manifest_name(rank: int, count: int) -> str:
    """The name of the manifest that one of `world_size` processes writes."""
    return f"manifest-{rank:05}-of-{count:05}.parquet"


def manifests_among(paths: list[str]) -> list[str]:
    """Those of these files that are manifests."""
    return [path for path in paths if MANIFEST.fullmatch(path.rpartition("/")[2])]


def manifests_beside(path: str) -> list[str]:
    """The manifests of all processes that wrote the one at this path or URL, which may have none of them yet."""
    folder, _, name = path.rpartition("/")
    count = int(MANIFEST.fullmatch(name)[2])
    return [f"{folder}/{manifest_name(rank, count)}" for rank in range(count)]


def index_manifests(source: str, paths: list[str]) -> pyarrow.Table:
    """The videos of a prepared folder, given the manifests in it.

    Raises:
        ValueError: if manifests or local shards are missing or incomplete.
    """
    expected = manifests_beside(paths[0])
    strange = sorted(set(paths) - set(expected))
    if strange:
        raise ValueError(
            f"{source!r} holds manifests of several preparations, {paths[0]!r} and {strange[0]!r}: keep those of one "
            "preparation"
        )
    missing = sorted(set(expected) - set(paths))
    if missing:
        raise ValueError(
            f"{source!r} lacks {', '.join(missing)}: a process that prepared it did not finish, so run it again"
        )
    return index_shards(_index_manifest, expected)


def _index_manifest(path: str) -> pyarrow.Table:
    folder = files.folder_of(path)
    wanted = {*SCHEMA.names, "path", LABEL_COLUMN, DEPTH_COLUMN} - {"video", "column"}
    with open_parquet(path) as parquet:
        facts = parquet.read(columns=[name for name in parquet.schema_arrow.names if name in wanted])
    known = {name: facts.column(name) for name in facts.column_names}
    shards = known.pop("path", pyarrow.nulls(len(facts))).cast(pyarrow.string())
    names = shards.unique()
    joined = join_all(path, folder, names.to_pylist())
    if DEPTH_COLUMN in known:
        known[DEPTH_COLUMN] = pyarrow.array(join_all(path, folder, known[DEPTH_COLUMN].to_pylist()), pyarrow.string())
    indices = pyarrow.compute.index_in(shards, names)
    try:
        table = address_table(pyarrow.array(joined, pyarrow.string()).take(indices), **known)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path!r} is not a manifest: {error}") from error
    in_tar = _is_address(table, offset=TAR_BLOCK, size=0)  # a header precedes the bytes
    in_parquet = _is_address(table, row_group=0, row=0)
    if shards.null_count or not np.all(in_tar ^ in_parquet):
        raise ValueError(
            f"{path!r} is not a manifest: every row needs a path, and offset and size or row_group and row"
        )
    ends = np.zeros(len(names), np.int64)
    offset, size = (table.column(name).fill_null(0).to_numpy() for name in ("offset", "size"))
    np.maximum.at(ends, indices.to_numpy(), np.where(in_tar, offset + size, 0))
    _check_shards(path, joined, ends.tolist())
    column = pyarrow.compute.if_else(in_parquet, VIDEO_COLUMN, pyarrow.scalar(None, pyarrow.string()))
    return table.set_column(table.schema.get_field_index("column"), "column", column)


def _is_address(table: pyarrow.Table, **least: int) -> np.ndarray:
    """Which rows have numbers in all these columns, none of them below the least that is possible."""
    checks = [pyarrow.compute.greater_equal(table.column(name), number) for name, number in least.items()]
    return np.logical_and(*(check.fill_null(False).to_numpy() for check in checks))


def _check_shards(manifest: str, shards: list[str], ends: list[int]):
    """Raise a `ValueError` if a local shard is missing or shorter than the manifest says."""
    for shard, end in zip(shards, ends, strict=True):
        if files.is_url(shard):  # it would take a request each; reading them tells
            continue
        if not os.path.isfile(shard):
            raise ValueError(
                f"{manifest!r} names {shard!r}, which is missing: copy it there, or prepare the videos again"
            )
        if os.path.getsize(shard) < end:
            raise ValueError(
                f"{shard!r} is truncated, as {manifest!r} names {end} bytes of it: copy it again, or prepare the "
                "videos again"
            )
