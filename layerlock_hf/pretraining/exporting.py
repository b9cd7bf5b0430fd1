"""From what a run left to complete repositories: `layerlock export` and the folders that `layerlock push` sends."""

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoModel,
    AutoModelForDepthEstimation,
    AutoModelForPreTraining,
    AutoModelForVideoClassification,
)
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..hub.client import check_repo_id
from ..hub.documents import (
    METRICS,
    RESULTS,
    RUN_FILE,
    SETTINGS,
    documents_of,
    documents_of_readout,
    is_of_run,
    read_json,
    read_object,
)
from ..hub.repository import check_weights, complete, copy_model, copy_processor, has_large_files, read_config
from ..models import TransformersEncoderConfig
from ..training.checkpoints import FOLDER, STAGES_FOLDER, newest_complete
from ..training.export import load_sharded
from ..training.sharding import SHARDED_MODEL
from ..utils.outputs import check_output, read_lines


AUTO_CLASSES = {
    "encoder": AutoModel,
    "pretraining": AutoModelForPreTraining,
    "classification": AutoModelForVideoClassification,
    "depth": AutoModelForDepthEstimation,
}
ENDINGS = {"ForPretraining": "pretraining", "ForVideoClassification": "classification", "ForDepthEstimation": "depth"}
DTYPES = ("float32", "bfloat16", "float16")
BEST = "best"
STAGE = re.compile(r"stage-\d+")
READOUT_MODEL = "model"  # of a sweep of readouts, within its folder


@dataclass(frozen=True)
class Source:
    """A model that a run left.

    Attributes:
        folder: that holds it.
        kind: a key of `AUTO_CLASSES`.
        documents: what is on record of it, by the names of the files.
    """

    folder: Path
    kind: str
    documents: dict[str, dict | list]


def export(
    run: str | Path,
    output_dir: str | Path,
    what: str | None = None,
    checkpoint: int | str | None = None,
    dtype: str | None = None,
    repo_id: str | None = None,
    license: str | None = None,
) -> Path:
    """Make a folder that is a complete repository of the Hub from what a run left.

    It loads with the Auto classes and pipelines of Transformers where the package is installed, and where it is not
    with `trust_remote_code=True`.

    >>> export("runs/demo/layerlock", "layerlock-demo", checkpoint="stage-2")  # doctest: +SKIP

    Args:
        run: folder of a run of `pretrain` or `train_readouts`, a checkpoint, a converted model, or a repository.
        output_dir: the folder to make, which must be empty or not exist.
        what: "encoder", "pretraining" (encoder and decoder), "classification" or "depth" (encoder and readout). By
            default all that the run left.
        checkpoint: a step, "stage-K" (of a run with `save_stages`) or "best" (by the readout during pretraining). By
            default the end of the run.
        dtype: of the weights, "float32", "bfloat16" or "float16". By default as they are.
        repo_id: "org/name" under which the card loads the model.
        license: of the weights, as the Hub calls it, such as "cc-by-nc-4.0". By default that of weights that were
            released elsewhere, else Apache 2.0.

    Raises:
        ValueError: naming the argument that is wrong, or what the run lacks.
        CheckpointRefused: for a sharded checkpoint that is not complete, or could run code.
    """
    if repo_id is not None:
        check_repo_id(repo_id)
    source, output = find_source(Path(run), checkpoint), Path(output_dir)
    check_choice(source, what, dtype)
    if any(output.resolve().is_relative_to(folder.resolve()) for folder in (Path(run), source.folder)):
        raise ValueError(f"output_dir must lie outside the folder of the run, got {output}: choose another folder")
    check_output(output, ())
    if any(output.iterdir()):
        raise ValueError(f"output_dir must be an empty folder or none, got {output}: choose another")
    try:
        return write_repository(source, output, what, dtype, repo_id, license)
    except BaseException:  # also Ctrl-C: half of it is of no use, and would be in the way of the next try
        for path in output.iterdir():
            path.unlink()
        raise


def check_choice(source: Source, what: str | None, dtype: str | None):
    """Raise a `ValueError` unless the source holds such a model and there is such a dtype."""
    if what not in (None, *AUTO_CLASSES):
        raise ValueError(f"what must be one of {', '.join(AUTO_CLASSES)}, got {what}")
    if what not in (None, source.kind, "encoder"):
        hint = "train one with `layerlock readout`" if what in ("classification", "depth") else "export the encoder"
        raise ValueError(f"what must be {source.kind} or encoder for {source.folder}, got {what}: {hint}")
    if dtype not in (None, *DTYPES):
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype}")
    check_weights(source.folder)


def write_repository(
    source: Source,
    output: Path,
    what: str | None = None,
    dtype: str | None = None,
    repo_id: str | None = None,
    license: str | None = None,
    place: Callable[[Path, Path], object] = shutil.copyfile,
) -> Path:
    """As `export`, of a source that has been found and an allowed choice, into a folder that is empty.

    Args:
        place: how files of weights that stay as they are get there.
    """
    what = what or source.kind
    is_sharded = (source.folder / SHARDED_MODEL).is_dir()
    if what == source.kind and dtype is None and not is_sharded and not has_large_files(source.folder):
        copy_model(source.folder, output, place)
    else:
        model = load(source)
        if what == "encoder" and source.kind != "encoder":
            model = model.encoder
        model.to(getattr(torch, dtype) if dtype else model.dtype)
        model.save_pretrained(output)
        copy_processor(source.folder, output)
    documents = dict(source.documents)
    if what == "encoder" and source.kind != "encoder":
        documents.pop(RESULTS, None)  # they are those of the readout
    named = {name: value for name, value in (("repo_id", repo_id), ("license", license)) if value is not None}
    if named:
        documents[SETTINGS] = {**documents.get(SETTINGS, {}), **named}
    complete(output, documents)
    return output


