"""ScanNet (Dai et al., CVPR 2017): .sens files as its owners distribute them, or the images exported from these.

The format is that of SensReader in https://github.com/ScanNet/ScanNet, version 4, little-endian:

    uint32 version, uint64 length and the bytes of the sensor's name, 4 matrices of 16 float32 (intrinsics and
    extrinsics of colour, then of depth), int32 compression of colour, int32 of depth, uint32 width and height of
    colour, uint32 width and height of depth, float32 depth units per metre, uint64 number of frames;
    for each frame: 16 float32 camera to world, uint64 time of colour, uint64 time of depth, uint64 bytes of colour,
    uint64 bytes of depth, then these bytes
"""

import struct
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor
from transformers.utils import logging

from ...data import DecodingError
from .base import DepthSequence, Origin, path_in, read_lines
from .images import decode_colour, stack, to_metres
from .sequences import DepthImages, ImageFrames, PairedSequence, check_metric, numbered, pair


logger = logging.get_logger(__name__)

ORIGIN = Origin(
    name="ScanNet v2",
    page="https://github.com/ScanNet/ScanNet",
    licence="ScanNet terms of use: non-commercial research; signed and sent to the owners",
    layout="""
scans/scene0000_00/scene0000_00.sens     or scene0000_00/color/0.jpg and depth/0.png, as SensReader exports them
scannetv2_train.txt                      a scene per line; from Tasks/Benchmark of the page, also in such folders
scannetv2_val.txt""",
)
LISTS = {"train": "scannetv2_train.txt", "test": "scannetv2_val.txt"}  # (LayerLock, sec. A.4.3)
VERSION = 4
JPEG, ZLIB = 2, 1  # types of compression, those that the owners use
EXPORTED_PER_METRE = 1000.0
PREFIX = struct.Struct("<IQ")
MATRICES = 4 * 16 * 4  # bytes
SIZES = struct.Struct("<ii4IfQ")
FRAME = struct.Struct("<16f4Q")
MAX_FRAMES = 10**7  # 90 hours; a header that says more is damaged


