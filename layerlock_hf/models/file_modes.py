"""Who may read the files that are written."""

import os


def follow_umask(path: str | os.PathLike):
    """Give a file the mode that the umask says: safetensors 0.8 lets the owner alone read what it writes."""
    umask = os.umask(0)  # there is no other way to ask
    os.umask(umask)
    os.chmod(path, 0o666 & ~umask)


def follow_umask_in(folder: str | os.PathLike):
    """The same for all weights in a folder."""
    for name in os.listdir(folder) if os.path.isdir(folder) else ():  # Transformers only logs that a file is no folder
        if name.endswith(".safetensors"):
            follow_umask(os.path.join(folder, name))
