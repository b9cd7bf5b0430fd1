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


def slurm_share() -> tuple[int, int]:
    """Rank and world size of this process among the tasks of a SLURM array, and those that srun starts in each of
    them: 0 and 1 outside of SLURM."""
    environment = os.environ
    rank, world_size = 0, 1
    if "SLURM_ARRAY_TASK_ID" in environment:
        rank = int(environment["SLURM_ARRAY_TASK_ID"]) - int(environment.get("SLURM_ARRAY_TASK_MIN", 0))
        world_size = int(environment["SLURM_ARRAY_TASK_COUNT"])
    # Of srun alone: sbatch sets SLURM_NTASKS and SLURM_PROCID for its script, too, which is one process
    num_tasks = int(environment.get("SLURM_STEP_NUM_TASKS", 1))
    if num_tasks > 1:
        rank, world_size = rank * num_tasks + int(environment["SLURM_PROCID"]), world_size * num_tasks
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
    parser: HfArgumentParser, arguments: list[str], share: tuple[int, int], task: str, source: str
) -> tuple[object, argparse.Namespace]:
    """The settings of a program, and its other arguments with `rank` and `world_size`.

    Args:
        parser: of `parser_of`, with the program's own arguments.
        share: rank and world size where none are given.
        task: what is done with a share, for the help.
        source: whose rank that is, for the help.

    Raises:
        ValueError: naming the setting that is not known.
    """
    rank, world_size = share
    parser.add_argument(
        "--rank", type=programs.whole(0), default=rank, help=f"Which share to {task} (default: that of {source})."
    )
    parser.add_argument(
        "--world_size", type=programs.whole(1), default=world_size, help="Number of shares (default: as for --rank)."
    )
    settings, where, unknown = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    if unknown:
        raise ValueError(f"{unknown[0]} is not a known setting: --help lists them all")
    return settings, where
