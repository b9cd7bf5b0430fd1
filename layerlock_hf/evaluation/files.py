"""Files that are whole or not there."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..models.file_modes import follow_umask


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A file to write, which becomes `path` when it is on the disk. Whoever writes the same meanwhile does not matter.

    An error leaves what was there before.
    """
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.new")
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        follow_umask(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
