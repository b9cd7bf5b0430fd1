"""Check every file in a tree of videos, and pack the good ones into shards.

layerlock prepare VIDEOS OUT --short_side 320 --gop 16

VIDEOS is a folder, or a list as `layerlock pretrain` reads (.csv, .json, .jsonl). OUT receives shards in `data/`, one
manifest per rank with the place and the facts of every packed video, one report per rank with the fate of every file,
and at the end `report.md` and `report.png`. The same command resumes a run that was killed.

Several machines: give each its --rank of --world_size and the same OUT, which they share. They do not talk to each
other. In a SLURM array (`sbatch --array=0-31`) both are taken from SLURM_ARRAY_TASK_ID, _MIN and _COUNT.

Exits with status 1 if no video at all could be packed; OUT can then be used again with other settings or VIDEOS.
"""

import argparse
import concurrent.futures.process
import os
import signal
import sys

from transformers import HfArgumentParser

from ..data.preparing import PrepareArguments, missing_ranks, prepare, read_report
from ..data.preparing.examining import DISK_FULL
from ..data.preparing.report import reason_rows, write_report
from ..utils.cores import count_cores
from . import programs


def slurm_array() -> tuple[int, int]:
    """Rank and world size of this task of a SLURM array, 0 and 1 outside of one."""
    if "SLURM_ARRAY_TASK_ID" not in os.environ:
        return 0, 1
    first = int(os.environ.get("SLURM_ARRAY_TASK_MIN", 0))
    return int(os.environ["SLURM_ARRAY_TASK_ID"]) - first, int(os.environ["SLURM_ARRAY_TASK_COUNT"])


def parse(arguments: list[str]) -> tuple[PrepareArguments, argparse.Namespace]:
    rank, world_size = slurm_array()
    parser = HfArgumentParser(
        PrepareArguments, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("source", metavar="VIDEOS", help="Folder or list of videos.")
    parser.add_argument("output", metavar="OUT", type=programs.folder, help="Folder to write, outside of VIDEOS.")
    parser.add_argument(
        "--num_workers",
        type=programs.whole(1),
        default=count_cores(),
        help="Processes; by default the cores available.",
    )
    parser.add_argument(
        "--rank", type=programs.whole(0), default=rank, help="Which share to do; by default that of a SLURM array."
    )
    parser.add_argument(
        "--world_size", type=programs.whole(1), default=world_size, help="Number of shares; by default as --rank."
    )
    settings, where, unknown = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    if unknown:
        raise ValueError(f"{unknown[0]}: unknown setting; --help lists them")
    return settings, where


def run(settings: PrepareArguments, where: argparse.Namespace):
    """Do this rank's share, and report on all if it is the last.

    Raises:
        ValueError: if no video at all is packed, and as of `prepare`.
        OSError: as of `prepare`.
    """
    is_new = prepare(where.source, where.output, settings, where.rank, where.world_size, where.num_workers)
    rank = f"rank {where.rank} of {where.world_size}"
    print(f"{rank} is complete" if is_new else f"{rank} was complete already: nothing is done")
    missing = missing_ranks(where.output, where.world_size)
    if missing:
        print(
            f"without a report yet: {len(missing)} of {where.world_size} ranks are missing, among them {missing[:8]}"
        )
        return
    videos = read_report(where.output)
    print(write_report(videos, where.output))
    if not any(video["is_packed"] for video in videos):
        kind, number, example = reason_rows(videos)[0]
        raise ValueError(
            f"no video is packed: {number} of {len(videos)} are left out as {kind!r}, such as {example}; change "
            "VIDEOS or the settings, and give the same OUT"
        )


def main(arguments: list[str]):
    try:
        settings, where = parse(arguments)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        run(settings, where)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except concurrent.futures.process.BrokenProcessPool as error:
        raise SystemExit(
            "error: a process was killed, perhaps for want of memory; the same command goes on"
        ) from error
    except OSError as error:
        reason = error.strerror or error
        if error.errno in DISK_FULL:
            raise SystemExit(f"error: {reason}: {where.output}; make room, and the same command goes on") from error
        raise SystemExit(
            f"error: {reason}: {error.filename or where.output}; VIDEOS must be readable and OUT a folder to write in"
        ) from error


if __name__ == "__main__":
    main(sys.argv[1:])
