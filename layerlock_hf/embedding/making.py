"""From videos to the rows of shards, by one frozen encoder."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from ..data import BadVideos, name_of
from ..utils.handing_over import Loader
from .arguments import EmbedArguments
from .lanes import Lanes
from .setup import Setup
from .shards import column_of


BAR = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
MAX_SHARD = 256 * 2**20  # bytes, which lie in memory until they are written


@dataclass
class ShardMaker:
    """One rank's videos on their way into shards.

    A batch has windows of several videos. Batches and shards end after fixed numbers of windows, whose order is fixed,
    so that every vector is computed beside the same others wherever it begins: its last bits depend on it.

    Args:
        videos: a dataset of `load_videos`.
        lanes: indices of the videos of each lane.
        setup: what windows are read with.
        arguments: the settings.
        bad_videos: where videos are reported that cannot be read, or only in part.
        counts, position: where it begins, as of `RankWriter`; they move on with the shards.
    """

    videos: object
    lanes: Sequence[Sequence[int]]
    setup: Setup
    arguments: EmbedArguments
    bad_videos: BadVideos
    counts: dict[str, int]
    position: dict
    _clips: list[torch.Tensor] = field(default_factory=list)  # of the next batch
    _batch: list[dict] = field(default_factory=list)  # what is known of them
    _rows: list[dict] = field(default_factory=list)  # of the next shard
    _num_in_shard: int = 0  # windows

    def __post_init__(self):
        self.counts, self.position = copy.deepcopy((self.counts, self.position))
        encoder, size = self.setup.encoder, self.arguments.batch_size
        window_bytes = encoder.num_steps * len(encoder.depths) * encoder.vector_size * 4
        most = min(self.arguments.windows_per_shard, MAX_SHARD // window_bytes)
        self.windows_per_shard = max(1, most // size) * size

    def shards(self, num_workers: int) -> Iterator[list[dict]]:
        """The rows of one shard after the other.

        Args:
            num_workers: processes that decode while the encoder runs.
        """
        plan, transform, num_steps = self.setup.plan, self.setup.transform, self.setup.encoder.num_steps
        rate, timeout = self.arguments.frame_rate, self.arguments.decode_timeout
        position = copy.deepcopy(self.position)  # where the lanes begin, while this moves on
        lanes = Lanes(self.videos, self.lanes, position, plan, num_steps, transform, rate, timeout)
        num_videos = sum(map(len, self.lanes))
        workers = min(num_workers, num_videos, len(self.lanes))
        progress = [0.0] * len(self.lanes)  # of the video of each that is being read
        with tqdm(total=num_videos, initial=self._num_done(), bar_format=BAR, miniters=0, disable=None) as bar:
            for item in Loader(lanes, _same, batch_size=None, num_workers=workers):
                if item is None:
                    continue
                progress[item["lane"]] = item.get("progress", 0.0)
                self._take(item)
                bar.n = self._num_done() + sum(progress)
                bad = self.counts["unreadable"] + self.counts["partial"]
                bar.set_postfix(windows=self.counts["windows"], bad=bad, refresh=False)
                bar.update(0)
                if self._num_in_shard == self.windows_per_shard:
                    yield self._end_shard()
        self._encode()
        if self._rows:
            yield self._end_shard()

    def _num_done(self) -> int:
        return sum(num_videos for num_videos, _ in self.position["lanes"])

    def _end_shard(self) -> list[dict]:
        rows, self._rows, self._num_in_shard = self._rows, [], 0
        return rows

    def _take(self, item: dict):
        self.position["turn"] = (item["lane"] + 1) % len(self.lanes)
        start = self.position["lanes"][item["lane"]]
        index = self.lanes[item["lane"]][start[0]]
        if "clip" not in item:
            self._report(name_of(self.videos[index], index), item)
            start[:] = start[0] + 1, 0
            return
        start[1] += 1
        self._clips.append(item["clip"])
        self._batch.append({"index": index, "window": item["number"], "spans": item["spans"]})
        self.counts["windows"] += 1
        self._num_in_shard += 1
        if len(self._clips) == self.arguments.batch_size:
            self._encode()

    def _report(self, name: str, end: dict):
        self.counts["videos"] += 1
        if end["error"] is None and end["note"] is None:
            return
        is_used = end["num_windows"] > 0
        self.counts["partial" if is_used else "unreadable"] += 1
        self.bad_videos.add(name, end["error"] or end["note"], is_used, end["kind"] or "damaged")

    def _encode(self):
        if not self._clips:
            return
        depths = self.setup.encoder(torch.stack(self._clips))
        names = [column_of(depth) for depth in self.setup.encoder.depths]
        for number, window in enumerate(self._batch):
            about = {"index": window["index"], "window": window["window"]}
            about["video"] = name_of(self.videos[window["index"]], window["index"])
            for step, span in enumerate(window["spans"]):
                vectors = {name: values[number, step] for name, values in zip(names, depths, strict=True)}
                self._rows.append({**about, "step": step, **span, **vectors})
        self.counts["rows"] += len(self._batch) * self.setup.encoder.num_steps
        self._clips, self._batch = [], []


def _same(item):
    """Nothing is put together: an item is a window."""
    return item
