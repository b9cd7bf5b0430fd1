"""Checkpoints that are complete or do not exist.

A checkpoint is written aside, in `OUT/incomplete/checkpoint-N`; then a manifest of its files is added, everything is
flushed to the disk, and the folder is renamed to `OUT/checkpoint-N`. What does not agree with its manifest, because a
process was killed or a disk failed, is never resumed from.
"""

import json
import os
import re
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from transformers.utils import logging


logger = logging.get_logger(__name__)

MANIFEST = "manifest.json"
ASIDE = "incomplete"
FOLDER = re.compile(r"checkpoint-(\d+)")


class CheckpointNotWritten(RuntimeError):
    """A checkpoint could not be written; the message is for the user."""


def publish(aside: Path, folder: Path):
    """Make `folder` of what was written aside, in one step that either happens or does not."""
    files = [path for path in sorted(aside.rglob("*")) if path.is_file()]
    with ThreadPoolExecutor() as pool:
        sums = list(pool.map(_fingerprint, files))
    manifest = {str(path.relative_to(aside)): entry for path, entry in zip(files, sums, strict=True)}
    (aside / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    for path in [*files, aside / MANIFEST, *(path for path in aside.rglob("*") if path.is_dir()), aside]:
        _flush(path)
    remove(folder)  # of the same step, left by a run that was resumed from an older one
    aside.rename(folder)
    aside.parent.rmdir()
    _flush(folder.parent)


def remove(folder: Path):
    """Delete a checkpoint; its manifest first, so that half of it is never taken for the whole."""
    (folder / MANIFEST).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def fault(folder: Path) -> str | None:
    """Why a checkpoint is not complete, or None if it is. Reads all of it."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        outside = [name for name in manifest if not (folder / name).resolve().is_relative_to(folder.resolve())]
        sizes = {name: int(size) for name, (size, _) in manifest.items()}
    except FileNotFoundError:
        return f"it has no {MANIFEST}: it was never completed, or is no checkpoint-N"
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"its {MANIFEST} cannot be read: {error}"
    if outside:
        return f"its {MANIFEST} names {outside[0]!r}, which lies outside: do not trust it"
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            return f"it has no {name}"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    with ThreadPoolExecutor() as pool:
        sums = pool.map(_fingerprint, [folder / name for name in manifest])
    for name, entry, found in zip(manifest, manifest.values(), sums, strict=True):
        if found != entry:
            return f"the contents of {name} have changed since it was written"
    return None


def newest_complete(output_dir: str | Path) -> Path | None:
    """The complete checkpoint of the highest step. Newer ones that are not complete are named in the log."""
    aside = Path(output_dir) / ASIDE
    for folder in sorted(aside.glob("*")):
        logger.warning(f"skipped {folder}: it was being written when the run ended")
    for folder in _by_step(output_dir):
        reason = fault(folder)
        if reason is None:
            return folder
        logger.warning(f"skipped {folder}: {reason}")
    return None


def keep_newest(output_dir: str | Path, limit: int | None):
    """Delete all but the `limit` newest checkpoints; None or 0 keeps them all."""
    for folder in _by_step(output_dir)[limit:] if limit else []:
        remove(folder)


def _by_step(output_dir: str | Path) -> list[Path]:
    """Newest first."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if FOLDER.fullmatch(path.name)]
    return sorted(folders, key=lambda path: int(FOLDER.fullmatch(path.name)[1]), reverse=True)


def _fingerprint(path: Path) -> list[int]:
    """Size in bytes and CRC-32."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            checksum = zlib.crc32(block, checksum)
    return [path.stat().st_size, checksum]


def _flush(path: Path):
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
