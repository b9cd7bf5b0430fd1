"""The model card of a folder that is to become a repository on the Hub: a pure function of the files in it."""

import json
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCardData
from huggingface_hub.utils import validate_repo_id

from ..models import LayerLockReadoutConfig, LayerLockViTConfig, TransformersEncoderConfig
from . import snippets
from .architecture import (
    WEIGHTS_FILES,
    clip_row,
    count_parameters,
    layerlock_rows,
    other_rows,
    parameter_row,
    readout_row,
)
from .citations import LAYERLOCK, SCALING_4D, citations_of
from .evaluation_files import model_index
from .kinds import KINDS, Kind
from .rendering import COST, LIBRARY, TAGS, CardFacts, render_card
from .results_table import results_table
from .snippets import Snippet, Source
from .words import cell, counted, duration, in_powers, listed, public_command, public_name


CONFIGS = {kind.model_type: kind for kind in (LayerLockViTConfig, TransformersEncoderConfig)}
NUM_CLASSES_NAMED = 12
RELEASED_4DS = "https://github.com/google-deepmind/representations4d"


@dataclass(frozen=True)
class Folder:
    """What the files of a repository say.

    Args:
        path: the folder.
        config: of the model.
        kind: of the model.
        settings: content of `settings.json`, empty if there is none.
        stages: content of `stages.json`, empty if there is none.
        results: content of `results.json`, or None.
        processor: content of `video_preprocessor_config.json`, or None.
    """

    path: Path
    config: LayerLockReadoutConfig
    kind: Kind
    settings: dict
    stages: list[dict]
    results: dict | None
    processor: dict | None

    @property
    def progress(self) -> dict:
        """How far the training came."""
        return self.settings.get("progress", {})

    @property
    def is_ours(self) -> bool:
        """Whether the encoder is LayerLock's ViT."""
        return isinstance(self.config, LayerLockViTConfig)

    @property
    def source(self) -> Source:
        """Where snippets load the model from."""
        return Source(
            self.settings.get("repo_id", "."),
            self.settings.get("revision"),
            has_processor=self.processor is not None,
            has_code=any(self.path.glob("configuration_*.py")),
        )


def card_of(folder: Path) -> str:
    """The README.md of a folder with a model: what its files say, and nothing else.

    Args:
        folder: config.json and safetensors; optionally stages.json, settings.json, results.json, LICENSE and
            video_preprocessor_config.json.

    Raises:
        ValueError: if a file is missing or says what it cannot.
    """
    return render_card(facts_of_folder(Path(folder)))


def facts_of_folder(path: Path) -> CardFacts:
    """What the card of a folder tells.

    Raises:
        ValueError: as `card_of`.
    """
    folder = read_folder(path)
    settings, kind = folder.settings, folder.kind
    title = settings["repo_id"].rpartition("/")[2] if "repo_id" in settings else kind.title
    licence, metadata = _licence(folder)
    return CardFacts(
        metadata=ModelCardData(
            **metadata,
            library_name=LIBRARY,
            pipeline_tag=kind.pipeline_tag,
            tags=TAGS if folder.is_ours else TAGS[:2],
            **_model_index(folder, title),
        ),
        title=title,
        summary=kind.summary,
        use=_use(folder),
        architecture=_architecture(folder),
        snippets=[*snippets.features(folder.source), _task_snippet(folder)],
        licence=licence,
        citations=_citations(folder),
        notice=_notice(folder),
        stages=folder.stages,
        data=_data(settings.get("data", {})),
        training=_training(folder),
        commands=_commands(folder),
        evaluation=None if folder.results is None else results_table(folder.results),
    )


def _model_index(folder: Folder, title: str) -> dict:
    return {} if folder.results is None else {"model_name": title, "eval_results": model_index(folder.results)}


def read_folder(path: Path) -> Folder:
    """What the files of a folder say.

    Raises:
        ValueError: naming the file that is missing or broken.
    """
    content = _read(path / "config.json")
    if content is None:
        raise ValueError(f"{path} holds no model: it has no config.json")
    architecture = (content.get("architectures") or [None])[0]
    if content.get("model_type") not in CONFIGS or architecture not in KINDS:
        raise ValueError(
            f"config.json must be of one of {', '.join(KINDS)}, got {architecture} of the type "
            f"{content.get('model_type')}"
        )
    return Folder(
        path,
        CONFIGS[content["model_type"]].from_pretrained(path),
        KINDS[architecture],
        settings=_read(path / "settings.json") or {},
        stages=_read(path / "stages.json") or [],
        results=_read(path / "results.json"),
        processor=_read(path / "video_preprocessor_config.json"),
    )


