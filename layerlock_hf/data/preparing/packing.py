"""The list of videos that one rank prepares, and the shards, manifest and report that become of them."""

import hashlib
import json
import os
import tempfile
from collections import Counter
from dataclasses import asdict, fields
from functools import cached_property
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets.utils.py_utils import convert_file_size_to_int

from ...utils.files import put_in_place
from ...utils.records import json_text
from ..files import is_url
from ..manifests import manifest_name
from ..sources import LABEL_COLUMN, load_videos
from ..transforms import generator_for
from .examining import LEFT_OUT, PrepareArguments, stamp
from .journal import Journal
from .probing import VideoFacts
from .shards import SHARDS


OUTPUTS = ("data", "report.md", "report.png")  # beside the files of ranks
COLUMN_TYPES = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}


class Job:
    """What one rank has to do, and where its files are."""

    def __init__(self, source: str, output: Path, arguments: PrepareArguments, rank: int, world_size: int):
        self.output, self.arguments = output, arguments
        self.rank, self.world_size = rank, world_size
        if not source.strip():
            raise ValueError("source must be a folder of videos, or a list of them, got an empty name")
        if is_url(source):
            raise ValueError(f"{source!r} is a URL, but only local files can be prepared: download them first")
        self.root = Path(source).expanduser().absolute()
        if not self.root.exists():
            raise ValueError(f"{source!r} does not exist: give a folder of videos, or a list of them")
        if self.root.is_dir() and output.absolute().is_relative_to(self.root):
            raise ValueError(
                f"{str(output)!r} lies within {source!r}, so what is written there would be taken for videos: choose "
                "another folder"
            )
        claim(output)  # before the videos are listed, which may take long
        videos = load_videos(str(self.root))
        self.label = videos.features.get(LABEL_COLUMN)
        self.labels = list(videos[LABEL_COLUMN]) if self.label is not None else None
        self.paths = [video["path"] if video["bytes"] is None else None for video in videos["video"]]
        in_shards = any(videos.data.column(name).null_count < len(videos) for name in ("offset", "row"))
        if in_shards or None in self.paths:
            raise ValueError(
                f"{source!r} holds videos packed into other files: only videos in files of their own can be prepared"
            )
        remote = next(filter(is_url, self.paths), None)
        if remote is not None:
            raise ValueError(f"{source!r} names {remote!r}, but only local files can be prepared: download them first")
        folder = self.root if self.root.is_dir() else self.root.parent
        self.names = [os.path.relpath(path, folder) for path in self.paths]
        (name, count), *_ = Counter(self.names).most_common(1)
        if count > 1:
            raise ValueError(f"{source!r} names {name!r} twice: name every file once")
        order = torch.randperm(len(self.names), generator=generator_for("prepare", arguments.seed)).tolist()
        self.order = order[rank::world_size]
        self.work = output / f"work-{self.tag}"
        self.manifest = output / manifest_name(rank, world_size)
        self.report = output / f"report-{self.tag}.jsonl"
        self.journal = output / f"journal-{self.tag}.jsonl"

    @property
    def tag(self) -> str:
        """Rank and world size, in names of files."""
        return f"{self.rank:05d}-of-{self.world_size:05d}"

    @cached_property
    def identity(self) -> dict:
        """What makes the result of all ranks the same."""
        videos = json.dumps([self.names, self.labels], default=str)
        return {
            **asdict(self.arguments),
            "world_size": self.world_size,
            "num_videos": len(self.names),
            "list of videos": hashlib.sha256(videos.encode()).hexdigest()[:16],
        }

    @property
    def schema(self) -> pa.Schema:
        """Of the manifest."""
        columns = {"path": pa.string(), "name": pa.string(), "size": pa.int64(), "status": pa.string()}
        columns |= SHARDS[self.arguments.shard_format].location
        if self.label is not None:
            columns |= {field.name: field.type for field in datasets.Features({LABEL_COLUMN: self.label}).arrow_schema}
        columns |= {fact.name: COLUMN_TYPES[fact.type] for fact in fields(VideoFacts)}
        return pa.schema(columns, metadata={"layerlock_hf": json.dumps(self.identity)})

    def transcoded(self, index: int) -> Path:
        """Where a re-encoded video waits for its turn."""
        return self.work / f"{index:09d}.mp4"


