"""Positions of tokens: rotary angles, fixed sines and cosines, learned tables.

B batch, K tokens, N tokens of the grid, D width, R rotated channels. `ids` (B, K) number the tokens of a grid
(t, h, w), t first; None stands for all of them.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


def take_tokens(tokens: torch.Tensor, ids: torch.Tensor | None) -> torch.Tensor:
    """Tokens at `ids`, or all of them: (B or 1, N, D), (B, K) -> (B, K, D)."""
    if ids is None:
        return tokens
    tokens = tokens.expand(ids.shape[0], -1, -1)
    return tokens.gather(1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def grid_ids(grid_size: tuple[int, int, int], device: torch.device) -> torch.Tensor:
    """Every token of the grid, (1, N)."""
    return torch.arange(math.prod(grid_size), device=device).unsqueeze(0)


def grid_positions(ids: torch.Tensor, grid_size: tuple[int, int, int]) -> tuple[torch.Tensor, ...]:
    """Position in time, height and width: (B, K) -> 3 x (B, K)."""
    _, h, w = grid_size
    return ids // (h * w), ids // w % h, ids % w


def rotary_embedding(
    ids: torch.Tensor, grid_size: tuple[int, int, int], width: int, theta: float, axis_fractions: list[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines that encode the positions in time, height and width: (B, K) -> 2 x (B, K, R / 2).

    Each axis gets its share of the `width` channels, rounded to an even count; `theta` is the longest wavelength.
    """
    angles = []
    for position, fraction in zip(grid_positions(ids, grid_size), axis_fractions, strict=True):
        num_pairs = round(width * fraction / 2)
        exponents = torch.arange(num_pairs, device=ids.device, dtype=torch.float32) / max(num_pairs, 1)
        angles.append(position.unsqueeze(-1).float() * theta**-exponents)
    angles = torch.cat(angles, dim=-1)
    return angles.cos(), angles.sin()


def rotate(hidden_states: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotate pairs of channels by their angles: (..., K, D) -> (..., K, D).

    The first R / 2 channels pair with the next R / 2; the remaining D - R channels carry no position.
    """
    cos, sin = rotation
    num_pairs = cos.shape[-1]
    first, second, rest = hidden_states.split([num_pairs, num_pairs, hidden_states.shape[-1] - 2 * num_pairs], dim=-1)
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
    return rotated.to(hidden_states.dtype)  # the tables are fp32, the model need not be


def sincos_embedding(ids: torch.Tensor, grid_size: tuple[int, int, int], width: int) -> torch.Tensor:
    """The fixed table of V-JEPA: (B, K) -> (B, K, D).

    Each axis gets the same number of channels, sines before cosines, and what exceeds the width is cut off
    (`uniform_power` of facebookresearch/jepa).
    """
    num_frequencies = -(-width // 6)
    frequencies = 10_000 ** (-torch.arange(num_frequencies, device=ids.device, dtype=torch.float32) / num_frequencies)
    angles = [position.unsqueeze(-1).float() * frequencies for position in grid_positions(ids, grid_size)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=-1)[..., :width]


def resample_positions(table: torch.Tensor, from_grid: tuple, to_grid: tuple) -> torch.Tensor:
    """Resample a learned table to another grid, trilinearly: (1, N, D) -> (1, N', D)."""
    if from_grid == to_grid:
        return table
    volume = table.reshape(1, *from_grid, -1).permute(0, 4, 1, 2, 3)
    return F.interpolate(volume.float(), size=to_grid, mode="trilinear").flatten(2).transpose(1, 2).to(table.dtype)


class NoAddedPositions(nn.Module):
    """Positions enter elsewhere, or not at all."""

    def __init__(self, grid_size: tuple[int, int, int], width: int):
        super().__init__()

    def forward(self, tokens: torch.Tensor, ids: torch.Tensor | None, grid_size: tuple) -> torch.Tensor:
        return tokens


class SinCosPositions(nn.Module):
    """Adds the fixed sines and cosines."""

    def __init__(self, grid_size: tuple[int, int, int], width: int):
        super().__init__()
        self.width = width

    def forward(self, tokens: torch.Tensor, ids: torch.Tensor | None, grid_size: tuple) -> torch.Tensor:
        ids = grid_ids(grid_size, tokens.device) if ids is None else ids
        return tokens + sincos_embedding(ids, grid_size, self.width).to(tokens.dtype)


class LearnedPositions(nn.Module):
    """Adds a learned table, resampled for clips of another size."""

    def __init__(self, grid_size: tuple[int, int, int], width: int):
        super().__init__()
        self.grid_size = grid_size
        self.table = nn.Parameter(torch.empty(1, math.prod(grid_size), width))

    def forward(self, tokens: torch.Tensor, ids: torch.Tensor | None, grid_size: tuple) -> torch.Tensor:
        return tokens + take_tokens(resample_positions(self.table, self.grid_size, grid_size), ids)


# What each `position_embedding` adds to embedded tokens; the rotary ones act inside the layers.
ADDED_POSITIONS = {
    "rope": NoAddedPositions,
    "rope_attention": NoAddedPositions,
    "learned": LearnedPositions,
    "sincos": SinCosPositions,
    "none": NoAddedPositions,
}
