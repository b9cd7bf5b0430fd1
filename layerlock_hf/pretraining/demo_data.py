"""The videos of the demonstration."""

from pathlib import Path

from ..data.procedural import write_procedural_dataset
from ..utils.cores import count_cores


VIDEO_FRAMES = 24
VIDEO_SIZE = 64  # pixels
MIN_SHARED = 64  # videos from which on several processes render a set
EASY = "easy_"  # how the names of easy sets begin


def write_data(folder: Path, num_videos: int, num_workers: int | None = None):
    """Unlabelled videos to pretrain on, and in `probe` what `layerlock probe` reads: labels, depth, tracks of objects.

    No two sets share a scene. Those of `probe/easy_*` have one object before a camera that stands still.

    Args:
        num_videos: to pretrain on. The probes have as many in all, but no more than 600 to fit and 400 to test, and of
            easy scenes as many; a third of their clips show the object in the middle.
        num_workers: processes that render, one per core if None.
    """
    num_train, num_test = max(16, min(600, num_videos * 3 // 5)), max(16, min(400, num_videos * 2 // 5))
    sizes = {
        "train": num_videos,
        "probe/train": num_train,
        "probe/test": num_test,
        "probe/easy_train": num_train,
        "probe/easy_test": num_test,
    }
    if num_workers is None:
        num_workers = count_cores()
    for seed, (name, size) in enumerate(sizes.items()):
        print(f"{name}: {size} videos of {VIDEO_FRAMES} frames, {VIDEO_SIZE} x {VIDEO_SIZE} pixels", flush=True)
        is_easy = Path(name).name.startswith(EASY)
        write_procedural_dataset(
            folder / name,
            size,
            seed=seed,
            num_frames=VIDEO_FRAMES,
            image_size=VIDEO_SIZE,
            with_depth=name != "train",
            num_objects=1 if is_easy else None,
            camera_moves=not is_easy,
            # A core renders a small set before a second process has started
            num_workers=num_workers if num_workers > 1 and size >= MIN_SHARED else 0,
        )
