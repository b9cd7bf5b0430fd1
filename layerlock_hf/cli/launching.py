"""Starting a program under `accelerate launch`, as `accelerate launch -m PROGRAM` does."""

import difflib
import os
import sys
from pathlib import Path

import torch
from accelerate.commands.config.config_args import default_config_file
from accelerate.commands.launch import launch_command_parser

from ..pretraining.arguments import make_parser


CONFIGS = Path(__file__).resolve().parent / "launch"
CONFIG_OPTION = "--accelerate_config"
# What accelerate, torchrun and mpirun set for the processes that they start
LAUNCHED = ("ACCELERATE_MIXED_PRECISION", "LOCAL_RANK", "WORLD_SIZE")


def launch_options() -> dict[str, int]:
    """The options of `accelerate launch` that are no settings of ours, and how many values each takes."""
    ours = {option for action in make_parser()._actions for option in action.option_strings}
    ours |= {"-h", "--help", "-m", "--module", "--no_python", "--no-python"}
    options = {CONFIG_OPTION: 1}
    for action in launch_command_parser()._actions:
        num_values = 0 if action.nargs == 0 else 1
        options |= {option: num_values for option in action.option_strings if option not in ours}
    return options


def split(arguments: list[str], options: dict[str, int]) -> tuple[list[str], list[str]]:
    """Those of these options, with their values, and the rest."""
    theirs, ours, num_values = [], [], 0
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name in options:
            num_values = 0 if value else options[name]
            theirs.append(argument)
        elif num_values:
            num_values -= 1
            theirs.append(argument)
        else:
            ours.append(argument)
    return theirs, ours


def config_file(name: str) -> str:
    """The file of an accelerate configuration of ours by name, or the one at this path.

    Raises:
        ValueError: if there is neither.
    """
    names = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    if name in names:
        return str(CONFIGS / f"{name}.yaml")
    if Path(name).is_file():
        return name
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
    raise ValueError(f"accelerate_config must be the name of a configuration or a YAML file, got {name}: {hint}")


def with_config_file(options: list[str]) -> list[str]:
    """Options of `accelerate launch`, with `--accelerate_config NAME` as accelerate calls it."""
    flags, rest = [], iter(options)
    for option in rest:
        name, _, value = option.partition("=")
        if name != CONFIG_OPTION:
            flags.append(option)
            continue
        value = value or next(rest, None)
        if value is None:
            raise ValueError(
                "accelerate_config must be the name of a configuration or a YAML file, got nothing: for instance "
                f"{CONFIG_OPTION} fsdp2"
            )
        flags += ["--config_file", config_file(value)]
    return flags


def launch(module: str, arguments: list[str], options: dict[str, int]):
    """Become `accelerate launch` of a program if its options are given, or if it would start more than this process.

    Returns where this process is the one that shall run the program.

    Args:
        module: the program.
        arguments: its own, and options of `accelerate launch` among them.
        options: as of `launch_options`.

    Raises:
        ValueError: naming the option that is wrong.
    """
    theirs, ours = split(arguments, options)
    if any(name in os.environ for name in LAUNCHED):
        if theirs:
            raise ValueError(f"{theirs[0]} is an option of accelerate launch, which is already running: pass it there")
        return
    if not theirs and torch.cuda.device_count() < 2 and not Path(default_config_file).is_file():
        return
    command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", *with_config_file(theirs)]
    sys.stdout.flush()
    os.execv(sys.executable, [*command, "--module", module, *ours])
