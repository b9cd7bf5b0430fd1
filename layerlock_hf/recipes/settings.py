"""Settings from a recipe, overridden by flags: what all programs with a `--config` share."""

import difflib
import functools
import json
from collections.abc import Callable, Iterable, Mapping

from transformers import HfArgumentParser

from . import load_recipe


NONE = "none"


class UsageError(ValueError):
    """Settings that cannot be parsed.

    Attributes:
        usage: how the program is called.
    """

    def __init__(self, message: str, usage: str):
        super().__init__(message)
        self.usage = usage


class SettingsParser(HfArgumentParser):
    """Raises a `UsageError` where argparse would print and exit, as functions parse settings too.

    A setting that is None by default takes the word "none" for that, by which a flag takes back what a recipe sets.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._optional = [action for action in self._actions if action.default is None and action.type is not None]
        self._optional = [action for action in self._optional if NONE not in (action.choices or ())]
        for action in self._optional:
            action.type = _or_none(action.type)
            action.choices = action.choices and [*action.choices, NONE]

    def parse_known_args(self, args=None, namespace=None):
        parsed, unknown = super().parse_known_args(args, namespace)
        for action in self._optional:
            if getattr(parsed, action.dest, None) in (NONE, [NONE]):
                setattr(parsed, action.dest, None)
        return parsed, unknown

    def error(self, message: str):
        raise UsageError(message, self.format_usage())


def _or_none(kind: Callable[[str], object]) -> Callable[[str], object]:
    """A type of an argument that lets the word pass."""

    @functools.wraps(kind)  # whose name errors have
    def parse(text: str):
        return NONE if text == NONE else kind(text)

    return parse


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
    flags = _with_recipe(parser, arguments, also)
    *parsed, unknown = parser.parse_args_into_dataclasses(flags, return_remaining_strings=True)
    _refuse(unknown, parser, also)
    return tuple(parsed)


def given_with_recipe(parser: SettingsParser, arguments: list[str], also: Iterable[str] = ()) -> dict:
    """The same settings by name, before anything is made of them; defaults are what the parser has.

    Raises:
        ValueError: as `parse_with_recipe`.
    """
    given, unknown = parser.parse_known_args(_with_recipe(parser, arguments, also))
    _refuse(unknown, parser, also)
    return vars(given)


def _known(parser: SettingsParser) -> set[str]:
    return {name for kind in parser.dataclass_types for name in kind.__dataclass_fields__}


def _with_recipe(parser: SettingsParser, arguments: list[str], also: Iterable[str]) -> list[str]:
    """The settings of the recipe as flags, and then the arguments."""
    # Before argparse would miss the required one that is misspelt
    flags = {flag for action in parser._actions for flag in action.option_strings}
    _refuse([one for one in arguments if one.startswith("--") and one.partition("=")[0] not in flags], parser, also)
    config = SettingsParser(allow_abbrev=False, add_help=False)
    config.add_argument("--config")
    recipe = config.parse_known_args(arguments)[0].config
    if recipe is None:
        return arguments
    takes_several = {action.dest for action in parser._actions if action.nargs in ("+", "*")}
    known, settings = _known(parser), load_recipe(recipe)
    for name, value in settings.items():
        if name not in known:
            raise ValueError(f"{name} is not a known setting (in {recipe}){_hint(name, known)}")
        if isinstance(value, list) and name not in takes_several:
            raise ValueError(f"{name} in {recipe} must be one value, got {value}")
    return flags_of(settings) + arguments


def _refuse(unknown: list[str], parser: SettingsParser, also: Iterable[str]):
    if unknown:
        hint = _hint(unknown[0].removeprefix("--").partition("=")[0], {*_known(parser), *also}, "--")
        raise ValueError(f"{unknown[0]} is not a known setting, or one value too many for the setting before it{hint}")


def _hint(name: str, known: Iterable[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {prefix}{close[0]}?" if close else ""
