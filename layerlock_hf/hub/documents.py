"""What a run leaves on record, made fit to travel: nothing in it names the machine that it ran on."""

import hashlib
import json
import shlex
from contextlib import suppress
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..utils.outputs import read_lines
from .words import public_name, public_text


STAGES, SETTINGS, RESULTS, METRICS = "stages.json", "settings.json", "results.json", "metrics.jsonl"
RUN_FILE = "layerlock.json"  # of a checkpoint, see training.run_file
PACE = {"max_steps", "clips_per_step"}  # of `settings.json`, by which progress is told
NOT_OF_THE_COMMAND = {"hub_token", "resume_from_checkpoint", "resume", "branch"}


def read_json(path: Path):
    """The content of a JSON file, None where there is none.

    Raises:
        ValueError: naming the file, if it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def read_object(path: Path) -> dict:
    """The content of a file such as `settings.json`, empty where there is none.

    Raises:
        ValueError: naming the file, if it is something else.
    """
    record = read_json(path) or {}
    if not isinstance(record, dict):
        raise ValueError(f"{path} must hold an object, got something else: move it away")
    return record


def portable(value):
    """JSON with `public_text`s."""
    if isinstance(value, str):
        return public_name(value) if value.startswith(("/", "~")) else public_text(value)
    if isinstance(value, list):
        return [portable(one) for one in value]
    if isinstance(value, dict):
        return {name: portable(one) for name, one in value.items()}
    return value


def documents_of(run: Path, folder: Path, which: int | str | None = None) -> dict[str, dict | list]:
    """What is on record of a model of a run, by the names of the files.

    Args:
        run: OUT of `layerlock pretrain`, or any folder with a model.
        folder: within it, that of the model.
        which: the step of a checkpoint, "stage-K", or None for the end of the run.

    Raises:
        ValueError: if the model is of another run.
    """
    record, stages, origin = read_object(run / SETTINGS), stages_of(run, folder), read_object(folder / RUN_FILE)
    if origin.get("run_id"):
        record.setdefault("run_id", origin["run_id"])
    if not is_of_run(run, folder):
        raise ValueError(f"{folder} is of an earlier run in the same folder: move it away, or name a checkpoint")
    step = which if isinstance(which, int) else origin.get("step", record.get("max_steps"))
    if isinstance(which, str):
        record["revision"], record["stage"] = which, int(which.removeprefix("stage-"))
        if record["stage"] >= len(stages or ()):
            raise ValueError(
                f"{folder} is not of this run, which has {len(stages or ())} stages: move it away, as an earlier run "
                "in the same folder left it"
            )
        step = stages[record["stage"]]["start"]
    if PACE <= record.keys() and (run / METRICS).is_file():
        record["progress"] = progress(run, step, record)
    return _present({STAGES: stages, SETTINGS: record, RESULTS: read_json(run / RESULTS)})


def is_of_run(run: Path, folder: Path) -> bool:
    """Whether a model is of the run that its folder tells of, as far as they say: a fresh run leaves in place what an
    earlier one has written there."""
    ids = [read_object(path).get("run_id") for path in (run / SETTINGS, folder / RUN_FILE)]
    return None in ids or ids[0] == ids[1]


def documents_of_readout(run: Path, reads_foreign_encoder: bool) -> dict[str, dict | list]:
    """The same of a sweep of readouts, with what is on record of the encoder.

    Args:
        run: OUT of `layerlock readout`.
        reads_foreign_encoder: whether the encoder is other people's, which the card has to credit.
    """
    content = (run / RESULTS).read_bytes()
    results = read_json(run / RESULTS)
    encoder = Path(results["model"]).expanduser()
    stages, record = None, {}
    if encoder.is_dir():
        stages, record = stages_of(encoder, encoder), read_object(encoder / SETTINGS)
    elif reads_foreign_encoder:
        with suppress(HFValidationError):  # else a folder that is elsewhere now, which is nobody's business
            validate_repo_id(results["model"])
            record["base_model"] = results["model"]
    record["run_id"] = hashlib.sha256(content).hexdigest()[:32]  # another sweep is another model
    results = portable(results) | {"command": portable_command(results["command"])}
    return _present({STAGES: stages, SETTINGS: record, RESULTS: results})


def title_of(documents: dict[str, dict | list]) -> str:
    """What a model is in the history of its run, in a line."""
    record = documents.get(SETTINGS, {})
    if "stage" in record:
        start, num_frozen = (documents[STAGES][record["stage"]][name] for name in ("start", "num_frozen"))
        layers = "layer 1" if num_frozen == 1 else f"layers 1 to {num_frozen}"
        frozen = f"{layers} frozen" if num_frozen else "nothing frozen"
        return f"stage {record['stage']}: step {start}, {frozen}"
    reached = record.get("progress")
    if reached is None:
        return "readout" if RESULTS in documents else "model"
    return f"step {reached['step']} of {reached['max_steps']}"


def _present(documents: dict) -> dict:
    return {name: content for name, content in documents.items() if content}


def progress(run: Path, step: int, record: dict) -> dict:
    """How far a run was at a step, and what that took, from its log: also of a run that was stopped and resumed."""
    rows = [row for row in read_lines(run / METRICS) if row.get("clips_per_second") and row["step"] <= step]
    seconds, before = 0.0, 0
    for row in rows:
        seconds += (row["step"] - before) * record["clips_per_step"] / row["clips_per_second"]
        before = row["step"]
    told = {"step": step, "max_steps": record["max_steps"], "clips": step * record["clips_per_step"]}
    return told | ({"seconds": round(seconds, 1), "total_flops": rows[-1]["total_flops"]} if rows else {})


def stages_of(run: Path, source: Path) -> list[dict] | None:
    """The stages of a run: its own report, else what its checkpoint records."""
    stages = read_json(run / STAGES)
    record = read_json(source / RUN_FILE) if stages is None else None
    if record is None:
        return stages
    return [
        {"start": row["start"], "num_frozen": row["num_frozen"], "target": row["is"].rpartition(" predicts ")[2]}
        for row in record["stages"]
    ]


def portable_command(command: str) -> str:
    """A command line without paths, tokens, and what resumed it; what it writes to is called OUT."""
    kept, name = [], ""
    for word in shlex.split(command):
        if word.startswith("--"):
            name = word[2:].partition("=")[0].replace("-", "_")  # the parser takes both
        if name == "output_dir" and not word.startswith("--"):
            kept.append("OUT")
        elif name not in NOT_OF_THE_COMMAND:
            kept.append(public_text(word))
    return shlex.join(kept)