def claim(output: Path):
    """Make the folder that is written.

    Raises:
        ValueError: if it is somebody else's: what it holds would be overwritten, or be taken for what is written.
        OSError: if it cannot be written.
    """
    is_ours = any(output.glob("manifest-*-of-*")) or any(output.glob("journal-*-of-*"))
    strange = [] if is_ours else [name for name in ("config.json", *OUTPUTS) if (output / name).exists()]
    if strange:
        raise ValueError(f"{output} holds a {strange[0]!r} from something else: choose a new folder")
    output.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=output).close()


class Packing:
    """Puts the videos of a job into shards, in its order, as far as they have been looked at."""

    def __init__(self, job: Job, journal: Journal):
        self.job, self.journal = job, journal
        self.max_size = convert_file_size_to_int(job.arguments.shard_size)
        self.position = journal.shards[-1]["end"] if journal.shards else 0
        self.shard, self.rows = None, []

    def advance(self):
        """Pack every video whose turn it is."""
        while self.position < len(self.job.order) and self.job.order[self.position] in self.journal.videos:
            index = self.job.order[self.position]
            if is_packed(self.journal.videos[index], self.job.arguments):
                self._pack(index)
            self.position += 1

    def finish(self):
        """Finish the shard that is under way."""
        if self.shard is None:
            return
        self.shard.close()
        number = len(self.journal.shards)
        data = self.job.output / "data"
        data.mkdir(exist_ok=True)
        put_in_place(self.job.work / self._file_name(number), data / self._file_name(number))
        self.journal.add_shard(self.position, self.rows)
        for row in self.rows:
            self.job.transcoded(row["index"]).unlink(missing_ok=True)
        self.shard, self.rows = None, []

    def abandon(self):
        """Let go of the shard that is under way; it is begun anew the next time."""
        if self.shard is not None:
            self.shard.abandon()

    def _pack(self, index: int):
        job, video = self.job, self.journal.videos[index]
        if stamp(job.paths[index]) != video["stamp"]:
            raise ValueError(
                f"{job.names[index]!r} changed while it was being read: stop whatever writes to it, and start again"
            )
        if video["prepared"] is None:
            path, size, facts = job.paths[index], video["stamp"][0], video["facts"]
        else:
            path, size, facts = job.transcoded(index), video["prepared"]["size"], video["prepared"]["facts"]
        if self.shard is not None and self.shard.size + size > self.max_size:
            self.finish()
        file_name = self._file_name(len(self.journal.shards))
        if self.shard is None:
            self.shard = SHARDS[job.arguments.shard_format](job.work / file_name, job.label)
        name, label = job.names[index], job.labels[index] if job.labels is not None else None
        location = self.shard.add(f"{index:09d}", name, label, path, size)
        row = {"index": index, "path": f"data/{file_name}", "name": name, "size": size, "status": video["status"]}
        self.rows.append(row | location | (facts or {}) | ({LABEL_COLUMN: label} if job.label is not None else {}))

    def _file_name(self, number: int) -> str:
        return f"train-{self.job.rank:05d}-{number:05d}{SHARDS[self.job.arguments.shard_format].suffix}"


def is_packed(video: dict, arguments: PrepareArguments) -> bool:
    """Whether a video goes into the shards; what does not exist or is empty never does."""
    return bool(video["stamp"] and video["stamp"][0]) and video["status"] not in LEFT_OUT[arguments.bad]


def write_report(job: Job, journal: Journal):
    """What became of each video, in the order of the job."""
    part = job.work / "report.jsonl"
    with open(part, "w", encoding="utf-8") as file:
        for index in job.order:
            video = journal.videos[index]
            line = {
                "name": job.names[index],
                "size": video["stamp"][0] if video["stamp"] else None,
                "is_packed": is_packed(video, job.arguments),
                **{key: value for key, value in video.items() if key != "stamp"},
            }
            file.write(json_text(line) + "\n")
    put_in_place(part, job.report)


def write_manifest(job: Job, journal: Journal):
    """The last file of all: its presence says that this rank is complete."""
    rows = [row for shard in journal.shards for row in shard["rows"]]
    part = job.work / "manifest.parquet"
    with open(part, "wb") as file:
        pq.write_table(pa.Table.from_pylist(rows, schema=job.schema), file)
    put_in_place(part, job.manifest)
