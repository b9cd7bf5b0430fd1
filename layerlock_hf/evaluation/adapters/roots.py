"""How a command names a dataset: PATH, or PATH?option=value&option=value."""

import inspect
from collections.abc import Callable
from pathlib import Path


def parse_root(root: str) -> tuple[Path, dict[str, str]]:
    """The path and the options of "PATH?a=b&c=d". What exists under the whole name is a path.

    Raises:
        ValueError: if an option has no value or comes twice.
    """
    path = Path(root).expanduser()
    if "?" not in root or path.exists():
        return path, {}
    name, _, query = root.partition("?")
    options = {}
    for part in query.split("&"):
        option, _, value = part.partition("=")
        if not option or not value or option in options:
            raise ValueError(f"{root!r}: {part!r} must be option=value, with each option given once")
        options[option] = value
    return Path(name).expanduser(), options


def check_options(root: str, reader: Callable, options: dict[str, str]):
    """Raise a `ValueError` for an option that is no keyword of `reader(root, split, *, ...)`."""
    parameters = inspect.signature(reader).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):  # it checks them itself
        return
    known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(f"{root!r}: options must be {', '.join(known) or 'left out'}, got {unknown[0]!r}")


def parse_range(text: str) -> range:
    """The numbers of "FIRST-LAST", both included.

    Raises:
        ValueError: if it is none, or empty.
    """
    first, dash, last = text.partition("-")
    if not dash or not first.isdecimal() or not last.isdecimal() or int(first) > int(last):
        raise ValueError(f"{text!r} is not a range: write FIRST-LAST, counted from 0, such as 0-269")
    return range(int(first), int(last) + 1)
