"""How programs end. Each imports this first, because other imports take most of the start-up time, and Ctrl-C must be
answered then, too.
"""

import argparse
import contextlib
import difflib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path


class PatientOutput:
    """Standard output whose reader may go, such as `head` or a lost terminal: what nobody reads ends no program.

    Args:
        stream: what is written to.
    """

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._while_it_is_read():
            self._stream.write(text)
        return len(text)

    def flush(self):
        with self._while_it_is_read():
            self._stream.flush()

    @contextlib.contextmanager
    def _while_it_is_read(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


class Parser(argparse.ArgumentParser):
    """Says which flag one that is misspelt is like."""

    def error(self, message: str):
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            flags = [flag for action in self._actions for flag in action.option_strings]
            close = difflib.get_close_matches(unknown.split()[0].partition("=")[0], flags, n=1)
            message += f": did you mean {close[0]}?" if close else ""
        super().error(message)


def folder(text: str) -> Path:
    """An argument that names a folder or a file; not "", of a variable that is unset, which is the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"must be a path, got {text!r}: is a shell variable unset?")
    return Path(text).expanduser()


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """The type of an argument that is a whole number within these bounds."""
    bounds = f"of at least {least}" if most is None else f"between {least} and {most}"

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < least or most is not None and value > most:
            raise argparse.ArgumentTypeError(f"must be a whole number {bounds}, got {text!r}")
        return value

    return number


@contextlib.contextmanager
def errors_told(prefix: str = "") -> Iterator[None]:
    """End the program with one line for errors that the user can fix.

    Args:
        prefix: what the line begins with, such as the setting that it is about.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        told = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.filename else str(error)
        raise SystemExit(f"error: {prefix}{' '.join(told.split())}") from None


def _tell(kind: type[BaseException], error: BaseException, traceback):
    """Ctrl-C needs no traceback: the interpreter goes on to end by SIGINT, which shells call 130."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = _tell
if sys.stdout is not None:
    sys.stdout = PatientOutput(sys.stdout)
