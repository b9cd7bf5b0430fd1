"""The code that is saved with a model, so that it loads where the package is not installed."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from transformers import PreTrainedConfig
from transformers.dynamic_module_utils import get_relative_imports
from transformers.utils import cached_file


HERE = Path(__file__).resolve().parent
IS_REMOTE = __name__.startswith("transformers_modules.")  # run from a copy that came with a model


def modules_of(classes: Iterable[str], origin: PreTrainedConfig | None = None) -> list[Path]:
    """The files that hold classes, and what they import of ours.

    Args:
        classes: as "module.Class".
        origin: the configuration of a model that was loaded with its code, of which Transformers has copied the parts
            that it needed; the others lie where the configuration came from.
    """
    waiting, found = [reference.split(".")[0] for reference in classes], {}
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = _module(name, origin)
            waiting += get_relative_imports(found[name])
    return [found[name] for name in sorted(found)]


def _module(name: str, origin: PreTrainedConfig | None) -> Path:
    path = HERE / f"{name}.py"
    if path.is_file() or origin is None:
        return path
    return Path(cached_file(origin.name_or_path, path.name, revision=getattr(origin, "_commit_hash", None)))


def write_code(folder: str | os.PathLike, classes: Iterable[str], origin: PreTrainedConfig | None = None):
    """Copy the files of `modules_of` into a folder, flat as Transformers needs them."""
    os.makedirs(folder, exist_ok=True)
    for path in modules_of(classes, origin):
        target = Path(folder) / path.name
        if not (target.exists() and target.samefile(path)):
            shutil.copyfile(path, target)
