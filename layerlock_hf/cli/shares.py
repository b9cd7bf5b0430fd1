"""Programs that many processes share without talking to each other: each does its rank's share of the videos."""

import argparse
import os

from transformers import HfArgumentParser

from . import programs


def slurm_array() -> tuple[int, int]:
    """Rank and world size of this task of a SLURM array: 0 and 1 outside one."""
    if "SLURM_ARRAY_TASK_ID" not in os.environ:
        return 0, 1
    first = int(os.environ.get("SLURM_ARRAY_TASK_MIN", 0))
    return int(os.environ["SLURM_ARRAY_TASK_ID"]) - first, int(os.environ["SLURM_ARRAY_TASK_COUNT"])


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
