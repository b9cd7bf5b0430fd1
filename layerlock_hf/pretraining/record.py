"""What a run was, for whoever meets its model later: settings, command, data, hardware."""

import argparse
import platform
import shlex
from collections.abc import Iterable

import accelerate
import torch
import transformers

from ..hub.documents import portable, portable_command
from ..recipes import load_recipe, recipe_paths
from ..utils.cores import count_cores
from ..utils.version import VERSION


# What is not of the run but of the place and the way it was started
LOCAL = (
    *("output_dir", "logging_dir", "resume_from_checkpoint", "branch", "rehearse"),
    *("hub_token", "hub_model_id", "push_to_hub"),
)


def names_in(arguments: Iterable[str]) -> list[str]:
    """The settings that are given on a command line: `--max_steps 3 --bf16` -> max_steps, bf16."""
    return [word[2:].partition("=")[0].replace("-", "_") for word in arguments if word.startswith("--")]


def config_of(arguments: list[str]) -> str | None:
    """The recipe that is named on a command line."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("--config")
    return parser.parse_known_args(arguments)[0].config


def settings_record(arguments: list[str], groups: Iterable[object], num_videos: int, clips_per_step: int) -> dict:
    """What `settings.json` holds of a run.

    Args:
        arguments: of `layerlock pretrain`.
        groups: the dataclasses that were made of them.
        num_videos: of the training data.
        clips_per_step: of an optimizer step over all processes.
    """
    values = {name: value for group in groups for name, value in vars(group).items()}
    config = config_of(arguments)
    named = [*(load_recipe(config) if config else ()), *names_in(arguments)]
    chosen = {name: values[name] for name in named if name in values and name not in LOCAL}
    cuda = torch.cuda.is_available() and not values["use_cpu"]
    return {
        "recipe": config if config in recipe_paths() else None,
        "command": portable_command(shlex.join(["layerlock", "pretrain", *arguments])),
        "settings": portable(chosen),
        "max_steps": values["max_steps"],
        "clips_per_step": clips_per_step,
        "data": {"sources": portable([str(source) for source in values["train_data"]]), "num_videos": num_videos},
        "versions": {
            "layerlock_hf": VERSION,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "accelerate": accelerate.__version__,
            "python": platform.python_version(),
        },
        "hardware": {
            "device": torch.cuda.get_device_name() if cuda else "CPU",
            "num_processes": accelerate.PartialState().num_processes,
            "num_cores": count_cores(),
        },
    }
