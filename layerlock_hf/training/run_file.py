"""What a checkpoint records about its run, so that no other run resumes from it by mistake."""

import json
import re
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path

from transformers import AutoConfig

from ..hub.documents import RUN_FILE
from ..models.configuration_layerlock import LayerLockViTConfig, architecture_fields
from ..models.objectives import Stage


class CheckpointRefused(ValueError):
    """This run cannot resume from the checkpoint; the message is for the user."""


def target_label(stage: Stage) -> str:
    """All that a stage predicts, in tables and messages: `pixels`, or `pixels + layer_3`."""
    return " + ".join(stage.labels)


def describe(stage: Stage) -> str:
    """A stage in words."""
    return f"from step {stage.start} on freezes {stage.num_frozen} layers and predicts {target_label(stage)}"


def announce(before: Stage, stage: Stage) -> str:
    """What a user should know when a stage begins."""
    frozen = "layer 1" if stage.num_frozen == 1 else f"layers 1 to {stage.num_frozen}"
    text = f"step {stage.start}: {f'{frozen} frozen' if stage.num_frozen else 'nothing frozen'}, "
    if stage.labels == before.labels:
        return f"{text}still predicts {target_label(stage)}"
    return f"{text}predicts {target_label(stage)}; losses of different targets do not compare, see explained_variance"


def write_run_file(
    folder: str, stages: list[Stage], learning: list[str], identity: dict, run_id: str | None, step: int
):
    """Record the stages, the names of the parameters that learn, and what else makes the run what it is; and which run
    and step the model is of, by which exports tell it from what another run left in the same folder."""
    record = {"run_id": run_id, "step": step}
    record |= {"stages": _as_json(stages), "learning": learning, "identity": identity}
    (Path(folder) / RUN_FILE).write_text(json.dumps(record, indent=1) + "\n")


def read_run_file(checkpoint: str) -> dict:
    """What `LayerLockTrainer` recorded in a checkpoint.

    Raises:
        CheckpointRefused: if the checkpoint was not written by it.
    """
    path = Path(checkpoint) / RUN_FILE
    if not path.is_file():
        raise CheckpointRefused(f"{checkpoint} is not a checkpoint of LayerLockTrainer: it has no {RUN_FILE}")
    try:
        record = json.loads(path.read_text())
        # Files of earlier versions tell neither run nor step
        known = {name: record[name] for name in ("run_id", "step") if name in record}
        return known | {name: record[name] for name in ("stages", "learning", "identity")}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointRefused(f"{path} cannot be read: {error!r}") from error


def check_run_file(
    checkpoint: str,
    stages: list[Stage],
    config: LayerLockViTConfig,
    identity: dict,
    may_branch: bool = False,
):
    """Raise `CheckpointRefused` unless the checkpoint was written by a run of these stages and this identity on such a
    model.

    Args:
        may_branch: whether stages may differ that begin at or after the step of the checkpoint: it was written before
            the switch at its step, so that until then both runs are the same.
    """
    record = read_run_file(checkpoint)
    before, after = record["stages"], _as_json(stages)
    if may_branch:
        border = record.get("step", 0)  # of an earlier version, which does not tell it, all stages must agree
        if border:
            _check_teacher(checkpoint, before, after)
            before, after = ([row for row in rows if row["start"] < border] for rows in (before, after))
    for number, (then, now) in enumerate(zip_longest(before, after)):
        if then != now:
            raise CheckpointRefused(
                f"{checkpoint} was written by a run with other stages: stage {number} was '{_describe(then, now)}', "
                f"but is now '{_describe(now, then)}'"
            )
    for name, now in identity.items():
        then = record["identity"].get(name)
        if then != now:
            then, now = _differing(str(then), str(now))
            raise CheckpointRefused(
                f"{checkpoint} was written with {name} {then}, but it is now {now}: resume with the settings that it "
                "was written with, or start anew in another output_dir"
            )
    then = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    differing = [
        f"{name}: {getattr(then, name)} then, {getattr(config, name)} now"
        for name in architecture_fields()
        if name != "num_frozen_layers" and getattr(then, name) != getattr(config, name)
    ]
    if differing:
        raise CheckpointRefused(f"{checkpoint} holds another model: {'; '.join(differing)}")


def _check_teacher(checkpoint: str, before: list[dict], after: list[dict]):
    """Raise `CheckpointRefused` if only the branch has a teacher, which would have had to follow from step 0 on."""
    has_teacher, needs_teacher = (
        any(one["target"].get("of") == "teacher" for row in rows for one in row["objectives"])
        for rows in (before, after)
    )
    if needs_teacher and not has_teacher:
        raise CheckpointRefused(f"{checkpoint} holds no teacher, which a stage of this branch predicts")


def _describe(stage: dict | None, other: dict | None) -> str:
    """A recorded stage in words, or all of it where the words are those of the other."""
    if stage is None:
        return "none"
    return stage["is"] if other is None or stage["is"] != other["is"] else json.dumps(stage["objectives"])


def _differing(then: str, now: str) -> tuple[str, str]:
    """Of plans in words, which have clauses with semicolons between them, those that differ."""
    if not ("; " in then and "; " in now):
        return then, now
    pairs = zip_longest(*(re.split(r"; |, |: ", text.rstrip(")")) for text in (then, now)), fillvalue="nothing more")
    thens, nows = zip(*(pair for pair in pairs if pair[0] != pair[1]), strict=True)
    return "; ".join(thens), "; ".join(nows)


def _as_json(stages: list[Stage]) -> list[dict]:
    rows = json.loads(json.dumps([asdict(stage) | {"is": describe(stage)} for stage in stages]))
    for row in rows:  # the name by which checkpoints know it
        row["objectives"] = [{"source": one.pop("read_at"), **one} for one in row["objectives"]]
    return rows