def load(source: Source):
    """The model of a source, in the dtype of its weights.

    Raises:
        ValueError: if arrays are missing; `CheckpointRefused` for a sharded checkpoint that is not complete, or could
            run code.
    """
    if (source.folder / SHARDED_MODEL).is_dir():
        return load_sharded(source.folder)
    model, loading = AUTO_CLASSES[source.kind].from_pretrained(
        source.folder, dtype="auto", output_loading_info=True, trust_remote_code=False
    )
    if loading["missing_keys"]:
        name = min(loading["missing_keys"])
        raise ValueError(f"{source.folder} lacks arrays of its model, such as {name}: take another checkpoint")
    return model


def find_source(run: Path, checkpoint: int | str | None = None) -> Source:
    """The model that is meant, and what is on record of it.

    Raises:
        ValueError: if there is none, saying what there is.
    """
    if not run.is_dir():
        what = "is a file: give the folder that it is in" if run.exists() else "does not exist: check the spelling"
        raise ValueError(f"run must be a folder, got {run}, which {what}")
    if (run / RESULTS).is_file() and (run / READOUT_MODEL).is_dir():
        if checkpoint is not None:
            raise ValueError("checkpoint must be left out for a sweep of readouts, which leaves its best one")
        return of_readout(run)
    place = Path(os.path.abspath(run))  # which has a name and parents, as "." has not
    number, stage = FOLDER.fullmatch(place.name), STAGE.fullmatch(place.name)
    if checkpoint is None and (number or stage and place.parent.name == STAGES_FOLDER):
        home = place.parent if number else place.parent.parent
        return of_pretraining(home, run, int(number[1]) if number else place.name)
    return of_pretraining(run, *choose(run, checkpoint))


def choose(run: Path, checkpoint: int | str | None) -> tuple[Path, int | str | None]:
    """The folder of the model that `checkpoint` means, and what it is: a step, "stage-K", or None for the end."""
    if checkpoint is None:
        if holds_its_end(run):
            return run, None
        newest = newest_complete(run)
        if newest is None:
            raise ValueError(
                f"run must hold a model of its own or a complete checkpoint, got {run}: is it the folder of a run, "
                "and has that saved anything?"
            )
        return newest, int(FOLDER.fullmatch(newest.name)[1])
    if checkpoint == BEST:
        return best_checkpoint(run)
    text = str(checkpoint)
    stage, number = STAGE.fullmatch(text), FOLDER.fullmatch(f"checkpoint-{text}")
    folder = run / STAGES_FOLDER / text if stage else run / f"checkpoint-{text}"
    if not (stage or number) or not folder.is_dir():
        found = sorted([*run.glob("checkpoint-*"), *run.glob(f"{STAGES_FOLDER}/stage-*")], key=number_of)
        there = ", ".join(path.name.removeprefix("checkpoint-") for path in found) or "none"
        hint = "stages are kept by --save_stages true" if text.startswith("stage-") else "leave it out for the end"
        raise ValueError(f"checkpoint must be one of those in {run} ({there}), got {text}: {hint}")
    return folder, text if stage else int(text)


def holds_its_end(run: Path) -> bool:
    """Whether the model in the folder of a run is that of its end: not one that an earlier run left there, nor one
    from before the run was resumed to go on longer."""
    if not any((run / name).is_file() for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)):
        return False
    newest = max((number_of(path)[1] for path in run.glob("checkpoint-*")), default=0)
    return is_of_run(run, run) and read_object(run / RUN_FILE).get("step", newest) >= newest


def number_of(folder: Path) -> tuple[str, int]:
    """To put checkpoints and stages in order."""
    name, _, number = folder.name.rpartition("-")
    return name, int(number) if number.isdigit() else -1


def best_checkpoint(run: Path) -> tuple[Path, int | None]:
    """The one whose features did best in the readout during pretraining, the end of the run included."""
    rows = read_lines(run / METRICS) if (run / METRICS).is_file() else []
    scores = {}
    for row in rows:
        values = [value for name, value in row.items() if name.startswith("readout/") and "accuracy" in name]
        if values:
            scores[row["step"]] = max(values)
    folders = {number_of(path)[1]: path for path in run.glob("checkpoint-*")}
    last = (read_json(run / "trainer_state.json") or {}).get("global_step")
    if last in scores and (run / SAFE_WEIGHTS_NAME).is_file():
        folders[last] = run
    candidates = [step for step in folders if step in scores]
    if not candidates:
        raise ValueError(
            f"checkpoint=best needs checkpoints of steps at which the readout was measured, and {run} has none: train "
            "with readout_data, readout_steps and save_steps, or name a checkpoint"
        )
    best = max(candidates, key=lambda step: (scores[step], step))
    return folders[best], None if folders[best] == run else best


def of_pretraining(run: Path, folder: Path, which: int | str | None) -> Source:
    """A model of pretraining, or one that was converted, or of a repository."""
    if not (folder / CONFIG_NAME).is_file():
        raise ValueError(f"{folder} holds no model: it has no {CONFIG_NAME}")
    return Source(folder, kind_of(folder), documents_of(run, folder, which))


def of_readout(run: Path) -> Source:
    """The encoder with the best readout of a sweep."""
    folder = run / READOUT_MODEL
    return Source(
        folder, kind_of(folder), documents_of_readout(run, isinstance(read_config(folder), TransformersEncoderConfig))
    )


def kind_of(folder: Path) -> str:
    """What a folder holds, by the class that its configuration names."""
    names = read_config(folder).architectures or [""]
    return next((kind for ending, kind in ENDINGS.items() if names[0].endswith(ending)), "encoder")
