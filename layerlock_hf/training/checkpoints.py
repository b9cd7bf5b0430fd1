"""Checkpoints that are complete or do not exist.

A checkpoint is written aside, in `OUT/_incomplete/checkpoint-N`; then a manifest of its files is added, everything is
flushed to the disk, and the folder is renamed to `OUT/checkpoint-N`. What does not agree with its manifest, because a
process was killed or a disk failed, is never resumed from.
"""

import contextlib
import json
import math
import re
import shutil
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from transformers.utils import logging

from ..utils.files import flush, flush_all


logger = logging.get_logger(__name__)

MANIFEST = "manifest.json"
ASIDE = "_incomplete"  # the Hub is not sent what begins with an underscore
STAGES_FOLDER = "stages"  # of the models that a run keeps of its stages
FOLDER = re.compile(r"checkpoint-(\d+)")


class CheckpointNotWritten(RuntimeError):
    """A checkpoint could not be written; the message is for the user."""


def publish(aside: Path, folder: Path):
    """Make `folder` of what was written aside, in one step that either happens or does not."""
    files = [path for path in sorted(aside.rglob("*")) if path.is_file()]
    with ThreadPoolExecutor() as pool:
        sums = list(pool.map(_fingerprint, files))
    entries = {str(path.relative_to(aside)): entry for path, entry in zip(files, sums, strict=True)}
    manifest = {"written": time.time(), "files": entries}
    (aside / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    flush_all(aside)
    remove(folder)  # of the same step, left by a run that was resumed from an older one
    aside.rename(folder)
    _tidy(aside.parent)
    flush(folder.parent)


def take_the_place_of(aside: Path, folder: Path):
    """Let the files that were written aside take the place of those in `folder`, each in one step that either happens
    or does not. Weights of a model that had another number of files go: they would be loaded instead."""
    flush_all(aside)
    names = [path.relative_to(aside) for path in sorted(aside.rglob("*")) if path.is_file()]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (aside / name).replace(folder / name)
    for old in folder.glob("model*.safetensors*"):
        if old.relative_to(folder) not in names:
            old.unlink()
    shutil.rmtree(aside)
    _tidy(aside.parent)
    flush(folder)


def remove(folder: Path):
    """Delete a checkpoint; its manifest first, so that half of it is never taken for the whole."""
    (folder / MANIFEST).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def fault(folder: Path) -> str | None:
    """Why a checkpoint is not complete, or None if it is. Reads all of it."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())["files"]
        outside = [name for name in manifest if not (folder / name).resolve().is_relative_to(folder.resolve())]
        sizes = {name: int(size) for name, (size, _) in manifest.items()}
    except FileNotFoundError:
        return f"it has no {MANIFEST}: it was never completed, or is no checkpoint-N"
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        return f"its {MANIFEST} cannot be read: {error!r}"
    if outside:
        return f"its {MANIFEST} names {outside[0]!r}, which lies outside: do not trust it"
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            return f"it has no {name}"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    try:
        with ThreadPoolExecutor() as pool:
            sums = list(pool.map(_fingerprint, [folder / name for name in manifest]))
    except OSError as error:  # of the disk
        return f"it cannot be read: {error}"
    for name, entry, found in zip(manifest, manifest.values(), sums, strict=True):
        if found != entry:
            return f"the contents of {name} have changed since it was written"
    return None


def newest_complete(output_dir: str | Path) -> Path | None:
    """The complete checkpoint that was written last, which is not that of the highest step in a run that was resumed
    from an older one. Those that are not complete are named in the log."""
    aside = Path(output_dir) / ASIDE
    for folder in sorted(aside.glob("*")):
        logger.warning(f"skipped {folder}: it was being written when the run ended")
    for folder in _newest_first(output_dir, unreadable=math.inf):
        reason = fault(folder)
        if reason is None:
            return folder
        logger.warning(f"skipped {folder}: {reason}")
    return None


def keep_newest(output_dir: str | Path, limit: int | None):
    """Delete all but the `limit` checkpoints that were written last; None or 0 keeps them all."""
    for folder in _newest_first(output_dir, unreadable=-math.inf)[limit:] if limit else []:
        remove(folder)


def _newest_first(output_dir: str | Path, unreadable: float) -> list[Path]:
    """All checkpoints, in order of when they were written: the times of files do not survive being copied."""

    def order(folder: Path) -> tuple[float, int]:
        try:
            written = float(json.loads((folder / MANIFEST).read_text())["written"])
        except (OSError, ValueError, TypeError, KeyError):
            written = unreadable
        return written, int(FOLDER.fullmatch(folder.name)[1])

    folders = [path for path in Path(output_dir).glob("checkpoint-*") if FOLDER.fullmatch(path.name)]
    return sorted(folders, key=order, reverse=True)


def _fingerprint(path: Path) -> list[int]:
    """Size in bytes and CRC-32."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            checksum = zlib.crc32(block, checksum)
    return [path.stat().st_size, checksum]


def _tidy(aside: Path):
    with contextlib.suppress(OSError):  # a network file system may keep a file of its own there
        aside.rmdir()
