"""Settings from a recipe, overridden by flags: what all programs with a `--config` share."""

import difflib
import json
from collections.abc import Iterable, Mapping

from transformers import HfArgumentParser

from . import load_recipe


class UsageError(ValueError):
    """Settings that cannot be parsed.

    Attributes:
        usage: how the program is called.
    """

    def __init__(self, message: str, usage: str):
        super().__init__(message)
        self.usage = usage


class SettingsParser(HfArgumentParser):
    """Raises a `UsageError` where argparse would print and exit, as functions parse settings too."""

    def error(self, message: str):
        raise UsageError(message, self.format_usage())


def flags_of(settings: Mapping[str, object]) -> list[str]:
    """Settings as typed on the command line: {"betas": [0.9, 0.95]} -> ["--betas", "0.9", "0.95"]. None is not set."""
    flags = []
    for name, value in settings.items():
        if value is None:
            continue
        values = value if isinstance(value, list | tuple) else [value]
        flags += [f"--{name}", *(json.dumps(one) if isinstance(one, dict) else str(one) for one in values)]
    return flags


def parse_with_recipe(parser: SettingsParser, arguments: list[str], also: Iterable[str] = ()) -> tuple:
    """The parser's dataclasses, filled in from the recipe named by `--config` and from the other flags.

    Args:
        also: further settings of the program, to suggest when one is misspelt.

    Raises:
        ValueError: naming the setting that is unknown, or saying what is wrong with the recipe.
    """
    config = SettingsParser(allow_abbrev=False, add_help=False)
    config.add_argument("--config")
    recipe = config.parse_known_args(arguments)[0].config
    takes_several = {action.dest for action in parser._actions if action.nargs in ("+", "*")}
    known = {name for kind in parser.dataclass_types for name in kind.__dataclass_fields__}
    flags = []
    if recipe is not None:
        settings = load_recipe(recipe)
        for name, value in settings.items():
            if name not in known:
                raise ValueError(f"{name} is not a known setting (in {recipe}){_hint(name, known)}")
            if isinstance(value, list) and name not in takes_several:
                raise ValueError(f"{name} in {recipe} must be one value, got {value}")
        flags = flags_of(settings)
    *parsed, unknown = parser.parse_args_into_dataclasses(flags + arguments, return_remaining_strings=True)
    if unknown:
        hint = _hint(unknown[0].removeprefix("--").partition("=")[0], {*known, *also}, "--")
        raise ValueError(f"{unknown[0]} is not a known setting, or one value too many for the setting before it{hint}")
    return tuple(parsed)


def _hint(name: str, known: Iterable[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {prefix}{close[0]}?" if close else ""
