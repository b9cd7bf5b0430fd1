"""Records of what is done, by which a program that was stopped does the rest."""

import json
from pathlib import Path

from .files import write_aside


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
        aside.write_text(json.dumps(record, indent=1) + "\n")
