"""Windows of several videos by turns, in an order that depends on the list of videos alone."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import IterableDataset, get_worker_info

from ..data import ClipTransform, DecodingError, fetch
from .reading import WindowReader
from .windows import Plan


class Lanes(IterableDataset):
    """Several lanes, each a queue of videos that are read one after the other; every lane gives a window in turn.

    The order is the same for any number of data workers. An item is {"lane", "number", "spans", "clip", "progress"}, a
    window, see `Cut`; or {"lane", "note", "error", "kind", "num_windows"}, the end of a video; or None, of a lane that
    has no more.

    Args:
        videos: a dataset of `load_videos`.
        lanes: indices of the videos of each lane.
        position: where to begin, as of `RankWriter`.
        plan, num_steps, transform, frame_rate, decode_timeout: as of `WindowReader`.
    """

    def __init__(
        self,
        videos,
        lanes: Sequence[Sequence[int]],
        position: dict,
        plan: Plan,
        num_steps: int,
        transform: ClipTransform,
        frame_rate: float | None,
        decode_timeout: float,
    ):
        self.videos, self.lanes, self.position = videos, lanes, position
        self.reading = (plan, num_steps, transform, frame_rate, decode_timeout)

    def __iter__(self) -> Iterator[dict | None]:
        worker = get_worker_info()
        first, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        turn = self.position["turn"]
        order = [*range(turn, len(self.lanes)), *range(turn)]
        # All workers have as many lanes, some of them empty, so that a loader that takes from them by turns takes
        # from the lanes by turns
        order += [None] * (-len(order) % num_workers)
        lanes = [iter(()) if lane is None else self._read(lane) for lane in order[first::num_workers]]
        is_left = True
        while is_left:
            is_left = False
            for lane in lanes:
                item = next(lane, None)
                is_left |= item is not None
                yield item

    def _read(self, lane: int) -> Iterator[dict]:
        num_done, num_windows = self.position["lanes"][lane]
        for index in self.lanes[lane][num_done:]:
            end = {"lane": lane, "note": None, "error": None, "kind": None}
            try:
                reader = WindowReader(fetch(self.videos[index]), *self.reading)
                for cut in reader.windows(num_windows):
                    num_windows += 1
                    about = {"number": cut.number, "spans": cut.spans, "progress": cut.progress}
                    yield {"lane": lane, "clip": torch.from_numpy(cut.clip), **about}
                end["note"] = reader.note
            except DecodingError as error:
                end |= {"error": str(error), "kind": error.kind}
            yield {**end, "num_windows": num_windows}
            num_windows = 0
