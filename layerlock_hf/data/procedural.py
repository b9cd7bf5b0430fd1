"""A dataset of procedural videos with exact depth and the tracks of their objects, which needs no download."""

import csv
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .procedural_scenes import FOCAL_LENGTH, MOTIONS, SHAPES, SWAY, ProceduralScene, make_scene, video_scene


__all__ = [
    "FOCAL_LENGTH",
    "FRAME_RATE",
    "MOTIONS",
    "SHAPES",
    "SWAY",
    "ProceduralScene",
    "make_scene",
    "read_depth",
    "read_tracks",
    "video_scene",
    "write_procedural_dataset",
]

FRAME_RATE = 24  # frames per second

_RENDER_CHUNK = 32  # frames rendered at once, which bounds the memory of long videos


def write_procedural_dataset(
    folder: str | Path,
    num_videos: int,
    seed: int = 0,
    num_frames: int = 48,
    image_size: int = 64,
    with_depth: bool = False,
    progress: bool = True,
    num_objects: int | None = None,
    camera_moves: bool = True,
    num_workers: int = 0,
) -> Path:
    """Writes videos/*.mp4, with `with_depth` also depth/*.npz, and last the list videos.csv, whose path it returns.

    The list has the columns path, label, motion and depth; paths are relative to `folder`, and depth is empty where
    there is none. `read_depth` and `read_tracks` read what is beside a video.

    Args:
        image_size: in pixels and even, as the video format halves the resolution of colours.
        num_objects, camera_moves: as for `make_scene`; one object in front of a static camera is easiest.
        num_workers: number of processes that write in parallel (0: only this one). The files do not depend on it.
    """
    if num_videos < 1 or num_frames < 1:
        raise ValueError(f"num_videos and num_frames must be positive, got {num_videos} and {num_frames}")
    if image_size < 16 or image_size % 2:
        raise ValueError(f"image_size must be even and at least 16, got {image_size}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if num_workers < 0:
        raise ValueError(f"num_workers must not be negative, got {num_workers}")
    video_scene(seed, 0, num_objects, camera_moves)  # raises before there is a folder
    folder = Path(folder)
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    if with_depth:
        (folder / "depth").mkdir(exist_ok=True)

    videos = _Videos(folder, num_videos, seed, num_frames, image_size, with_depth, num_objects, camera_moves)
    # A loader of data brings what processes need: one thread each, an end with this process, and errors told here
    written = DataLoader(videos, batch_size=None, num_workers=num_workers)
    rows = list(tqdm(written, desc="videos", disable=not progress))
    list_path = folder / "videos.csv"
    with list_path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "motion", "depth"), *rows])
    return list_path


@dataclass(frozen=True)
class _Videos(Dataset):
    """Item i writes video i, and is its row of the list."""

    folder: Path
    num_videos: int
    seed: int
    num_frames: int
    image_size: int
    with_depth: bool
    num_objects: int | None
    camera_moves: bool

    def __len__(self) -> int:
        return self.num_videos

    def __getitem__(self, index: int) -> tuple[str, int, str, str]:
        scene, label = video_scene(self.seed, index, self.num_objects, self.camera_moves)
        times = torch.arange(self.num_frames)
        chunks = [scene.render(part, self.image_size) for part in times.split(_RENDER_CHUNK)]
        frames, depth = (torch.cat(parts) for parts in zip(*chunks, strict=True))
        video_name = f"videos/{index:06d}.mp4"
        depth_name = f"depth/{index:06d}.npz" if self.with_depth else ""
        _write_video(self.folder / video_name, frames)
        if self.with_depth:
            positions = scene.positions(times)
            tracks = {"positions": positions.numpy(), "is_seen": _is_seen(scene, positions, depth).numpy()}
            np.savez_compressed(self.folder / depth_name, depth=depth.numpy(), **tracks)
        return video_name, label, scene.motion, depth_name


def read_depth(path: str | Path) -> Tensor:
    """Depth float32 (T, H, W) in metres from a file of `write_procedural_dataset`."""
    with open(path, "rb") as file, np.load(file) as arrays:  # NumPy leaves a damaged file open
        return torch.from_numpy(arrays["depth"])


def read_tracks(path: str | Path) -> tuple[Tensor, Tensor]:
    """The objects' tracks from the same file, farthest object first.

    Returns:
        Positions of their centres, float32 (O, T, 2) as in `ProceduralScene.positions`, and whether these are visible,
        bool (O, T): within the frame and not hidden.

    Raises:
        ValueError: if the file was written by a version without tracks.
    """
    with open(path, "rb") as file, np.load(file) as arrays:
        if "positions" not in arrays:
            raise ValueError(f"{path} holds no tracks of objects: write the dataset again with with_depth=True")
        return torch.from_numpy(arrays["positions"]), torch.from_numpy(arrays["is_seen"])


def _is_seen(scene: ProceduralScene, positions: Tensor, depth: Tensor) -> Tensor:
    """Whether the pixel of a centre (O, T, 2) has the depth of its object, in depth maps (T, H, W): (O, T)."""
    image_size = depth.shape[-1]
    column, row = (positions * image_size).floor().long().unbind(dim=-1)
    is_inside = ((positions >= 0) & (positions < 1)).all(dim=-1)
    limit = image_size - 1
    found = depth[torch.arange(len(depth)), row.clamp(0, limit), column.clamp(0, limit)]
    own = torch.tensor([[board.depth] for board in scene.billboards])
    return is_inside & (found == own)


def _write_video(path: Path, frames: Tensor) -> None:
    """Encodes uint8 RGB frames (T, 3, H, W) as H.264."""
    with av.open(str(path), "w") as container:
        # Same bytes each time: several threads depend on the number of cores, and x264's macroblock tree (mbtree) was
        # seen to vary from run to run at 64 pixels.
        options = {"crf": "16", "preset": "fast", "threads": "1", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=FRAME_RATE, options=options)
        stream.height, stream.width = frames.shape[-2:]
        stream.pix_fmt = "yuv420p"
        for frame in frames.permute(0, 2, 3, 1).contiguous().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
