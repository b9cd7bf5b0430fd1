"""Drifting gratings, whose every property is known: stimuli of low level (arXiv 2601.09040, sec. on decodability).

The numbers of values and of clips are the paper's. The values themselves are known for spatial frequencies alone, and
of the relations between two gratings only examples: those here are ours. T frames, H and W pixels, K targets.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch


SIZE = 128  # pixels that spatial frequencies count cycles in, whatever the size of a clip: finer ones would alias
FRAME_RATE = 6.25  # frames per second, so that temporal frequencies must stay below 3.125
SPATIAL = (4.0, 8.0, 12.0, 16.0, 20.0, 24.0)
ORIENTATIONS = tuple(15.0 * step for step in range(12))  # degrees from upright stripes
TEMPORAL = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
FEW_TEMPORAL = (1.0, 2.0, 3.0)
CONTRASTS = (0.2, 0.4, 0.6, 0.8, 1.0)
# Which of red, green and blue vary; the others stay half bright, so that the mean colour tells nothing
COLOURS = ((1.0, 1.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 1.0, 0.0))


def grating(
    cycles: float,
    orientation: float,
    hertz: float,
    contrast: float = 1.0,
    colour: tuple[float, float, float] = COLOURS[0],
    num_frames: int = 16,
    height: int = SIZE,
    width: int = SIZE,
) -> torch.Tensor:
    """A sine that drifts across its stripes: uint8 (T, 3, H, W).

    Args:
        cycles: in 128 pixels.
        orientation: in degrees; the stripes of 0 are upright and drift to the right, those of 90 lie and drift down.
        hertz: cycles that pass a pixel in a second, at `FRAME_RATE`.
        contrast: between 0 and 1.
        colour: how much of it each of red, green and blue has.
    """
    angle = math.radians(orientation)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    distance = columns * math.cos(angle) + rows * math.sin(angle)
    time = torch.arange(num_frames)[:, None, None] / FRAME_RATE
    wave = torch.sin(2 * math.pi * (cycles / SIZE * distance - hertz * time))
    wave = wave[:, None] * contrast * torch.tensor(colour).view(3, 1, 1)
    return (127.5 * (1 + wave)).round().byte()


def drifting(values: tuple, num_frames: int, size: int) -> torch.Tensor:
    """One grating, of its five properties."""
    return grating(*values, num_frames, size, size)


def double_drifting(values: tuple, num_frames: int, size: int) -> torch.Tensor:
    """Two gratings side by side that drift alike: spatial frequency and orientation of each, temporal frequency."""
    left_cycles, right_cycles, left_orientation, right_orientation, hertz = values
    halves = ((left_cycles, left_orientation, size // 2), (right_cycles, right_orientation, size - size // 2))
    drawn = [
        grating(cycles, orientation, hertz, num_frames=num_frames, height=size, width=width)
        for cycles, orientation, width in halves
    ]
    return torch.cat(drawn, dim=-1)


def own_properties(indices: torch.Tensor) -> torch.Tensor:
    return indices


def with_relations(indices: torch.Tensor) -> torch.Tensor:
    """The properties of a double grating, and what they are to each other: (n, 5) -> (n, 9)."""
    left, right, left_turn, right_turn = indices[:, :4].T
    turn = (left_turn - right_turn).abs()
    relations = [
        (left - right).abs(),
        torch.minimum(turn, len(ORIENTATIONS) - turn),  # stripes of 0 and 165 degrees are 15 apart
        (left == right).long(),
        (left - right).sign() + 1,
    ]
    return torch.cat([indices, torch.stack(relations, dim=1)], dim=1)


@dataclass(frozen=True)
class Gratings:
    """A set of clips: every combination of the values of some properties.

    >>> len(DRIFTING), len(DOUBLE_DRIFTING)
    (10800, 15552)

    Attributes:
        name: of the set.
        properties: their values by name.
        draw: makes the clip of one value of each.
        relate: from indices of the values (n, properties) to the targets (n, K), classes counted from 0.
        target_names: K of them.
        num_parts: gratings side by side in a clip.
    """

    name: str
    properties: dict[str, tuple]
    draw: Callable[[tuple, int, int], torch.Tensor]
    relate: Callable[[torch.Tensor], torch.Tensor]
    target_names: tuple[str, ...]
    num_parts: int = 1

    def __len__(self) -> int:
        return math.prod(map(len, self.properties.values()))

    def chosen(self, num_clips: int | None = None) -> torch.Tensor:
        """The numbers of so many of the clips, at random but always the same; of all of them by default."""
        return torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[:num_clips]

    def targets(self, numbers: torch.Tensor) -> torch.Tensor:
        """Classes of these clips, (n,) -> (n, K)."""
        return self.relate(self._indices(numbers))

    def clips(self, numbers: torch.Tensor, num_frames: int = 16, size: int = SIZE) -> torch.Tensor:
        """These clips, (n,) -> uint8 (n, T, 3, size, size)."""
        places = self._indices(numbers).tolist()
        values = self.properties.values()
        chosen = [tuple(one[place] for one, place in zip(values, row, strict=True)) for row in places]
        return torch.stack([self.draw(one, num_frames, size) for one in chosen])

    def _indices(self, numbers: torch.Tensor) -> torch.Tensor:
        return torch.stack(torch.unravel_index(numbers, tuple(map(len, self.properties.values()))), dim=1)


DRIFTING = Gratings(
    "drifting",
    {
        "spatial_frequency": SPATIAL,
        "orientation": ORIENTATIONS,
        "temporal_frequency": TEMPORAL,
        "contrast": CONTRASTS,
        "colour": COLOURS,
    },
    drifting,
    own_properties,
    ("spatial_frequency", "orientation", "temporal_frequency", "contrast", "colour"),
)
DOUBLE_DRIFTING = Gratings(
    "double_drifting",
    {
        "left_spatial_frequency": SPATIAL,
        "right_spatial_frequency": SPATIAL,
        "left_orientation": ORIENTATIONS,
        "right_orientation": ORIENTATIONS,
        "temporal_frequency": FEW_TEMPORAL,
    },
    double_drifting,
    with_relations,
    (
        *("left_spatial_frequency", "right_spatial_frequency", "left_orientation", "right_orientation"),
        *("temporal_frequency", "spatial_delta", "orientation_delta", "spatial_match", "higher_side"),
    ),
    num_parts=2,
)
