"""Programs that many processes share without talking to each other: each does its rank's share of the videos."""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from transformers import HfArgumentParser

from ..data.preparing.examining import DISK_FULL
from . import programs


GO_ON = "run the same command to go on"


def launch_number(name: str, least: int = 0, default: str = "", instead: str = "--rank and --world_size") -> int:
    """A whole number that a launcher tells in the environment.

    Args:
        name: of the variable.
        least: that it may be.
        default: where it is not set; none if empty.
        instead: the flags that make it needless.

    Raises:
        ValueError: naming the variable, if it is no such number.
    """
    try:
        return programs.whole(least)(os.environ.get(name) or default)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{name} {error}: set it as the launcher does, or give {instead}") from None


def slurm_share() -> tuple[int, int]:
    """Rank and world size of this process among the tasks of a SLURM array, and those that srun starts in each of
    them: 0 and 1 outside of SLURM.

    Raises:
        ValueError: if the tasks of the array are not evenly spaced, or a variable is missing or no number.
    """
    rank, world_size = 0, 1
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        task, first, last = (launch_number(f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "MIN", "MAX"))
        step = launch_number("SLURM_ARRAY_TASK_STEP", 1, "1")
        rank, world_size = (task - first) // step, launch_number("SLURM_ARRAY_TASK_COUNT", 1)
        if (last - first) // step + 1 != world_size:
            raise ValueError(
                f"the tasks of a SLURM array must be evenly spaced, got {world_size} between {first} and {last}: give "
                "--rank and --world_size"
            )
    # Of srun alone: sbatch sets SLURM_NTASKS and SLURM_PROCID for its script, too, which is one process
    num_tasks = launch_number("SLURM_STEP_NUM_TASKS", 1, "1")
    if num_tasks > 1:
        rank, world_size = rank * num_tasks + launch_number("SLURM_PROCID"), world_size * num_tasks
    return rank, world_size


class Stopped(SystemExit):
    """What Ctrl-C and SIGTERM raise in a program that can go on later; its code is the exit status."""


@contextlib.contextmanager
def goes_on_later(out: Path, progress: Callable[[], str] | None = None) -> Iterator[None]:
    """End a program whose work is kept with one line where it is stopped, or the disk is full.

    Args:
        out: the folder that it writes to.
        progress: says what is there.
    """

    def stop(number: int, _):
        raise Stopped(128 + number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    # What is ignored stays so, as Ctrl-C is by what scripts start in the background
    before = {number: signal.signal(number, stop) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield
    except Stopped:
        print(f"stopped: {f'{progress()}; ' if progress else ''}{GO_ON}", file=sys.stderr)
        raise
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise SystemExit(f"error: {error.strerror or error}: {out}: free some space, and {GO_ON}") from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def parser_of(settings: type, description: str) -> HfArgumentParser:
    """The parser of a program with these settings; its description is told as it stands."""
    return HfArgumentParser(
        settings, description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def parse_share(
    parser: HfArgumentParser,
    arguments: list[str],
    launched: Callable[[], tuple[int, int]],
    task: str,
    source: str,
) -> tuple[object, argparse.Namespace]:
    """The settings of a program, and its other arguments with `rank` and `world_size`.

    Args:
        parser: of `parser_of`, with the program's own arguments.
        launched: tells rank and world size; not called where both are given.
        task: what is done with a share, for the help.
        source: whose rank that is, for the help.

    Raises:
        ValueError: naming the setting that is not known, or of rank and world size the one that is given alone and is
            not what `launched` tells; and as of `launched`.
    """
    parser.add_argument(
        "--rank", type=programs.whole(0), help=f"Which share to {task}, with --world_size (default: that of {source})."
    )
    parser.add_argument(
        "--world_size", type=programs.whole(1), help="Number of shares, with --rank (default: as for --rank)."
    )
    settings, where, unknown = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    if unknown:
        raise ValueError(f"{unknown[0]} is not a known setting: --help lists them all")
    if where.rank is None or where.world_size is None:
        where.rank, where.world_size = _agreed((where.rank, where.world_size), launched())
    return settings, where


def _agreed(given: tuple[int | None, int | None], share: tuple[int, int]) -> tuple[int, int]:
    """The share that a launch tells, where what is given does not deny it."""
    names = ("rank", "world_size")
    for name, other, value, told in zip(names, reversed(names), given, share, strict=True):
        if value not in (None, told):
            raise ValueError(f"{name} must be {told} where --{other} is not given, got {value}: give both, or neither")
    return share
