"""Settings from a recipe, overridden by flags: what all programs with a `--config` share."""

import json

from transformers import HfArgumentParser

from layerlock_hf.training import load_recipe


def parse_with_recipe(parser: HfArgumentParser, arguments: list[str]) -> tuple:
    """The parser's dataclasses, filled in from the recipe of the flag `--config` and from the other flags.

    Raises:
        ValueError: naming the setting that the parser does not know, or what is wrong with the recipe.
    """
    config = HfArgumentParser(allow_abbrev=False, add_help=False)
    config.add_argument("--config")
    recipe = config.parse_known_args(arguments)[0].config
    flags = []
    if recipe is not None:
        known = {name for kind in parser.dataclass_types for name in kind.__dataclass_fields__}
        for name, value in load_recipe(recipe).items():
            if name not in known:
                raise ValueError(f"{name}: unknown setting in {recipe}")
            if value is None:
                continue  # not set
            values = value if isinstance(value, list) else [value]
            flags += [f"--{name}", *(json.dumps(v) if isinstance(v, dict) else str(v) for v in values)]
    *parsed, unknown = parser.parse_args_into_dataclasses(flags + arguments, return_remaining_strings=True)
    if unknown:
        raise ValueError(f"{unknown[0]}: unknown setting, or more values than the setting before it takes")
    return tuple(parsed)
