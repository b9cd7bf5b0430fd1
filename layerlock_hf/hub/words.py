"""Numbers, durations and names as model cards print them."""

import json
import re
import shlex
from pathlib import PurePosixPath, PureWindowsPath
from urllib.parse import urlsplit, urlunsplit


SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
# An address is one word, for its user, key and query may hold any of what parts others
WORD = re.compile(r"""((?:--)?[\w-]+=)?(\w+://[^\s"]+|[^\s'",;()]+)""")
MINUTE_S, HOUR_S = 60, 3600


def in_powers(number: float, digits: int = 3) -> str:
    """A large number in a few digits.

    >>> in_powers(1.2e15)
    '1.20 × 10¹⁵'
    """
    mantissa, exponent = f"{number:.{digits - 1}e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(SUPERSCRIPTS)}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best.

    >>> duration(312.4)
    '5.2 minutes'
    """
    if seconds < 2 * MINUTE_S:
        return f"{seconds:.0f} seconds"
    if seconds < 2 * HOUR_S:
        return f"{seconds / MINUTE_S:.1f} minutes"
    return f"{seconds / HOUR_S:,.1f} hours"


def listed(words: list[str]) -> str:
    """Words as a sentence lists them: "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def counted(number: int, thing: str) -> str:
    """How many of a thing there are.

    >>> counted(1, "process"), counted(1500, "video")
    ('1 process', '1,500 videos')
    """
    ending = "" if number == 1 else "es" if thing.endswith("s") else "s"
    return f"{number:,} {thing}{ending}"


def public_name(name: str) -> str:
    """A path or address as others may see it: no folders of somebody's machine, no user and no key in an address.

    >>> public_name("/home/ann/videos"), public_name("runs/mine"), public_name("https://ann:secret@a.org/b.csv?key=1")
    ('videos', 'runs/mine', 'https://a.org/b.csv')
    """
    if name.startswith("file:"):
        return PurePosixPath(name).name
    if "://" in name:
        scheme, place, path, _, _ = urlsplit(name)
        return urlunsplit((scheme, place.rpartition("@")[2], path, "", ""))
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(name).is_absolute() or name.startswith("~"):
            return kind(name).name
    return name


def public_text(text: str) -> str:
    """A text with `public_name`s in the place of paths and addresses.

    >>> public_text("motions, tested on /home/ann/test.csv"), public_text("--data=/home/ann/a.csv")
    ('motions, tested on test.csv', '--data=a.csv')
    """

    def word(match: re.Match) -> str:
        return f"{match[1] or ''}{public_name(match[2])}"

    return WORD.sub(word, text)


def public_command(command: str) -> str:
    """A command line with `public_name`s in the place of paths and addresses."""
    return shlex.join(map(public_text, shlex.split(command)))


def keywords(arguments: dict[str, object]) -> str:
    """Code that passes arguments; those that are None are left out.

    >>> keywords({"normalize": True, "loss": None, "mask": "tube"})
    'normalize=True, mask="tube"'
    """
    given = {
        name: json.dumps(value) if isinstance(value, str | list) else repr(value)
        for name, value in arguments.items()
        if value is not None
    }
    return ", ".join(f"{name}={value}" for name, value in given.items())


def cell(text: str) -> str:
    """Text in a cell of a table, whatever its letters mean in Markdown and HTML."""
    text = " ".join(text.split())
    for letter in "\\`*_[]|<>":
        text = text.replace(letter, f"\\{letter}")
    return text
