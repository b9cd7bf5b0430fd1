"""Check every file in a tree of videos, and pack the good ones into shards.

layerlock prepare VIDEOS OUT --short_side 320 --gop 16

VIDEOS is a folder, or a list as `layerlock pretrain` reads (.csv, .json, .jsonl). OUT receives shards in `data/`, one
manifest per rank with the place and the facts of every packed video, one report per rank with the fate of every file,
and at the end `report.md` and `report.png`. If it is killed, the same command continues where it stopped.

On several machines, give each its own --rank out of --world_size and the same OUT, which they share. They do not
communicate. SLURM sets both: the tasks of an array (`sbatch --array=0-31`) and those of `srun` count.

Exits with status 1 if no video at all is packed; other settings or VIDEOS may then be tried with the same OUT.
"""

import argparse
import concurrent.futures.process
import sys

from ..data.preparing import PrepareArguments, missing_ranks, prepare, read_report
from ..data.preparing.report import reason_rows, write_report
from ..utils.cores import count_cores
from . import programs
from .shares import GO_ON, goes_on_later, parse_share, parser_of, slurm_share


def parse(arguments: list[str]) -> tuple[PrepareArguments, argparse.Namespace]:
    parser = parser_of(PrepareArguments, __doc__)
    parser.add_argument("source", metavar="VIDEOS", help="Folder or list of videos.")
    parser.add_argument("output", metavar="OUT", type=programs.folder, help="Folder to write to, outside VIDEOS.")
    parser.add_argument(
        "--num_workers",
        type=programs.whole(1),
        default=count_cores(),
        help="Number of processes (default: one per available core).",
    )
    return parse_share(parser, arguments, slurm_share, "prepare", "SLURM")


def run(settings: PrepareArguments, where: argparse.Namespace):
    """Prepare this rank's share, and report on all of them if it is the last.

    Raises:
        ValueError: if no video at all is packed, and as of `prepare`.
        OSError: as of `prepare`.
    """
    is_new = prepare(where.source, where.output, settings, where.rank, where.world_size, where.num_workers)
    rank = f"rank {where.rank} of {where.world_size}"
    print(f"{rank} is complete" if is_new else f"{rank} was already complete: nothing to do")
    missing = missing_ranks(where.output, where.world_size)
    if missing:
        print(f"no report yet: {len(missing)} of {where.world_size} ranks are missing, among them {missing[:8]}")
        return
    videos = read_report(where.output)
    print(write_report(videos, where.output))
    if not any(video["is_packed"] for video in videos):
        kind, number, example = reason_rows(videos)[0]
        raise ValueError(
            f"no video was packed, as {number} of {len(videos)} were left out as {kind!r}, such as {example}: change "
            "VIDEOS or the settings, and run it again with the same OUT"
        )


def main(arguments: list[str]):
    try:
        settings, where = parse(arguments)
        with goes_on_later(where.output):
            run(settings, where)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    except concurrent.futures.process.BrokenProcessPool as error:
        raise SystemExit(f"error: a process was killed, perhaps because memory ran out: {GO_ON}") from error
    except OSError as error:
        reason = error.strerror or error
        raise SystemExit(
            f"error: {reason}: {error.filename or where.output}: VIDEOS must be readable, and OUT writable"
        ) from error


if __name__ == "__main__":
    main(sys.argv[1:])