@dataclass(frozen=True)
class SensSequence:
    """A `DepthSequence` in a .sens file.

    Attributes:
        path: of the file.
        name, group: of the recording and of its scene.
        num_frames: of the recording, by the header.
        depth_size: height and width of depth.
        per_metre: units of depth in a metre.
        start: where the first frame begins, in bytes.
    """

    path: str
    name: str
    group: str
    num_frames: int
    depth_size: tuple[int, int]
    per_metre: float
    start: int

    def __len__(self) -> int:
        return self.num_frames

    def read(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        stored = self._stored(indices)
        colour = [decode_colour(colour, name) for name, colour, _ in stored]
        return stack(colour, self.path), self._decoded(stored)

    def read_depth(self, indices: list[int]) -> Tensor:
        """Depth alone, as `read` gives it."""
        return self._decoded(self._stored(indices))

    def _decoded(self, stored: list[tuple[str, bytes, bytes]]) -> Tensor:
        frames = []
        for name, _, data in stored:
            try:
                depth = np.frombuffer(zlib.decompress(data), "<u2").reshape(self.depth_size)
            except (zlib.error, ValueError) as error:
                raise DecodingError(f"{name}: depth is damaged: {error}") from error
            frames.append(to_metres(depth, self.per_metre))
        return stack(frames, self.path)

    def _stored(self, indices: list[int]) -> list[tuple[str, bytes, bytes]]:
        """Of each frame, what it is called in reports, and the bytes of colour and of depth."""
        found = []
        try:
            with open(self.path, "rb") as file:
                for index in indices:
                    name = f"{self.path}, frame {index}"
                    file.seek(self._find(index, name))
                    *_, colour_size, depth_size = FRAME.unpack(file.read(FRAME.size))
                    found.append((name, file.read(colour_size), file.read(depth_size)))
        except FileNotFoundError as error:
            raise DecodingError(f"{self.path}: no such file", "missing") from error
        except OSError as error:
            raise DecodingError(f"{self.path}: {error.strerror}", "unreadable") from error
        return found

    @cached_property
    def _bounds(self) -> list[int]:
        """Where frames begin, in bytes, and the last of them ends: as far as was looked, as each tells of the next."""
        return [self.start]

    def _find(self, index: int, name: str) -> int:
        """Where a frame begins, in bytes."""
        bounds = self._bounds
        if index + 1 >= len(bounds):
            with open(self.path, "rb", buffering=0) as file:  # else it reads on into the images
                size = file.seek(0, 2)
                while index + 1 >= len(bounds):
                    file.seek(bounds[-1])
                    head = file.read(FRAME.size)
                    is_whole = len(head) == FRAME.size
                    end = bounds[-1] + FRAME.size + sum(FRAME.unpack(head)[-2:]) if is_whole else None
                    if end is None or end > size:
                        raise DecodingError(
                            f"{name}: the file is cut off after {len(bounds) - 1} of {self.num_frames} frames"
                        )
                    bounds.append(end)
        return bounds[index]


def read_scannet(root: Path, split: str) -> list[DepthSequence]:
    """The owners' training or validation recordings, as far as they are there; a warning names those that are not.

    Several recordings show one scene, and make a group.

    Raises:
        ValueError: if the list or all recordings in it are missing, one is not as expected, or a name leads out of the
            folder.
    """
    path = ORIGIN.find(root, LISTS[split], f"Tasks/Benchmark/{LISTS[split]}", f"scans/{LISTS[split]}")
    folder = root / "scans" if (root / "scans").is_dir() else root
    names = [words[0] for _, words in read_lines(path)]
    found = [sequence for name in names if (sequence := _open_scene(Path(path_in(folder, name)))) is not None]
    missing = sorted(set(names) - {sequence.name for sequence in found})
    if not found:
        raise ORIGIN.refusal(f"none of the scenes in {str(path)!r} is in {str(folder)!r}, such as {missing[0]}")
    if missing:
        logger.warning(
            f"skipped {len(missing)} of the {len(names)} scenes in {str(path)!r}, which are not in {str(folder)!r}, "
            f"such as {missing[0]}"
        )
    return found


def _open_scene(folder: Path) -> DepthSequence | None:
    """The recording in a folder; None if there is none."""
    sens = folder / f"{folder.name}.sens"
    if sens.is_file():
        return _open_sens(sens)
    return _open_exported(folder) if (folder / "color").is_dir() else None


def _scene_of(name: str) -> str:
    """scene0000 of scene0000_00."""
    return name.partition("_")[0]


def _open_sens(path: Path) -> SensSequence:
    """
    Raises:
        ValueError: if the header is cut off or damaged, or says that this is another format, or depth is not metric.
    """
    with path.open("rb") as file:
        try:
            version, length = PREFIX.unpack(file.read(PREFIX.size))
            if version != VERSION:
                raise ValueError(f"{str(path)!r}: version of the format must be {VERSION}, got {version}")
            file.seek(min(length, path.stat().st_size) + MATRICES, 1)
            colour_type, depth_type, _, _, width, height, per_metre, num_frames = SIZES.unpack(file.read(SIZES.size))
        except struct.error as error:
            raise ValueError(f"{str(path)!r} is cut off: download it again") from error
        start = file.tell()
    if (colour_type, depth_type) != (JPEG, ZLIB):
        raise ValueError(
            f"{str(path)!r}: types of colour and depth must be {JPEG} (JPEG) and {ZLIB} (16 bits in zlib), got "
            f"{colour_type} and {depth_type}"
        )
    # A count of units, 1000 in all scenes; 0 or 1 would be a disparity or a mistake
    if not 1 < per_metre < 1e6:
        raise ValueError(
            f"{str(path)!r}: depth is not metric: it must have about 1000 units per metre, got {per_metre}"
        )
    if not 0 < num_frames <= MAX_FRAMES:
        raise ValueError(f"{str(path)!r} has {num_frames} frames according to its header: download it again")
    name = path.stem
    sequence = SensSequence(str(path), name, _scene_of(name), num_frames, (height, width), per_metre, start)
    check_metric(str(path), num_frames, sequence.read_depth)
    return sequence


def _open_exported(folder: Path) -> PairedSequence:
    """
    Raises:
        ValueError: if no frame has colour and depth, or depth is not metric.
    """
    colour, depth = numbered(folder / "color", "*.jpg", "*.png"), numbered(folder / "depth", "*.png")
    shared = pair(str(folder), colour, depth)
    images = DepthImages([depth[number] for number in shared], EXPORTED_PER_METRE)
    check_metric(str(folder), len(images), images.read)
    frames = ImageFrames([colour[number] for number in shared])
    return PairedSequence(folder.name, _scene_of(folder.name), frames, images)
