"""Which video a position of the run shows."""

from collections.abc import Sequence

import torch

from .transforms import generator_for


# Positions within which the sources of a mixture are shuffled: each block has its share of every source
BLOCK = 64


class ClipOrder:
    """The order in which a run shows its videos, which depends only on seed and position.

    Every source of videos is shuffled and shown once per epoch of its own. Without weights, all
    sources together count as one, and every video is shown once per epoch.

    With `clips_per_video` k, positions k g to k g + k - 1 are a group, which shows one video (repeated augmentation,
    Hoffer et al. 2020, as VideoMAE does): it is decoded once for k clips.

    Args:
        num_videos: number of videos of all sources.
        sources: the source of every video, counted from 0, shape (num_videos,); by default there is one.
        weights: share of each source among the clips, on any scale.
        clips_per_video: size k of a group.
        seed: seed of the order.
    """

    def __init__(
        self,
        num_videos: int,
        sources: Sequence[int] | None = None,
        weights: Sequence[float] | None = None,
        clips_per_video: int = 1,
        seed: int = 0,
    ):
        if num_videos < 1:
            raise ValueError(f"num_videos must be at least 1, got {num_videos}")
        if clips_per_video < 1:
            raise ValueError(f"clips_per_video must be at least 1, got {clips_per_video}")
        self.clips_per_video = clips_per_video
        self.seed = seed
        self._sources = torch.zeros(num_videos) if sources is None else torch.as_tensor(sources)
        self._sources = self._sources.to(torch.int32)
        if weights is not None:
            _check_weights(weights, self._sources.bincount().tolist())
        # Rows by source. Without weights one list, which has them all, is gone through
        self._rows = self._sources.argsort(stable=True).int().split(self._sources.bincount().tolist())
        self._lists = [torch.arange(num_videos, dtype=torch.int32)] if weights is None else self._rows
        self._weights = [1.0] if weights is None else list(weights)
        # The latest ones: an order of (list, epoch) and the lists of a block
        self._orders: dict[int, tuple[int, torch.Tensor]] = {}
        self._block = (-1, torch.empty(0))

    def __repr__(self) -> str:
        """What decides the order, besides the seed. A run cannot resume at the next clip if it has changed."""
        counts = [len(rows) for rows in self._rows]
        weights = None if len(self._lists) == 1 else self._weights
        return f"ClipOrder(num_videos={counts}, weights={weights}, clips_per_video={self.clips_per_video})"

    def first_of(self, position: int) -> int:
        """The first position of the group that a position belongs to."""
        return position - position % self.clips_per_video

    def video_at(self, position: int) -> int:
        """The row of the video at a position."""
        which, number = self._turn(position // self.clips_per_video)
        epoch, offset = divmod(number, len(self._lists[which]))
        if self._orders.get(which, (-1,))[0] != epoch:
            # With one list the key is (epoch, seed, number), as in runs from before there were mixtures
            generator = generator_for("epoch", self.seed, epoch, *([which] if len(self._lists) > 1 else []))
            order = torch.randperm(len(self._lists[which]), dtype=torch.int32, generator=generator)
            self._orders[which] = epoch, order
        return int(self._lists[which][self._orders[which][1][offset]])

    def replacement(self, position: int, attempt: int) -> int:
        """The row of the video that a group shows if those tried before cannot be used: another of the same source."""
        rows = self._rows[self._sources[self.video_at(position)]]
        generator = generator_for("replacement", self.seed, self.first_of(position), attempt)
        return int(rows[torch.randint(len(rows), (), generator=generator)])

    def _turn(self, group: int) -> tuple[int, int]:
        """The list that a group's video comes from, and how many groups before it are from the same."""
        if len(self._lists) == 1:
            return 0, group
        block, offset = divmod(group, BLOCK)
        before = self._quotas(block * BLOCK)
        if self._block[0] != block:
            counts = torch.tensor(self._quotas((block + 1) * BLOCK)) - torch.tensor(before)
            lists = torch.arange(len(counts)).repeat_interleave(counts)
            self._block = block, lists[torch.randperm(BLOCK, generator=generator_for("block", self.seed, block))]
        lists = self._block[1]
        which = int(lists[offset])
        return which, before[which] + int((lists[:offset] == which).sum())

    def _quotas(self, num_groups: int) -> list[int]:
        """How many of the first groups come from each list.

        The first list takes its share, rounded down, the next one its share of what is left: no count ever falls as
        groups are added, and none strays from its share by more than the number of lists.
        """
        counts, left = [], num_groups
        for which, weight in enumerate(self._weights):
            count = int(left * (weight / sum(self._weights[which:])))
            counts.append(count)
            left -= count
        return counts


def _check_weights(weights: Sequence[float], sizes: list[int]):
    if len(weights) != len(sizes):
        raise ValueError(
            f"source_weights (train_weights in recipes) must be one weight for each of the {len(sizes)} sources, got "
            f"{len(weights)}"
        )
    if not all(0 < weight < float("inf") for weight in weights):
        raise ValueError(f"source_weights (train_weights in recipes) must be positive numbers, got {list(weights)}")
