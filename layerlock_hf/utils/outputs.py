"""What programs that write to a folder OUT share: checking it, reading logs, and printing tables."""

import atexit
import contextlib
import json
import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path


logger = logging.getLogger(__name__)


def check_output(folder: Path, reports: Iterable[str], setting: str = "output_dir"):
    """Make sure that a folder and the reports in it can be written, without changing what it holds.

    A folder that is made for it and is still empty when the program ends is removed: what is refused after this, or
    interrupted, leaves nothing behind.

    Raises:
        ValueError: if they cannot.
    """
    path = folder
    try:
        made = [one for one in (folder.absolute(), *folder.absolute().parents) if not one.exists()]
        atexit.register(_remove_empty, made)
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        for path in (folder / name for name in reports):
            if path.exists():
                path.open("a").close()
    except OSError as error:
        raise ValueError(f"{setting}: cannot write to {path}: {error.strerror}: choose another folder") from error


def _remove_empty(folders: list[Path]):
    """The deepest first."""
    with contextlib.suppress(OSError):  # one that holds something, or is gone
        for folder in folders:
            folder.rmdir()


def read_lines(path: Path) -> list[dict]:
    """The lines of a JSON Lines file, except any that a crash or a full disk cut short."""
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            logger.warning(f"skipped an incomplete line of {path}: {line[:40]}")
    return lines


def print_table(rows: list[dict]):
    """Print rows under the names of their columns, with numbers to three decimal places. Columns are flush right, but
    for a last one of texts."""
    columns = list(rows[0])
    cells = [
        [f"{row[name]:.3f}" if isinstance(row[name], float) else str(row[name]) for name in columns] for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    ends_in_text = all(isinstance(row[columns[-1]], str) for row in rows)
    for line in [columns, *cells]:
        *padded, last = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join([*padded, line[-1] if ends_in_text else last]), flush=True)