def _read(path: Path):
    """The content of a JSON file, None if there is none."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is not valid JSON in UTF-8: {error}") from error


def _notice(folder: Folder) -> str:
    progress, settings = folder.progress, folder.settings
    if not settings:
        known = " beyond what is shown below" if folder.stages or folder.results else ""
        return f"Nothing is recorded about how these weights were trained{known}."
    if "stage" in settings:
        place = f"at step {progress['step']:,} of {progress['max_steps']:,}, when stage {settings['stage']} began"
        num_frozen = folder.stages[settings["stage"]]["num_frozen"] if folder.stages else 0
        rest = f" Its first {counted(num_frozen, 'layer')} learned no more after that." if num_frozen else ""
        return f"This is not the final model but the encoder as it was {place}.{rest}"
    if progress and progress["step"] < progress["max_steps"]:
        # Whether the run was stopped, goes on or has finished, nothing here tells
        return f"This is not the final model but the one at step {progress['step']:,} of {progress['max_steps']:,}."
    return ""


def _use(folder: Folder) -> list[str]:
    config, processor = folder.config, folder.processor or {}
    names = list(config.id2label.values())
    shown = [cell(str(name)) for name in names[:NUM_CLASSES_NAMED]]
    more = len(names) - len(shown)
    classes = f"{counted(len(names), 'class')} ({', '.join(shown)}{f' and {more:,} more' if more else ''})"
    frame = "a square from the middle of the picture" if processor.get("do_center_crop", True) else "the picture"
    lines = [
        folder.kind.use.format(classes=classes),
        f"It sees {config.num_frames} frames at a time, and of them {frame}, resized to {config.image_size} × "
        f"{config.image_size} pixels.",
        "No check for bias is recorded, and none for uses in which an error does harm.",
    ]
    if folder.results is None:
        lines.append("No evaluation of this model is recorded.")
    return lines


def _architecture(folder: Folder) -> list[tuple[str, str]]:
    config, kind = folder.config, folder.kind
    files = sorted(folder.path.glob(WEIGHTS_FILES))
    if not files:
        raise ValueError(f"{folder.path} holds no weights: it has no model.safetensors")
    rows = layerlock_rows(config, kind.decodes) if folder.is_ours else other_rows(config)
    rows += [clip_row(config, folder.processor)]
    if kind.has_readout:
        rows.append(readout_row(config))
    return [*rows, parameter_row(count_parameters(files))]


def _data(data: dict) -> str:
    if not data:
        return ""
    places = listed([f"“{cell(public_name(source))}”" for source in data.get("sources", [])])
    amount = counted(data["num_videos"], "video") if "num_videos" in data else "Videos"
    return f"{amount} from {places}." if places else f"{amount}."


def _training(folder: Folder) -> list[tuple[str, str]]:
    settings, progress = folder.settings, folder.progress
    rows = []
    if settings.get("converted_from") is not None:
        rows.append(("converted from", f"{cell(public_name(settings['converted_from']))}, as it was released"))
    if settings.get("recipe") is not None:
        rows.append(("recipe", f"{cell(public_name(settings['recipe']))}, a file of settings of `layerlock_hf`"))
    if settings.get("settings"):
        rows.append(("settings", "all of them are in [settings.json](settings.json)"))
    if "run_id" in settings:
        rows.append(("run", cell(settings["run_id"])))
    if "step" in progress:
        clips = f", {counted(progress['clips'], 'clip')} in all" if "clips" in progress else ""
        rows.append(("steps of the optimizer", f"{progress['step']:,} of {progress['max_steps']:,}{clips}"))
    if "hardware" in settings:
        rows.append(("hardware", _hardware(settings["hardware"])))
    if "seconds" in progress:
        rows.append(("time", duration(progress["seconds"])))
    if progress.get("total_flops"):
        rows.append(("cost", f"{in_powers(progress['total_flops'])} {COST}"))
    if "versions" in settings:
        rows.append(("versions", ", ".join(f"{name} {version}" for name, version in settings["versions"].items())))
    return rows


def _hardware(hardware: dict) -> str:
    processes = hardware.get("num_processes", 1)
    devices = cell(hardware["device"]) if processes == 1 else f"{processes} × {cell(hardware['device'])}"
    return f"{devices}; {counted(hardware['num_cores'], 'CPU core')}" if "num_cores" in hardware else devices


def _commands(folder: Folder) -> list[Snippet]:
    command = folder.settings.get("command") or (folder.results or {}).get("command")
    if command is None:
        return []
    public = public_command(command)
    shortened = "" if public == command else ", where paths of the machine that it ran on are shortened to names"
    return [Snippet(f"The command{shortened}:", public, "bash")]


def _task_snippet(folder: Folder) -> Snippet:
    if folder.kind.decodes and folder.stages:
        step = folder.progress.get("step", folder.stages[-1]["start"] + 1)
        # What was saved at the step where a stage starts has learned nothing in it yet
        stage = [row for row in folder.stages if row["start"] < max(step, 1)][-1]
        run = folder.settings.get("settings", {})
        snippet = snippets.reconstruction(folder.source, folder.config, stage, run)
        if snippet is not None:
            return snippet
    return folder.kind.snippet(folder.source)


def _licence(folder: Folder) -> tuple[str, dict]:
    """What is said of it, and the metadata."""
    settings = folder.settings
    if "base_model" in settings:
        base = settings["base_model"]
        validate_repo_id(base)
        link = f"https://huggingface.co/{base}"
        text = (
            f"The encoder is [{base}]({link}), and the licence of its weights applies to them here, too. The readout "
            "and the code of this repository are under the Apache License 2.0."
        )
        named = {"license_name": "that-of-the-base-model", "license_link": link, "base_model": base}
        return text, {"license": "other", **named}
    if settings.get("converted_from") is not None:
        text = (
            f"The weights are those that [Google DeepMind released]({RELEASED_4DS}), which puts its software under "
            "the Apache License 2.0 and all other materials under CC BY 4.0. The code of this repository is under the "
            "Apache License 2.0."
        )
        return text, {"license": "cc-by-4.0"}
    if not folder.is_ours:
        text = "The encoder is somebody else's: the licence of its weights applies to them here, too."
        return text, {"license": "other"}
    name = "[Apache License 2.0](LICENSE)" if (folder.path / "LICENSE").is_file() else "Apache License 2.0"
    return f"{name}.", {"license": "apache-2.0"}


def _citations(folder: Folder) -> list[str]:
    if folder.settings.get("converted_from") is not None:
        return [SCALING_4D, LAYERLOCK]
    return citations_of(folder.settings.get("settings", {}) if folder.is_ours else {})
