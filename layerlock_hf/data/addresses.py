"""The columns of a list of videos: a table of addresses."""

import unicodedata
from collections.abc import Iterable

import pyarrow

from . import files


LABEL_COLUMN = "label"
DEPTH_COLUMN = "depth"

# Of every row; a label and the path of a depth file join them where all rows have one
SCHEMA = pyarrow.schema(
    {
        # The path or URL of the video, or of the shard that holds it
        "video": pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}),
        # Within a tar: where the bytes of the video begin, and how many there are
        "offset": pyarrow.int64(),
        "size": pyarrow.int64(),
        # Within a parquet file: the row group, the row in that group, and the column
        "row_group": pyarrow.int64(),
        "row": pyarrow.int64(),
        "column": pyarrow.string(),
        # Within any shard: what the video was called, for reports
        "name": pyarrow.string(),
    }
)


def address_table(paths, **known) -> pyarrow.Table:
    """Rows of `SCHEMA` and of further columns.

    Args:
        paths: of every video or of its shard, in an array or list.
        known: other columns; those of `SCHEMA` that are not among them are null.
    """
    paths = _array(paths, pyarrow.string())
    no_bytes = pyarrow.nulls(len(paths), pyarrow.binary())
    columns = {"video": pyarrow.StructArray.from_arrays([no_bytes, paths], ["bytes", "path"])}
    for field in list(SCHEMA)[1:]:
        values = known.pop(field.name, None)
        columns[field.name] = pyarrow.nulls(len(paths), field.type) if values is None else _array(values, field.type)
    return pyarrow.table(columns | known)


def combine(tables: list[pyarrow.Table]) -> pyarrow.Table:
    """All rows. Further columns, such as labels, are kept if all tables with rows have them, of the same type."""
    tables = [table for table in tables if len(table)] or tables[:1]
    kept = [field.name for field in tables[0].schema if all(field in list(table.schema) for table in tables)]
    return pyarrow.concat_tables([table.select(kept) for table in tables])


def join_all(source: str, folder: str, names: list[str | None]) -> list[str | None]:
    """Names in a list as paths or URLs.

    Raises:
        ValueError: naming the list and the row, if the list may not name that file; see `files.join`.
    """
    joined = []
    for number, name in enumerate(names, start=1):
        try:
            joined.append(None if name is None else files.join(folder, name))
        except ValueError as error:
            raise ValueError(f"{source!r}: row {number}: {error}") from error
    return joined


def clean_label(label):
    """A label without surrounding blanks, in composed Unicode letters (NFC)."""
    return unicodedata.normalize("NFC", label.strip()) if isinstance(label, str) else label


def check_classes(source: str, names: Iterable):
    """Raise a `ValueError` if class names differ only in case, spacing or Unicode form."""
    seen = {}
    for name in names:
        key = " ".join(unicodedata.normalize("NFKC", str(name)).casefold().split())
        if seen.setdefault(key, name) != name:
            raise ValueError(
                f"{source}: labels must differ in more than case, spacing and Unicode form, got {seen[key]!r} and "
                f"{name!r}: spell them the same"
            )


def label_array(source: str, labels: list) -> pyarrow.Array:
    """The labels of a list or shard, cleaned by `clean_label`.

    Raises:
        ValueError: naming the source, if they are of several types, or a number does not fit 64 bits.
    """
    try:
        return pyarrow.array([clean_label(label) for label in labels])
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, OverflowError) as error:
        raise ValueError(
            f"{source!r}: its labels are of several types or too large: use only numbers or only strings"
        ) from error


def is_text(kind: pyarrow.DataType) -> bool:
    """Whether a column holds strings, such as file names."""
    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)


def _array(values, kind: pyarrow.DataType) -> pyarrow.Array:
    if isinstance(values, pyarrow.ChunkedArray):
        values = values.combine_chunks()
    return values.cast(kind) if isinstance(values, pyarrow.Array) else pyarrow.array(values, kind)
