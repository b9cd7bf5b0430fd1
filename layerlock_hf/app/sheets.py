"""Pictures of a clip, moment by moment, all laid out alike, so that a place in one is a place in all of them.

N tokens of the grid (t, h, w), n moments that are shown, s side of a token in pixels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..reporting.pictures import GAP, GREY, as_bytes, enlarged, montage
from ..reporting.spreading import spread


NUM_COLUMNS, MAX_MOMENTS = 4, 8
TILE = 160  # pixels, about, of a moment


@dataclass(frozen=True)
class Sheet:
    """The layout of the pictures of a clip.

    Attributes:
        grid_size: of the tokens of the clip, t, h and w.
    """

    grid_size: tuple[int, int, int]

    @property
    def moments(self) -> list[int]:
        """The places in the grid's time that are shown."""
        return spread(range(self.grid_size[0]), MAX_MOMENTS)

    @property
    def token_side(self) -> int:
        """s"""
        return max(1, round(TILE / max(self.grid_size[1:])))

    def of_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """Floats in [0, 1], (T, 3, H, W) -> bytes (3, H', W'). The first frame of each moment is shown."""
        per_moment = len(frames) // self.grid_size[0]
        size = [side * self.token_side for side in self.grid_size[1:]]
        chosen = frames[[moment * per_moment for moment in self.moments]]
        tiles = F.interpolate(chosen, size, mode="bilinear", antialias=True).clamp(0, 1)
        return self._laid_out(as_bytes(tiles))

    def of_tokens(self, values: torch.Tensor) -> torch.Tensor:
        """A colour for every token, floats in [0, 1], (N, 3) -> bytes (3, H', W')."""
        tiles = values.view(*self.grid_size, 3)[self.moments].permute(0, 3, 1, 2)
        return self._laid_out(enlarged(as_bytes(tiles), self.token_side))

    def _laid_out(self, tiles: torch.Tensor) -> torch.Tensor:
        num_columns = min(NUM_COLUMNS, len(tiles))
        rest = -len(tiles) % num_columns
        tiles = torch.cat([tiles, tiles.new_full((rest, *tiles.shape[1:]), GREY)])
        return montage(tiles.unflatten(0, (-1, num_columns)))

    @property
    def middle(self) -> int:
        """The token in the middle of the frames, at the moment in the middle."""
        _, height, width = self.grid_size
        return (self.moments[len(self.moments) // 2] * height + height // 2) * width + width // 2

    def token_at(self, x: int, y: int) -> int | None:
        """The token at a pixel of the pictures, None where no moment is. A gap belongs to what it comes after."""
        _, height, width = self.grid_size
        (column, x), (row, y) = (
            divmod(place, side * self.token_side + GAP) for place, side in ((x, width), (y, height))
        )
        place = row * NUM_COLUMNS + column
        if place >= len(self.moments):
            return None
        x, y = min(x // self.token_side, width - 1), min(y // self.token_side, height - 1)
        return (self.moments[place] * height + y) * width + x

    def corner_of(self, token: int) -> tuple[int, int]:
        """Left and top of a token in the pictures; its moment must be shown."""
        moment, rest = divmod(token, self.grid_size[1] * self.grid_size[2])
        y, x = divmod(rest, self.grid_size[2])
        row, column = divmod(self.moments.index(moment), NUM_COLUMNS)
        left, top = (
            place * (side * self.token_side + GAP) + within * self.token_side
            for place, side, within in ((column, self.grid_size[2], x), (row, self.grid_size[1], y))
        )
        return left, top
