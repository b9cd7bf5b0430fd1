"""What users name as a checkpoint."""

import os
from pathlib import Path


def check_checkpoint(name: str | os.PathLike) -> str:
    """The folder, `~` resolved, or the id on the Hub that a user means.

    Raises:
        ValueError: for what is meant as a folder of this machine and is none, before the Hub is asked for it, again
            and again.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if path.exists():
        raise ValueError(f"{name} is a file: give the folder that it lies in")
    parts = Path(name).parts
    # The Hub has ORGANISATION/NAME, and a few names alone
    is_relative = len(parts) == 2 and Path(parts[0]).is_dir()
    if is_relative or len(parts) > 2 or str(name).startswith((".", "/", "~")):
        raise ValueError(f"there is no folder {name}")
    return str(name)
