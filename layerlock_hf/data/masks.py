"""Masks: which tokens of a clip the encoder sees, and which it has to predict.

A mask strategy is called as `strategy(grid_size, positions, seed)` and returns one pair (context_ids, target_ids), of
shapes (B, K) and (B, M), per type of mask it draws. Ids index the flattened grid, t outermost, w innermost. The masks
of a clip depend on the seed and on its position in the run alone: batches, processes and resuming do not change them.
"""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from .transforms import generator_for


MAX_ATTEMPTS = 1000

# From the grid size (t, h, w), the positions of B clips and the seed to one pair of ids per type of mask.
MaskStrategy = Callable[[tuple[int, int, int], Sequence[int], int], list[tuple[torch.Tensor, torch.Tensor]]]


@dataclass(frozen=True)
class RandomMask:
    """Uniform over space-time patches (LayerLock, sec. 3.1).

    Args:
        ratio: fraction of the patches hidden from the encoder.
    """

    ratio: float

    def __post_init__(self):
        _check_ratio(self.ratio)

    def __call__(
        self, grid_size: tuple[int, int, int], positions: Sequence[int], seed: int
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """
        Returns:
            context_ids: shape (B, K), K = max(1, round(N * (1 - ratio))), distinct patches in random order.
            target_ids: shape (B, N), all patches in random order, independent of the context, so that an objective
                which predicts a fraction of the patches takes the first ones.
        """
        num_tokens = math.prod(grid_size)
        num_context = max(1, round(num_tokens * (1 - self.ratio)))
        contexts, targets = [], []
        for position in positions:
            generator = generator_for("mask", seed, position)
            contexts.append(torch.randperm(num_tokens, generator=generator)[:num_context])
            targets.append(torch.randperm(num_tokens, generator=generator))
        return [(torch.stack(contexts), torch.stack(targets))]


@dataclass(frozen=True)
class TubeMask:
    """One mask of the frame, the same at all times (VideoMAE; blockwise training).

    Args:
        ratio: fraction of the frame hidden from the encoder.
    """

    ratio: float

    def __post_init__(self):
        _check_ratio(self.ratio)

    def __call__(
        self, grid_size: tuple[int, int, int], positions: Sequence[int], seed: int
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """
        Returns:
            context_ids: shape (B, K), K = t * (h * w - int(ratio * h * w)), sorted.
            target_ids: shape (B, N - K), the patches not in the context, in random order, so that an objective which
                predicts a fraction of them takes the first ones.
        """
        num_times, frame = grid_size[0], grid_size[1] * grid_size[2]
        num_hidden = int(self.ratio * frame)
        if num_hidden == 0:
            raise ValueError(
                f"ratio (mask_ratio in recipes) must hide at least 1 of the {frame} patches of a frame, got "
                f"{self.ratio}: raise it"
            )
        times = frame * torch.arange(num_times).unsqueeze(1)
        contexts, targets = [], []
        for position in positions:
            generator = generator_for("tube mask", seed, position)
            order = torch.randperm(frame, generator=generator)
            contexts.append((times + order[num_hidden:].sort().values).flatten())
            hidden = (times + order[:num_hidden]).flatten()
            targets.append(hidden[torch.randperm(len(hidden), generator=generator)])
        return [(torch.stack(contexts), torch.stack(targets))]


@dataclass(frozen=True)
class FutureMask:
    """The first time steps are seen and the later ones predicted, which requires knowing how things move.

    Under random masks, a hidden patch can mostly be guessed from its neighbours, and a small model in a short run
    learns nothing beyond that.

    Args:
        num_past: time steps of the grid (`tubelet_size` frames each) that the encoder sees.
        ratio: fraction of the tokens of these time steps that is hidden all the same, at random; such tokens are
            neither seen nor predicted.
    """

    num_past: int
    ratio: float = 0.0

    def __post_init__(self):
        if self.num_past < 1:
            raise ValueError(f"num_past (mask_past in recipes) must be at least 1 time step, got {self.num_past}")
        if not 0 <= self.ratio < 1:
            raise ValueError(f"ratio (mask_ratio in recipes) must lie in [0, 1), got {self.ratio}")

    def __call__(
        self, grid_size: tuple[int, int, int], positions: Sequence[int], seed: int
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """
        Returns:
            context_ids: shape (B, K), K = max(1, round(P * (1 - ratio))) of the P = num_past * h * w, sorted.
            target_ids: shape (B, N - P), the patches of all later time steps, in random order, so that an objective
                which predicts a fraction of them takes the first ones.
        """
        num_times, frame = grid_size[0], grid_size[1] * grid_size[2]
        if self.num_past >= num_times:
            raise ValueError(
                f"num_past (mask_past in recipes) must be less than the {num_times} time steps of a clip, got "
                f"{self.num_past}: otherwise no future is left to predict"
            )
        num_seen, num_tokens = self.num_past * frame, num_times * frame
        num_context = max(1, round(num_seen * (1 - self.ratio)))
        contexts, targets = [], []
        for position in positions:
            generator = generator_for("future mask", seed, position)
            contexts.append(torch.randperm(num_seen, generator=generator)[:num_context].sort().values)
            targets.append(num_seen + torch.randperm(num_tokens - num_seen, generator=generator))
        return [(torch.stack(contexts), torch.stack(targets))]


@dataclass(frozen=True)
class MultiBlockMasks:
    """The union of blocks that span all frames is predicted, the rest is seen (V-JEPA, `masks/multiblock3d.py`).

    As in V-JEPA, the size of the blocks is drawn per group of clips and type of mask, their places per clip; and all
    clips of a group keep as many tokens as the one that has the fewest, so that larger groups keep fewer. What is a
    GPU's batch in V-JEPA is here the clips with the same `position // group_size`. Thus masks do not depend on how
    a group is divided among batches, processes and accumulation steps; but a batch must lie within a group, so
    `group_size` must be a multiple of the batch size.

    Args:
        blocks: one pair (number of blocks, area of a block as a fraction of the frame) per type of mask. The default
            is V-JEPA's; LayerLock on V-JEPA has ((8, 0.3),).
        aspect_ratio: bounds of height over width of a block.
        truncate: which tokens are kept where a clip has too many. "prefix": the first in the order of ids, as V-JEPA
            does, which prefers early frames. "random": any.
        group_size: number of clips of a group.
    """

    blocks: tuple[tuple[int, float], ...] = ((8, 0.15), (2, 0.7))
    aspect_ratio: tuple[float, float] = (0.75, 1.5)
    truncate: str = "prefix"
    group_size: int = 24

    def __post_init__(self):
        if not self.blocks:
            raise ValueError("blocks (mask_blocks in recipes) must name at least one type of mask, got none")
        for num_blocks, scale in self.blocks:
            if num_blocks < 1 or not 0 < scale < 1:
                raise ValueError(
                    "blocks (mask_blocks in recipes) must be at least 1 block of a fraction between 0 and 1 of the "
                    f"frame, both excluded, got {num_blocks} of {scale}"
                )
        if not 0 < self.aspect_ratio[0] <= self.aspect_ratio[1]:
            raise ValueError(f"aspect_ratio must be two positive bounds, the lower one first, got {self.aspect_ratio}")
        if self.truncate not in PRIORITIES:
            raise ValueError(
                f"truncate (mask_truncation in recipes) must be one of {', '.join(PRIORITIES)}, got {self.truncate!r}"
            )
        if self.group_size < 1:
            raise ValueError(f"group_size (mask_group_size in recipes) must be at least 1, got {self.group_size}")

    def __call__(
        self, grid_size: tuple[int, int, int], positions: Sequence[int], seed: int
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """
        Returns:
            Per entry of `blocks`:
            context_ids: shape (B, K), sorted; K differs from group to group.
            target_ids: shape (B, M), disjoint from the context, in random order, so that an objective which predicts
                a fraction of them takes the first ones; M differs likewise.
        """
        places = [divmod(position, self.group_size) for position in positions]
        drawn = {group: _draw_group(self, tuple(grid_size), group, seed) for group in {group for group, _ in places}}
        if len({tuple(ids.shape for pair in masks for ids in pair) for masks in drawn.values()}) > 1:
            raise ValueError(
                f"group_size (mask_group_size in recipes) must be a multiple of the batch size, got {self.group_size} "
                f"for a batch of {len(places)} clips: it spans {len(drawn)} groups, whose numbers of tokens differ"
            )
        return [
            tuple(torch.stack([drawn[group][kind][side][row] for group, row in places]) for side in range(2))
            for kind in range(len(self.blocks))
        ]


# From the number N of tokens to a permutation, shape (N,): where a clip has too many, those of low value stay.
PRIORITIES = {
    "prefix": lambda num_tokens, generator: torch.arange(num_tokens),
    "random": lambda num_tokens, generator: torch.randperm(num_tokens, generator=generator),
}


# The last group alone, for its batches follow one another.
@functools.lru_cache(maxsize=1)
def _draw_group(
    strategy: MultiBlockMasks, grid_size: tuple[int, int, int], group: int, seed: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Per type of mask (context_ids, target_ids) of all clips of a group, shapes (group_size, K), (group_size, M)."""
    first = group * strategy.group_size
    masks = []
    for kind, (num_blocks, scale) in enumerate(strategy.blocks):
        generator = generator_for("block size", seed, group, kind)
        size = _block_size(grid_size[1:], scale, strategy.aspect_ratio, generator)
        hidden, priorities = [], []
        for position in range(first, first + strategy.group_size):
            generator = generator_for("blocks", seed, position, kind)
            hidden.append(_union_of_blocks(grid_size[1:], num_blocks, size, generator))
            priorities.append(PRIORITIES[strategy.truncate](math.prod(grid_size), generator))
        hidden = torch.stack(hidden).repeat(1, grid_size[0])  # (group_size, h * w) -> (group_size, N)
        priorities = torch.stack(priorities)
        masks.append((_keep(~hidden, priorities), _shuffle(_keep(hidden, priorities), first, seed, kind)))
    return masks


def _shuffle(ids: torch.Tensor, first: int, seed: int, kind: int) -> torch.Tensor:
    """The ids (B, M) of the clips from position `first` on, each in an order of its own."""
    generators = (generator_for("target order", seed, first + row, kind) for row in range(len(ids)))
    orders = [torch.randperm(ids.shape[1], generator=generator) for generator in generators]
    return ids.gather(1, torch.stack(orders))


def _block_size(
    frame: tuple[int, int], scale: float, aspect_ratio: tuple[float, float], generator: torch.Generator
) -> tuple[int, int]:
    """Height and width of the blocks on a frame of (h, w) patches."""
    low, high = aspect_ratio
    ratio = low + (high - low) * float(torch.rand((), generator=generator))
    area = int(frame[0] * frame[1] * scale)
    height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    return min(max(height, 1), frame[0]), min(max(width, 1), frame[1])


def _union_of_blocks(
    frame: tuple[int, int], num_blocks: int, size: tuple[int, int], generator: torch.Generator
) -> torch.Tensor:
    """Whether each patch of a frame lies in one of the blocks: bool, shape (h * w,), never all of it."""
    for _ in range(MAX_ATTEMPTS):
        rows, columns = (
            _is_inside(torch.randint(extent - side + 1, (num_blocks, 1), generator=generator), side, extent)
            for extent, side in zip(frame, size, strict=True)
        )
        union = (rows.unsqueeze(2) & columns.unsqueeze(1)).any(dim=0)
        if not union.all():
            return union.flatten()
    raise ValueError(
        f"blocks (mask_blocks in recipes) must leave some patches visible, got {num_blocks} blocks of "
        f"{size[0]}x{size[1]} patches, which cover the whole frame of {frame[0]}x{frame[1]} in each of {MAX_ATTEMPTS} "
        "draws: use fewer or smaller blocks"
    )


def _is_inside(start: torch.Tensor, side: int, extent: int) -> torch.Tensor:
    """Starts (num_blocks, 1) to a bool (num_blocks, extent): what lies from `start` to `start + side`."""
    index = torch.arange(extent)
    return (index >= start) & (index < start + side)


def _keep(selected: torch.Tensor, priorities: torch.Tensor) -> torch.Tensor:
    """Of the tokens selected in each row, as many as the poorest row has, those of lowest priority value, sorted.

    Args:
        selected: bool, shape (group_size, N).
        priorities: a permutation of the tokens per row, shape (group_size, N).

    Returns:
        ids, shape (group_size, K).
    """
    num_kept = int(selected.sum(dim=1).min())
    order = priorities.masked_fill(~selected, selected.shape[1]).argsort(dim=1)
    return order[:, :num_kept].sort(dim=1).values


def _check_ratio(ratio: float):
    if not 0 < ratio < 1:
        raise ValueError(f"ratio (mask_ratio in recipes) must be between 0 and 1, both excluded, got {ratio}")


def parse_blocks(blocks: Sequence[str]) -> tuple[tuple[int, float], ...]:
    """("8x0.15", "2x0.7") to ((8, 0.15), (2, 0.7)).

    Raises:
        ValueError: naming the entry that is not of this form.
    """
    parsed = []
    for entry in blocks:
        count, _, scale = entry.partition("x")
        try:
            parsed.append((int(count), float(scale)))
        except ValueError as error:
            raise ValueError(
                f"mask_blocks must be NUMxSCALE, got {entry!r}: for instance 8x0.15 for 8 blocks of 15% of the frame "
                "each"
            ) from error
    return tuple(parsed)


def _random(mask_ratio=0.95):
    return RandomMask(mask_ratio)


def _tube(mask_ratio=0.9):
    return TubeMask(mask_ratio)


def _future(mask_past=1, mask_ratio=0.0):
    return FutureMask(mask_past, mask_ratio)


def _multi_block(mask_blocks=("8x0.15", "2x0.7"), mask_truncation="prefix", mask_group_size=24):
    return MultiBlockMasks(parse_blocks(mask_blocks), truncate=mask_truncation, group_size=mask_group_size)


# From the value of the setting `mask` to a function of the settings which that strategy has.
MASKS: dict[str, Callable[..., MaskStrategy]] = {
    "random": _random,
    "tube": _tube,
    "multiblock": _multi_block,
    "future": _future,
}


@dataclass
class MaskArguments:
    """What the encoder sees of a clip. Settings that the chosen kind of mask does not take are refused."""

    mask: str = field(default="random", metadata={"help": f"Kind of mask: {', '.join(MASKS)}."})
    mask_ratio: float | None = field(
        default=None,
        metadata={
            "help": "Share of the tokens hidden from the encoder (default: random 0.95, tube 0.9); for future masks, "
            "the share of the past tokens (default 0)."
        },
    )
    mask_past: int | None = field(
        default=None, metadata={"help": "Time steps that the encoder sees under future masks (default 1)."}
    )
    mask_blocks: list[str] | None = field(
        default=None,
        metadata={
            "help": "Types of multiblock mask, as NUMxSCALE: blocks, share of the frame each (default 8x0.15 2x0.7)."
        },
    )
    mask_truncation: str | None = field(
        default=None,
        metadata={"help": f"Which tokens multiblock masks keep: {', '.join(PRIORITIES)} (default prefix)."},
    )
    mask_group_size: int | None = field(
        default=None,
        metadata={"help": "Clips that multiblock masks truncate alike, a multiple of the batch size (default 24)."},
    )

    def build(self) -> MaskStrategy:
        """The strategy.

        Raises:
            ValueError: naming the setting that is wrong, or that this kind of mask does not take.
        """
        if self.mask not in MASKS:
            raise ValueError(f"mask must be one of {', '.join(MASKS)}, got {self.mask!r}")
        make = MASKS[self.mask]
        settings = {name: value for name, value in vars(self).items() if name != "mask" and value is not None}
        known = list(inspect.signature(make).parameters)
        for name in settings:
            if name not in known:
                taken = ", ".join(known) or "no settings"
                raise ValueError(
                    f"{name} is set but mask={self.mask} takes {taken}: leave it out (--{name} none takes back "
                    "a recipe's), or choose another mask"
                )
        return make(**settings)
