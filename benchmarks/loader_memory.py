"""Whether reading clips for long leaks memory or files: what main process, data workers and the children that decode
hold, every 1,000 clips.

python benchmarks/loader_memory.py --num_clips 10000

The videos are small and generated; one in eight is bad (empty, text, cut short, garbled). Every 1,000 clips one of the
children is killed, as the system does when memory runs out.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch

from layerlock_hf.data import BadVideos, ClipTransform, PretrainingClips, PretrainingCollator, RandomMask, load_videos
from layerlock_hf.data.procedural import write_procedural_dataset


NUM_VIDEOS, NUM_BAD = 56, 8
NUM_FRAMES, SIZE = 8, 64
PERIOD = 1000  # clips


def write_videos(folder: Path) -> Path:
    """A folder of small videos, some of them bad."""
    write_procedural_dataset(folder, NUM_VIDEOS, num_frames=24, image_size=SIZE, progress=False)
    videos = folder / "videos"
    garble = np.random.default_rng(0)
    for number, path in enumerate(sorted(videos.iterdir())[:NUM_BAD]):
        whole = path.read_bytes()
        garbled = garble.integers(0, 256, len(whole), dtype=np.uint8).tobytes()
        bad = [b"", b"this is no video\n" * 100, whole[: len(whole) * 2 // 3], whole[:64] + garbled[64:]]
        (videos / f"bad_{number}.mp4").write_bytes(bad[number % len(bad)])
    return videos


def mebibytes(processes: list[psutil.Process]) -> str:
    return " + ".join(f"{process.memory_info().rss / 2**20:.0f}" for process in processes)


def num_files(processes: list[psutil.Process]) -> str:
    return " + ".join(str(process.num_fds()) for process in processes)


def main(num_clips: int, num_workers: int, batch_size: int, clips_per_video: int, augment_on_device: bool):
    with tempfile.TemporaryDirectory() as folder:
        videos = load_videos(str(write_videos(Path(folder))))
        bad_videos = BadVideos(f"{folder}/bad_videos.jsonl", len(videos))
        clips = PretrainingClips(
            videos,
            num_clips,
            num_frames=NUM_FRAMES,
            transform=ClipTransform(SIZE),
            clips_per_video=clips_per_video,
            bad_videos=bad_videos,
            augment_on_device=augment_on_device,
        )
        collator = PretrainingCollator((NUM_FRAMES // 2, SIZE // 16, SIZE // 16), RandomMask(0.75))
        batches = torch.utils.data.DataLoader(clips, batch_size, num_workers=num_workers, collate_fn=collator)
        this = psutil.Process()
        start = time.perf_counter()
        print("clips | clips/s | RSS in MiB: main | workers | children | open files: main | workers | children")
        told = 0
        for number, _ in enumerate(batches, start=1):
            if number * batch_size // PERIOD == told:
                continue
            told = number * batch_size // PERIOD
            workers = this.children()
            children = list(itertools.chain.from_iterable(worker.children() for worker in workers))
            groups = ([this], workers, children)
            cells = [number * batch_size, f"{number * batch_size / (time.perf_counter() - start):.0f}"]
            cells += [*map(mebibytes, groups), *map(num_files, groups)]
            print(" | ".join(map(str, cells)), flush=True)
            if children:
                children[told % len(children)].kill()
        print(bad_videos.summary())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_clips", type=int, default=10_000)
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=20)
    parser.add_argument("--clips_per_video", type=int, default=1)
    parser.add_argument("--augment_on_device", action="store_true")
    torch.set_num_threads(1)
    main(**vars(parser.parse_args()))
