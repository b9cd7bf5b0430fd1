"""Lists of videos as people write them: tables with or without a header, JSON, JSON Lines."""

import codecs
import csv
import io
import json
import re

from transformers.utils import logging

from .indexes import PATH_COLUMNS, VIDEO_SUFFIXES


logger = logging.get_logger(__name__)

DELIMITERS = ",;\t"
# Names in a header, besides those of videos, that tell it from a row
OTHER_COLUMNS = ("label", "class", "split", "group", "depth")
# Without a header a row is a path, then numbers of which the last is the label (`path label` of V-JEPA and VideoMAE,
# `path start label` of SlowFast and TSM)
NUMBERED = re.compile(r"(?P<path>.+?)(?P<numbers>(?:[,;\s]+-?\d+)*)")
WITH_TEXT = re.compile(rf"(?P<path>.+?(?:{'|'.join(map(re.escape, VIDEO_SUFFIXES))}))(?:[,;\s]+(?P<label>.+))?", re.I)
ENCODINGS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def decode(data: bytes) -> str:
    """Text, whatever byte order mark (Excel, Windows) it begins with.

    Raises:
        ValueError: if it is not text.
    """
    encoding = next((name for mark, name in ENCODINGS.items() if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 text ({error}): save it as UTF-8") from error


def read_rows(name: str, data: bytes, wanted: str | None = None) -> list[dict]:
    """The rows of a list; those of a table without a header have a "path", and where numbers or a text follow it, a
    "label".

    Args:
        name: of the list; its suffix decides how it is parsed.
        data: its bytes.
        wanted: a column that the header is known to have.

    Raises:
        ValueError: naming the list, if it cannot be read.
    """
    try:
        rows = READERS[f".{name.rpartition('.')[2].lower()}"](name, decode(data), wanted)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{name!r} cannot be read: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{name!r} must hold one object per video")
    if not rows:
        raise ValueError(f"{name!r} lists no videos: give one row per video")
    for number, row in enumerate(rows, start=1):
        if any(row.get(None, ())):  # where the csv module puts them
            raise ValueError(
                f"{name!r}: row {number} has more fields than there are columns: quote fields that contain commas"
            )
    return rows


def _read_table(name: str, text: str, wanted: str | None) -> list[dict]:
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return []
    delimiter = max(DELIMITERS, key=lines[0].count) if any(map(lines[0].count, DELIMITERS)) else None
    fields = [field.strip().strip('"') for field in lines[0].split(delimiter)]
    known = {*PATH_COLUMNS, *OTHER_COLUMNS, wanted}
    if any(field in known or field.lower() in known for field in fields):
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter or " ", skipinitialspace=True)
    elif _is_row(lines[0]):
        return _read_bare(name, lines)
    else:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter or ",", skipinitialspace=True)
    reader.fieldnames = [field.strip() for field in reader.fieldnames or []]
    return list(reader)


def _is_row(line: str) -> bool:
    """Whether a line that has no known name of a column is a video."""
    return bool(NUMBERED.fullmatch(line.strip())["numbers"] or WITH_TEXT.fullmatch(line.strip()))


def _read_bare(name: str, lines: list[str]) -> list[dict]:
    """The rows of a table without a header."""
    rows = []
    for line in map(str.strip, lines):
        found = NUMBERED.fullmatch(line)
        numbers = re.findall(r"-?\d+", found["numbers"])
        if numbers:
            fields = [found["path"], *map(int, numbers)]
        else:
            found = WITH_TEXT.fullmatch(line)
            fields = [line] if found is None else [field for field in found.groups() if field is not None]
        rows.append([fields[0].strip().strip('"'), *fields[1:]])
    widths = [len(row) for row in rows]
    strange = next((number for number, width in enumerate(widths, start=1) if width != widths[0]), None)
    if strange is not None:
        raise ValueError(
            f"it has no header, and row {strange} has {widths[strange - 1]} fields where the first has {widths[0]}: "
            "add a header such as path,label as the first line"
        )
    # "path 0 -1" of VideoMAE means the whole video, not a class
    has_labels = widths[0] > 1 and not any(isinstance(row[-1], int) and row[-1] < 0 for row in rows)
    read_as = "path, then a label" if has_labels else "path"
    logger.warning(f"{name!r} has no header: its {len(rows)} rows are read as {read_as}")
    return [{"path": row[0], "label": row[-1]} if has_labels else {"path": row[0]} for row in rows]


def _read_json_lines(name: str, text: str, wanted: str | None) -> list:
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _read_json(name: str, text: str, wanted: str | None) -> list:
    return json.loads(text)


READERS = {
    **dict.fromkeys((".csv", ".tsv", ".txt"), _read_table),
    ".jsonl": _read_json_lines,
    ".json": _read_json,
}
