"""Vectors of all windows of all videos of a source, by one frozen encoder."""

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from ..data import BadVideos, check_present, name_of
from ..evaluation.predict import list_all
from ..utils.handing_over import Loader
from ..utils.outputs import check_output
from .arguments import EmbedArguments
from .lanes import Lanes
from .setup import Setup, set_up
from .writing import (
    DATA,
    MAX_SHARD,
    RANKS,
    RankWriter,
    check_settings,
    column_of,
    locked,
    read_record,
    write_manifest,
)


BAD_VIDEOS = "bad_videos"
BAR = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"


def embed(
    videos: str,
    out: str | Path,
    model: str,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    device: str | torch.device = "cpu",
    **settings,
) -> dict:
    """Write vectors of windows of videos, as parquet files, and a manifest; what is there already is not made again.

    Args:
        videos: a video, or whatever `load_videos` reads.
        out: the folder to write to.
        model: folder or Hub id of an encoder, as of `load_encoder`.
        rank: which share of the videos is done, from 0 on.
        world_size: number of shares. They do not communicate.
        num_workers: processes that decode while the encoder runs.
        device: of the encoder.
        settings: of `EmbedArguments`.

    Returns:
        The manifest or, while other ranks are not complete, the record of this one: "counts", "shards" and more.

    Raises:
        ValueError: if the model or the videos cannot be found, a setting is impossible, or `out` holds vectors that
            other settings made.
    """
    arguments = EmbedArguments(**settings)
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be at least 0 and less than world_size={world_size}, got {rank}")
    out = Path(out).expanduser()
    for folder in (out, out / DATA, out / RANKS):
        check_output(folder, (), "OUT")
    with locked(out / RANKS / f".{rank:05d}", f"another process is at work on rank {rank} of {out}: wait for it"):
        listed = list_all(videos)
        check_present(listed, videos)
        setup = set_up(model, arguments, device)
        common = {"batch_size": arguments.batch_size, "videos_at_once": arguments.videos_at_once}
        common |= {"windows_per_shard": arguments.windows_per_shard, "videos": digest_of(listed)}
        about = {
            "settings": setup.settings | common,
            "model": {"name": name_of_model(model), "revision": setup.revision},
            "columns": {column_of(depth): list(setup.encoder.shape) for depth in setup.settings["depths"]},
            "steps": setup.encoder.num_steps,
            "world_size": world_size,
        }
        check_settings(out, world_size, about["settings"])
        share = range(rank, len(listed), world_size)
        lanes = [share[lane :: arguments.videos_at_once] for lane in range(arguments.videos_at_once)]
        writer = RankWriter(out, rank, world_size, about, setup.settings["depths"], len(lanes))
        if not writer.is_complete:
            name = f"{BAD_VIDEOS}-{writer.name}.jsonl" if world_size > 1 else f"{BAD_VIDEOS}.jsonl"
            bad_videos = BadVideos(str(out / name), max(1, len(share)), max_bad_fraction=1)
            _Share(listed, lanes, setup, arguments, writer, bad_videos).run(num_workers)
    return write_manifest(out, world_size) or read_record(out, writer.name)


