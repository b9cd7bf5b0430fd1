"""JSON that any program reads, and records of what is done, by which a program that was stopped does the rest."""

import json
import math
from pathlib import Path

from .files import write_aside


def json_text(content, indent: int | None = None, ensure_ascii: bool = True) -> str:
    """Content as JSON, which has neither NaN nor infinity: null stands for them.

    Args:
        indent, ensure_ascii: as for `json.dumps`.
    """
    return json.dumps(without_nan(content), indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)


def without_nan(content):
    """Content in which None stands for numbers that are not finite."""
    if isinstance(content, dict):
        return {name: without_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def read_record(path: Path, settings) -> dict | None:
    """What an earlier call left, if it did the same.

    Raises:
        ValueError: if it did something else.
    """
    if not path.is_file():
        return None
    record = json.loads(path.read_text())
    if record["settings"] != settings:
        raise ValueError(f"{path} is of other settings: delete its folder, or choose another --output_dir")
    return record


def write_record(path: Path, record):
    """Whole or not at all."""
    with write_aside(path) as aside:
        aside.write_text(json_text(record, indent=1) + "\n")
