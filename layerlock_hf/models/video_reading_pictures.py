"""Videos as folders of pictures, one frame each: rawframes of MMAction2, EPIC-Kitchens, SSv2 as TSM has it."""

import os
import re
from collections.abc import Callable

import torch


PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")


def is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in PICTURES


def pictures_in(folder: str) -> list[str]:
    """The paths of the pictures directly in a folder, in the order of the numbers in their names."""

    def order(name):
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]

    names = [name for name in os.listdir(folder) if is_picture(name) and not name.startswith(".")]
    return [os.path.join(folder, name) for name in sorted(names, key=order)]


def read_pictures(
    folder: str, choose: Callable[[int], list[int]] | None = None, frame_rate: float | None = None
) -> torch.Tensor:
    """The frames `choose(num_frames)`, by default all: uint8, (T, 3, H, W).

    Raises:
        ValueError: if there are none, one cannot be read, they differ in size, or a frame rate is asked for, which
            pictures do not have.
    """
    paths = pictures_in(folder)
    if not paths:
        raise ValueError("the folder holds no pictures: give a video, or a folder of its frames")
    if frame_rate is not None:
        raise ValueError(f"frame_rate must be None for a folder of pictures, which have no times, got {frame_rate}")
    frames = [read_picture(path) for path in (paths if choose is None else [paths[i] for i in choose(len(paths))])]
    if len({frame.shape for frame in frames}) > 1:
        raise ValueError("the frames differ in size")
    return torch.stack(frames)


def read_picture(path: str) -> torch.Tensor:
    """One frame: uint8, (3, H, W).

    Raises:
        ValueError: if it cannot be read.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError("folders of pictures need Pillow: pip install pillow") from error
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):  # whose conversion to RGB saturates
                raise ValueError(f"mode {image.mode}, more than 8 bits per pixel")
            pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
            return pixels.view(image.height, image.width, 3).permute(2, 0, 1)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{os.path.basename(path)} is not a frame: {error}") from error
