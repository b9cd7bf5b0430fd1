"""From the settings of a run, or from what a run has left, to what its cost depends on."""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path

from ..analysis.cost import DEFAULT_BATCH_SIZE, plan_cost
from ..analysis.cost_check import compare_with_log
from ..analysis.gpus import Gpu
from ..analysis.runs import Machine, PlannedRun, Sizes
from ..data import MaskArguments
from ..hub.documents import SETTINGS, STAGES, read_json
from ..models import LayerLockViTConfig
from ..recipes.settings import given_with_recipe
from ..training import LayerLockTrainingArguments, StageArguments
from ..training.methods import LOCKING_SETTINGS
from ..training.schedules import whole_steps
from ..training.teachers import teacher_sizes
from .arguments import ModelArguments, make_parser
from .build import model_config
from .logs import read_metrics


NUM_GROUPS = 50  # of clips, over which the sizes of masks are averaged


def given_settings(arguments: list[str], also: Iterable[str] = ()) -> dict:
    """The settings of the recipe, overridden by flags, as `layerlock pretrain` takes them; none that has its default.

    Args:
        also: further settings of the program, to suggest when one is misspelt.

    Raises:
        ValueError: naming the setting that is unknown.
    """
    parser = make_parser()
    parser._defaults.clear()
    parser.usage = "%(prog)s --config RECIPE [--SETTING VALUE ...]"
    for action in parser._actions:
        action.required = action.dest == "config"
        action.default = argparse.SUPPRESS
    return given_with_recipe(parser, arguments, also)


def planned_run(settings: dict, name: str, recorded: Sequence[dict] | None = None) -> PlannedRun:
    """A run of these settings, of which those that are left out have their defaults.

    Args:
        name: of the recipe.
        recorded: the stages so far of a run that decides itself when to freeze, `start` and `num_frozen` each. By
            default they begin as early as its limits allow.

    Raises:
        ValueError: naming the setting that is wrong.
    """
    max_steps = settings.get("max_steps")
    if max_steps is None or max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}: set the steps of the run")
    config, teacher = model_config(settings_of(ModelArguments, settings)), None
    if settings.get("teacher") is not None:
        teacher = teacher_sizes(settings["teacher"])
        config.teacher_hidden_size = teacher.hidden_size
    given = {name: value for name, value in settings.items() if name not in LOCKING_SETTINGS}
    stages, unfrozen = (
        settings_of(StageArguments, chosen).build(config, teacher and teacher.num_hidden_layers, max_steps)
        for chosen in (settings, given)
    )
    warmup_steps = unchecked_arguments(settings, max_steps).switch_warmup_steps
    freezing = settings_of(StageArguments, settings).freezing(config, max_steps, warmup_steps)
    if freezing is not None:
        later = [(row["start"], row["num_frozen"]) for row in (recorded or [])[len(stages) :]]
        stages = freezing.earliest(stages) if recorded is None else freezing.stages(stages, later)
    checkpointing = settings.get("activation_checkpointing") or settings.get("gradient_checkpointing")
    return PlannedRun(
        name=name,
        config=config,
        stages=stages,
        unfrozen=[replace(stage, num_frozen=0) for stage in unfrozen],
        masks=mask_sizes(config, settings_of(MaskArguments, settings)),
        max_steps=max_steps,
        global_batch_size=settings.get("global_batch_size"),
        batch_size=settings.get("per_device_train_batch_size"),
        accumulation=settings.get("gradient_accumulation_steps", 1),
        bf16=bool(settings.get("bf16") or settings.get("fp16")),
        tf32=bool(settings.get("tf32")),
        checkpointing=bool(checkpointing),
        settle_blocks=settings.get("settle_blocks", True),
        frozen_dtype=settings.get("frozen_dtype"),
        teacher=teacher,
    )


def settings_of(kind: type, settings: dict):
    """The dataclass `kind` of those settings that are fields of it; the others have their defaults."""
    known = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in settings.items() if name in known})


def unchecked_arguments(settings: dict, max_steps: int) -> LayerLockTrainingArguments:
    """The training arguments of a run, for what can be computed from them: this machine need not be able to train."""
    args = object.__new__(LayerLockTrainingArguments)
    for field in fields(LayerLockTrainingArguments):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        setattr(args, field.name, settings.get(field.name, default))
    args.max_steps = max_steps
    args.switch_warmup_steps = whole_steps("switch_warmup_steps", args.switch_warmup_steps, max_steps)
    return args


def mask_sizes(config: LayerLockViTConfig, arguments: MaskArguments) -> list[Sizes]:
    """For each of some groups of clips, and each type of mask, how many tokens are seen and how many are predicted."""
    masks = arguments.build()
    group_size = arguments.mask_group_size or 1
    drawn = (masks(config.grid_size, [group * group_size], 0) for group in range(NUM_GROUPS))
    return [tuple((seen.shape[1], hidden.shape[1]) for seen, hidden in kinds) for kinds in drawn]


def recorded_run(folder: Path) -> tuple[PlannedRun, dict]:
    """A run that has been started, as its folder records it, and its hardware: `device`, `num_processes`.

    A teacher that was given to it is taken for one of the model's own size, as it may lie elsewhere by now.

    Raises:
        ValueError: if there is no record, or it is none of pretraining.
    """
    record = read_json(folder / SETTINGS)
    if record is None:
        raise ValueError(f"RUN must be a folder of `layerlock pretrain`, got {folder}: it has no {SETTINGS}")
    try:
        settings = {name: value for name, value in record["settings"].items() if name != "teacher"}
        settings |= {"max_steps": record["max_steps"], "global_batch_size": record["clips_per_step"]}
        settings.setdefault("per_device_train_batch_size", DEFAULT_BATCH_SIZE)
        hardware = {name: record["hardware"][name] for name in ("device", "num_processes")}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / SETTINGS} is no record of a run: {error!r}") from error
    return planned_run(settings, record.get("recipe") or folder.name, read_json(folder / STAGES)), hardware


def plan_beside_log(folder: Path, gpu: Gpu, fsdp2: bool = False) -> tuple[dict, dict, str]:
    """What a run that has been started was to cost, the plan beside its log, and the device that it ran on.

    Args:
        folder: of the run.
        gpu: of which kind the plan is to be; what is compared with the log does not depend on it.
        fsdp2: whether the processes share the model.

    Returns:
        What `plan_cost` and `compare_with_log` return, and a name of the device, "CPU" if it is none of CUDA.

    Raises:
        ValueError: if the run has left too little, or files of two runs are mixed.
    """
    run, hardware = recorded_run(folder)
    plan = plan_cost(run, Machine(gpu, hardware["num_processes"], fsdp2))
    found = compare_with_log(run, plan, read_metrics(folder), knows_memory=hardware["device"] != "CPU")
    return plan, found, hardware["device"]
