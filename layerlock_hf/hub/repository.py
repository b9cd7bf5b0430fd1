"""A folder that is a complete repository of the Hub: weights, configuration, code, processor, card and licence."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, VIDEO_PROCESSOR_NAME

from ..models import LayerLockReadoutConfig, LayerLockVideoProcessor, LayerLockViTConfig
from ..utils.records import json_text
from .architecture import WEIGHTS_FILES, count_parameters
from .cards import CONFIGS, card_of
from .documents import SETTINGS, documents_of, read_object


RENAMED = ("AnyEncoder", "TransformersEncoder")  # classes, since files of earlier versions
WEIGHTS = "model*.safetensors*"  # with the index, where there are several
LICENSE = "LICENSE"
CARD = "README.md"
PUSHED = ".push-"  # how folders begin that are pushed
MAX_WEIGHTS = 5_000_000_000  # bytes of a file of weights


def copy_model(source: Path, folder: Path, place: Callable[[Path, Path], object] = shutil.copyfile):
    """The model of a folder with the code of this version: its weights as they are, byte for byte.

    Args:
        place: how a file of weights gets into the folder.

    Raises:
        ValueError: if the folder holds no model of ours in safetensors.
    """
    weights = sorted(source.glob(WEIGHTS))
    if not weights or not (source / CONFIG_NAME).is_file():
        raise ValueError(f"{source} holds no model: it must have {CONFIG_NAME} and {WEIGHTS}")
    config = read_config(source)
    config.architectures = [name.replace(*RENAMED) for name in config.architectures or ()]
    config.save_pretrained(folder)
    for path in weights:
        place(path, folder / path.name)
    copy_processor(source, folder)


def check_weights(source: Path):
    """Raise a `ValueError` if a file of the weights of a model is missing or damaged."""
    index = source / SAFE_WEIGHTS_INDEX_NAME
    for name in sorted(set(read_object(index).get("weight_map", {}).values())):
        if not (source / name).is_file():
            raise ValueError(f"{source} lacks {name}, a part of the weights that {index.name} names: take another")
    count_parameters(source.glob(WEIGHTS_FILES))


def read_config(source: Path) -> LayerLockReadoutConfig:
    """
    Raises:
        ValueError: if there is none, or it is that of another model.
    """
    try:
        fields, _ = LayerLockViTConfig.get_config_dict(source)
        kind = CONFIGS.get(fields.get("model_type"))
        if kind is None:
            raise ValueError(
                f"model_type in its {CONFIG_NAME} must be {' or '.join(CONFIGS)}, got {fields.get('model_type')}: "
                "push other models with Transformers"
            )
        return kind.from_pretrained(source)
    except (OSError, ValueError, StrictDataclassError) as error:
        raise ValueError(f"{source} cannot be loaded: {' '.join(str(error).split())}") from error


def copy_processor(source: Path, folder: Path):
    """The video processor of a model, which belongs to what pipelines need."""
    find_processor(source).save_pretrained(folder)


def find_processor(source: Path) -> LayerLockVideoProcessor:
    """That of a model: its own, that of its run, or where none was saved the one of its configuration."""
    saved = [place for place in (source, source.parent) if (place / VIDEO_PROCESSOR_NAME).is_file()]
    if saved:
        return LayerLockVideoProcessor.from_pretrained(saved[0])
    return LayerLockVideoProcessor.from_config(read_config(source))


def complete(folder: Path, documents: dict[str, dict | list]):
    """Add to a model and its processor what else a repository holds.

    Args:
        documents: what is on record, by the names of the files.
    """
    for name, content in documents.items():
        (folder / name).write_text(json_text(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.copyfile(Path(__file__).with_name(LICENSE), folder / LICENSE)
    (folder / CARD).write_text(card_of(folder), encoding="utf-8")


def repository_of_run(
    run: Path, folder: Path, which: int | str | None, place: Path, repo_id: str | None = None
) -> dict[str, dict | list]:
    """Make a model of a run a repository in an empty folder to be read and deleted; returns what is on record of it.

    Args:
        run, folder, which: as of `documents_of`.
        place: where to.
        repo_id: "org/name" under which the card loads it.
    """
    documents = documents_of(run, folder, which)
    if repo_id is not None:
        documents[SETTINGS] = {**documents.get(SETTINGS, {}), "repo_id": repo_id}
    copy_model(folder, place, link_or_copy)
    complete(place, documents)
    return documents


def link_or_copy(path: Path, target: Path):
    """For folders that are read and deleted: without a copy where the file system allows it."""
    try:
        os.link(path.resolve(), target)  # and no link to a link, of which the Hub's cache is full
    except OSError:
        shutil.copyfile(path, target)


class PushFolder(tempfile.TemporaryDirectory):
    """An empty folder, gone afterwards: within the run, to which files can be linked, or where that cannot be written
    among those for temporary files. What pushes that were killed have left there goes; those that run stay whole."""

    def __init__(self, run: Path):
        parent = run if os.access(run, os.W_OK) else None
        for left_over in run.glob(f"{PUSHED}*") if parent else ():
            lock = _lock(left_over)
            if lock is not None:
                shutil.rmtree(left_over, ignore_errors=True)
                os.close(lock)
        super().__init__(prefix=PUSHED, dir=parent, ignore_cleanup_errors=True)
        self._locked = _lock(Path(self.name))

    def cleanup(self):
        super().cleanup()
        if self._locked is not None:
            os.close(self._locked)
            self._locked = None


def _lock(folder: Path) -> int | None:
    """Lock a folder until the descriptor is closed or the process ends. None if another has, or it cannot be done."""
    try:
        lock = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def has_large_files(source: Path) -> bool:
    """Whether weights have to be written anew, because a file of them is too large to download well."""
    return any(path.stat().st_size > MAX_WEIGHTS for path in source.glob(WEIGHTS))
