"""Files that are never partial, even after a power loss: written aside, flushed, put in place in one step."""

import errno
import glob
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def write_aside(path: str | os.PathLike) -> Iterator[Path]:
    """A file to write, empty yet, which becomes `path` when the block ends. An error leaves what was there before.

    Several may write the same `path` at once: the last to end counts. The mode is that of any new file, whatever the
    writer makes of it: safetensors 0.8 lets the owner alone read what it writes.
    """
    path = Path(path)
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.new")
    try:
        aside.touch(exist_ok=False)
        mode = stat.S_IMODE(aside.stat().st_mode)  # by umask, which cannot be asked for without setting it
        yield aside
        aside.chmod(mode)
        put_in_place(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def write_folder_aside(path: str | os.PathLike) -> Iterator[Path]:
    """A folder to fill, which becomes `path` when the block ends: an empty folder, or none. An error leaves what was
    there before."""
    path = Path(os.path.abspath(path))  # which has a name, as "." has not
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.new")
    try:
        aside.mkdir(parents=True)
        yield aside
        flush_all(aside)
        put_in_place(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def remove_left_over(path: str | os.PathLike):
    """Delete what processes left that were killed in `write_aside(path)`. None may be writing it now."""
    path = Path(path)
    for aside in path.parent.glob(f"{glob.escape(path.name)}.*.new"):
        aside.unlink()


def put_in_place(part: str | os.PathLike, path: str | os.PathLike):
    """Give a finished file or folder its name, on the same file system, and wait until that is on the disk."""
    flush(part)
    os.replace(part, path)
    flush(Path(path).parent)


def flush(path: str | os.PathLike):
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems have none for folders
        if error.errno != errno.EINVAL or not os.path.isdir(path):
            raise
    finally:
        os.close(descriptor)


def flush_all(folder: Path):
    """Wait until all of a folder is on the disk."""
    for path in [*folder.rglob("*"), folder]:
        flush(path)
