"""Settings from a recipe, overridden by flags: what all programs with a `--config` share."""

import difflib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from transformers import HfArgumentParser

from ..training import load_recipe


RECIPES = Path(__file__).resolve().parent / "recipes"


def parse_with_recipe(parser: HfArgumentParser, arguments: list[str], also: Iterable[str] = ()) -> tuple:
    """The parser's dataclasses, filled in from the recipe of the flag `--config` and from the other flags.

    Args:
        also: further settings of the program, to suggest where one is misspelt.

    Raises:
        ValueError: naming the setting that the parser does not know, or what is wrong with the recipe.
    """
    config = HfArgumentParser(allow_abbrev=False, add_help=False)
    config.add_argument("--config")
    recipe = config.parse_known_args(arguments)[0].config
    takes_several = {action.dest for action in parser._actions if action.nargs in ("+", "*")}
    known = {name for kind in parser.dataclass_types for name in kind.__dataclass_fields__}
    flags = []
    if recipe is not None:
        for name, value in _load(recipe).items():
            if name not in known:
                raise ValueError(f"{name}: unknown setting in {recipe}{_hint(name, known)}")
            if value is None:
                continue  # not set
            if isinstance(value, list) and name not in takes_several:
                raise ValueError(f"{name} in {recipe} must be one value, got {value}")
            values = value if isinstance(value, list) else [value]
            flags += [f"--{name}", *(json.dumps(v) if isinstance(v, dict) else str(v) for v in values)]
    *parsed, unknown = parser.parse_args_into_dataclasses(flags + arguments, return_remaining_strings=True)
    if unknown:
        hint = _hint(unknown[0].removeprefix("--").partition("=")[0], {*known, *also}, "--")
        raise ValueError(f"{unknown[0]}: unknown setting, or more values than the setting before it takes{hint}")
    return tuple(parsed)


def _load(recipe: str) -> dict:
    if not Path(recipe).is_file():
        recipes = {path.stem: path for path in sorted(RECIPES.rglob("*.yaml"))}
        close = difflib.get_close_matches(Path(recipe).stem, recipes, n=3, cutoff=0.5)
        names = [str(os.path.relpath(recipes[name])) for name in close] or [f"those in {os.path.relpath(RECIPES)}"]
        raise ValueError(f"config: there is no recipe {recipe}; there are {', '.join(names)}")
    return load_recipe(recipe)


def _hint(name: str, known: Iterable[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else ""