def name_of_model(model: str) -> str:
    """By which it is found from any folder."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.is_dir() else str(model)


def digest_of(videos) -> str:
    """Of the names and sizes in a list, so that another list is told."""
    digest = hashlib.sha256()
    for index, row in enumerate(videos):
        path = Path(name_of(row, index))
        size = path.stat().st_size if path.is_file() else row.get("size")
        digest.update(json.dumps([str(path), size]).encode())
    return digest.hexdigest()


@dataclass
class _Share:
    """One rank's videos on their way into shards.

    A batch has windows of several videos. Batches and shards end after fixed numbers of windows, whose order is fixed,
    so that every vector is computed beside the same others whenever a run was killed: its last bits depend on it.
    """

    videos: object
    lanes: Sequence[Sequence[int]]
    setup: Setup
    arguments: EmbedArguments
    writer: RankWriter
    bad_videos: BadVideos
    clips: list[torch.Tensor] = field(default_factory=list)  # of the next batch
    batch: list[dict] = field(default_factory=list)  # what is known of them
    rows: list[dict] = field(default_factory=list)  # of the next shard
    num_in_shard: int = 0  # windows

    def __post_init__(self):
        self.counts, self.position = copy.deepcopy((self.writer.counts, self.writer.position))
        encoder, size = self.setup.encoder, self.arguments.batch_size
        window_bytes = encoder.num_steps * len(encoder.depths) * encoder.vector_size * 4
        most = min(self.arguments.windows_per_shard, MAX_SHARD // window_bytes)
        self.windows_per_shard = max(1, most // size) * size

    def run(self, num_workers: int):
        plan, transform, num_steps = self.setup.plan, self.setup.transform, self.setup.encoder.num_steps
        rate, timeout = self.arguments.frame_rate, self.arguments.decode_timeout
        lanes = Lanes(self.videos, self.lanes, self.writer.position, plan, num_steps, transform, rate, timeout)
        num_videos = sum(map(len, self.lanes))
        workers = min(num_workers, num_videos, len(self.lanes))
        progress = [0.0] * len(self.lanes)  # of the video of each that is being read
        done = self.counts["videos"]
        with tqdm(total=num_videos, initial=done, bar_format=BAR, miniters=0, disable=None) as bar:
            for item in Loader(lanes, _same, batch_size=None, num_workers=workers):
                if item is None:
                    continue
                progress[item["lane"]] = item.get("progress", 0.0)
                self._take(item)
                bar.n = self.counts["videos"] + sum(progress)
                bad = self.counts["unreadable"] + self.counts["partial"]
                bar.set_postfix(windows=self.counts["windows"], bad=bad, refresh=False)
                bar.update(0)
        self._encode()
        self.writer.write(self.rows, *copy.deepcopy((self.counts, self.position)), is_last=True)

    def _take(self, item: dict):
        self.position["turn"] = (item["lane"] + 1) % len(self.lanes)
        start = self.position["lanes"][item["lane"]]
        index = self.lanes[item["lane"]][start[0]]
        if "clip" not in item:
            self._report(name_of(self.videos[index], index), item)
            start[:] = start[0] + 1, 0
            return
        start[1] += 1
        self.clips.append(item["clip"])
        self.batch.append({"index": index, "window": item["number"], "spans": item["spans"]})
        self.counts["windows"] += 1
        self.num_in_shard += 1
        if len(self.clips) == self.arguments.batch_size:
            self._encode()
        if self.num_in_shard == self.windows_per_shard:
            self.writer.write(self.rows, *copy.deepcopy((self.counts, self.position)))
            self.rows, self.num_in_shard = [], 0

    def _report(self, name: str, end: dict):
        self.counts["videos"] += 1
        if end["error"] is None and end["note"] is None:
            return
        is_used = end["num_windows"] > 0
        self.counts["partial" if is_used else "unreadable"] += 1
        self.bad_videos.add(name, end["error"] or end["note"], is_used, end["kind"] or "damaged")

    def _encode(self):
        if not self.clips:
            return
        depths = self.setup.encoder(torch.stack(self.clips))
        names = [column_of(depth) for depth in self.setup.encoder.depths]
        for number, window in enumerate(self.batch):
            about = {"index": window["index"], "window": window["window"]}
            about["video"] = name_of(self.videos[window["index"]], window["index"])
            for step, span in enumerate(window["spans"]):
                vectors = {name: values[number, step] for name, values in zip(names, depths, strict=True)}
                self.rows.append({**about, "step": step, **span, **vectors})
        self.counts["rows"] += len(self.batch) * self.setup.encoder.num_steps
        self.clips, self.batch = [], []


def _same(item):
    """Nothing is put together: an item is a window."""
    return item
