"""Pictures that a page carries in itself."""

import base64
import io

import torch
from PIL import Image


GAP = 3  # pixels between tiles
GREY = 128  # of the gaps, which goes with light and dark pages


def montage(tiles: torch.Tensor) -> torch.Tensor:
    """Rows of tiles, with gaps: bytes (R, C, 3, h, w) -> (3, H, W)."""
    num_rows, num_columns, _, height, width = tiles.shape
    shape = (num_rows * (height + GAP) - GAP, num_columns * (width + GAP) - GAP)
    picture = torch.full((3, *shape), GREY, dtype=torch.uint8)
    for row in range(num_rows):
        for column in range(num_columns):
            top, left = row * (height + GAP), column * (width + GAP)
            picture[:, top : top + height, left : left + width] = tiles[row, column]
    return picture


def enlarged(tiles: torch.Tensor, factor: int) -> torch.Tensor:
    """Every pixel becomes a square: (..., h, w) -> (..., h * factor, w * factor)."""
    return tiles.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)


def as_bytes(pixels: torch.Tensor) -> torch.Tensor:
    """Floats in [0, 1] -> bytes."""
    return (pixels * 255).round().to(torch.uint8)


def data_uri(picture: torch.Tensor, is_photo: bool = False) -> str:
    """Bytes (3, H, W) as the address of a picture: JPEG for photos, else PNG, which is exact."""
    buffer = io.BytesIO()
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    if is_photo:
        image.save(buffer, "JPEG", quality=88)
    else:
        image.save(buffer, "PNG", optimize=True)
    kind = "jpeg" if is_photo else "png"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
