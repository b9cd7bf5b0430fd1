"""From a tree of videos to shards: every file is probed, bad ones reported, the rest re-encoded if asked, and packed.

A rank takes its slice of the shuffled list and writes its own files, without talking to the others. Whenever it
is killed, the same call continues the work and ends with the same bytes.
"""

import contextlib
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
from tqdm import tqdm

from ..decoding_torchcodec import torchcodec_decoder
from ..manifests import manifest_name
from .examining import Examiner, PrepareArguments, stamp
from .journal import Journal, check_identity
from .mapping import map_in_processes
from .packing import Job, Packing, write_manifest, write_report


def prepare(
    source: str,
    output: str | Path,
    arguments: PrepareArguments | None = None,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 1,
) -> bool:
    """Prepare this rank's share of the videos: shards in `output/data`, a manifest and a report.

    Args:
        source: a folder of videos, or a list of them as `load_videos` reads.
        output: the folder to write to; work that is already done there is not repeated.
        arguments: how the videos are prepared.
        rank: which share is done, from 0 on.
        world_size: number of shares.
        num_workers: number of processes that decode.

    Returns:
        Whether there was anything to do.

    Raises:
        ValueError: if the settings or files do not fit what is in `output`. If that is a share from which no video
            was packed, it is redone instead.
        OSError: for instance if the disk is full; finished work is kept.
    """
    arguments = arguments or PrepareArguments()
    if world_size < 1:
        raise ValueError(f"world_size must be at least 1, got {world_size}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be at least 0 and less than world_size={world_size}, got {rank}")
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}")
    output = Path(output).expanduser()
    _check_world_size(output, world_size)
    job = Job(source, output, arguments, rank, world_size)
    _check_manifests(job)
    is_new = not job.manifest.exists()
    if is_new:
        job.work.mkdir(exist_ok=True)
        _run(job, num_workers)
    # Also what was left when this rank was killed after its last file was written
    job.journal.unlink(missing_ok=True)
    shutil.rmtree(job.work, ignore_errors=True)
    return is_new


def missing_ranks(output: str | Path, world_size: int) -> list[int]:
    """The ranks that are not complete yet."""
    return [rank for rank in range(world_size) if not (Path(output) / manifest_name(rank, world_size)).exists()]


def read_report(output: str | Path) -> list[dict]:
    """What became of every video: name, status, kind and reason of a failure, facts, and whether it is packed."""
    return [line for path in sorted(Path(output).glob("report-*.jsonl")) for line in _read_lines(path)]


def _read_lines(report: Path) -> list[dict]:
    with open(report, encoding="utf-8") as file:
        return list(map(json.loads, file))


def _check_world_size(output: Path, world_size: int):
    for path in sorted([*output.glob("manifest-*-of-*"), *output.glob("journal-*-of-*")]):
        if f"-of-{world_size:05d}." not in path.name:
            raise ValueError(f"{path} was written with a world_size other than {world_size}: choose another folder")


def _check_manifests(job: Job):
    """Refuse what this rank, or another that is complete, made of other videos or by other settings: all do the same.

    Where none was packed, there is nothing to lose or to mix: this rank's manifest goes, and it does its share anew.
    """
    packed = (path for path in job.output.glob("manifest-*") if pq.read_metadata(path).num_rows)
    for manifest in {job.manifest, next(packed, job.manifest)}:
        if not manifest.exists():
            continue
        try:
            _check_manifest(job, manifest)
        except ValueError:
            if pq.read_metadata(manifest).num_rows:
                raise
            manifest.unlink()


def _check_manifest(job: Job, manifest: Path):
    found = json.loads(pq.read_schema(manifest).metadata[b"layerlock_hf"])
    check_identity(str(manifest), found, job.identity)
    # Another folder may hold the same names, such as 000000.mp4, but hardly files of the same sizes, which all reports
    # have. Its path does not tell, as folders are moved and mounted elsewhere, nor do times, which copies do not keep
    paths = dict(zip(job.names, job.paths, strict=True))
    for line in _read_lines(manifest.with_name(manifest.name.replace("manifest", "report")).with_suffix(".jsonl")):
        size = (stamp(paths[line["name"]]) or [None])[0]
        if size != line["size"]:
            raise ValueError(
                f"{manifest} was made from other videos, as {line['name']!r} had {line['size']} bytes and now has "
                f"{size}: choose another folder, or remove this one"
            )


def _run(job: Job, num_workers: int):
    with contextlib.ExitStack() as stack:
        journal = stack.enter_context(contextlib.closing(Journal(job.journal, job.identity)))
        _check_sources(job, journal)
        packing = Packing(job, journal)
        stack.callback(packing.abandon)
        packing.advance()
        left = [index for index in job.order if index not in journal.videos]
        torchcodec_decoder()  # loads it before the processes are forked
        tasks = ((index, job.paths[index], str(job.transcoded(index))) for index in left)
        results = map_in_processes(Examiner(job.arguments), tasks, num_workers)
        stack.enter_context(contextlib.closing(results))
        counts: dict[str, int] = {}
        with tqdm(total=len(job.order), initial=len(job.order) - len(left), unit="video", disable=None) as bar:
            for index, video in results:
                journal.add_video(index, video)
                packing.advance()
                counts[video["status"]] = counts.get(video["status"], 0) + 1
                bar.set_postfix(counts, refresh=False)
                bar.update()
        packing.finish()
        _check_manifests(job)  # others may have begun at the same time
        write_report(job, journal)
        write_manifest(job, journal)


def _check_sources(job: Job, journal: Journal):
    """Refuse sources that are not what was looked at before; forget re-encoded files that are gone."""
    done = journal.shards[-1]["end"] if journal.shards else 0
    for position, index in enumerate(job.order):
        if index not in journal.videos:
            continue
        video = journal.videos[index]
        if stamp(job.paths[index]) != video["stamp"]:
            raise ValueError(
                f"{job.names[index]!r} has changed since it was examined: remove {job.output} to start again"
            )
        prepared, work = video["prepared"], stamp(job.transcoded(index))
        if position >= done and prepared is not None and (work is None or work[0] != prepared["size"]):
            del journal.videos[index]
