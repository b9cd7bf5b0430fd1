"""Clips per second of the data of pretraining, against three ways in which scripts load videos.

python benchmarks/loader.py --videos SOURCE [--min_seconds 5] [--passes 5] [--num_workers 2]

All sides make clips of 16 x 224 x 224 at stride 2 (resize, random crop, flip, uint8) of the same videos, with the same
windows in time, on one core, and take turns video by video; then by a DataLoader with workers. The
others are (a) PyAV decodes the whole video, which is then indexed; (b) random access by decord (pip install decord;
left out where it is missing); (c) `datasets.Video` decodes (torchcodec), followed by torch operations; (d) torchcodec
as fast as it goes, without a scan of the file and resizing frames before they become RGB. A ratio is that of the total
times; its range that over the passes. SOURCE may be what `layerlock prepare` made of some videos:
our side reads its shards, the others the same videos as plain files.
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from pathlib import Path

import av
import datasets
import torch
import torch.nn.functional as F
from torchcodec.decoders import VideoDecoder
from torchcodec.transforms import Resize
from tqdm import tqdm

from layerlock_hf.data import ClipTransform, PretrainingClips, fetch, generator_for, load_videos


NUM_FRAMES, STRIDE, SIZE, RESIZE_FACTOR = 16, 2, 224, 1.15
NUM_ROUNDS = 3  # with workers
NUM_WARM_UP = 2  # batches per worker
SPAN = (NUM_FRAMES - 1) * STRIDE + 1


class Script(torch.utils.data.Dataset):
    """A loader as scripts have it: decode a window, resize the shortest side, crop, flip."""

    def __init__(self, paths: list[str], num_passes: int, decode):
        self.paths, self.num_passes, self.decode = paths, num_passes, decode

    def __len__(self):
        return len(self.paths) * self.num_passes

    def __getitem__(self, position: int) -> torch.Tensor:
        order = generator_for("epoch", 0, position // len(self.paths))  # as of PretrainingClips
        index = torch.randperm(len(self.paths), generator=order)[position % len(self.paths)]
        generator = generator_for("clip", 0, position, 0)
        fraction = float(torch.rand((), generator=generator))

        def choose(num_frames: int) -> list[int]:
            start = int(fraction * max(1, num_frames - SPAN + 1))
            return list(range(start, num_frames, STRIDE))[:NUM_FRAMES]

        frames = self.decode(self.paths[index], choose)
        height, width = frames.shape[-2:]
        scale = RESIZE_FACTOR * SIZE / min(height, width)
        size = (max(SIZE, round(height * scale)), max(SIZE, round(width * scale)))
        frames = F.interpolate(frames, size=size, mode="bilinear", antialias=True)
        down, right, flip = torch.rand(3, generator=generator).tolist()
        top, left = round(down * (size[0] - SIZE)), round(right * (size[1] - SIZE))
        frames = frames[..., top : top + SIZE, left : left + SIZE]
        return (frames.flip(-1) if flip < 0.5 else frames).contiguous()


def whole_by_pyav(path, choose):
    with av.open(path) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.stack([torch.from_numpy(frames[index]) for index in choose(len(frames))]).permute(0, 3, 1, 2)


def random_access_by_decord(path, choose):
    from decord import VideoReader

    reader = VideoReader(path, num_threads=1)
    return torch.from_numpy(reader.get_batch(choose(len(reader))).asnumpy()).permute(0, 3, 1, 2)


def by_datasets(path, choose):
    decoder = datasets.Video().decode_example({"path": path, "bytes": None})
    return decoder.get_frames_at(choose(len(decoder))).data


def resized_by_the_decoder(path, choose):
    metadata = VideoDecoder(path, seek_mode="approximate").metadata
    scale = RESIZE_FACTOR * SIZE / min(metadata.height, metadata.width)
    size = (round(metadata.height * scale), round(metadata.width * scale))
    decoder = VideoDecoder(path, seek_mode="approximate", transforms=[Resize(size)])
    return decoder.get_frames_at(choose(len(decoder))).data


SCRIPTS = {
    "PyAV, whole video": whole_by_pyav,
    "decord": random_access_by_decord,
    "datasets.Video": by_datasets,
    "torchcodec, approximate, resizes while it decodes": resized_by_the_decoder,
}


def sides(videos, paths: list[str], num_passes: int) -> dict[str, torch.utils.data.Dataset]:
    transform = ClipTransform(SIZE)

    def ours(clips_per_video: int):
        num_samples = len(paths) * num_passes * clips_per_video
        return PretrainingClips(videos, num_samples, transform=transform, clips_per_video=clips_per_video)

    loaders = {"layerlock": ours(1), "layerlock, clips_per_video=4": ours(4)}
    for name, decode in SCRIPTS.items():
        try:
            decode(paths[0], lambda num_frames: [0])
        except ImportError as error:
            print(f"left out {name}: {error}")
        else:
            loaders[name] = Script(paths, num_passes, decode)
    return loaders


def in_turns(loaders: dict, num_videos: int, num_passes: int) -> dict[str, list[float]]:
    """Seconds per clip of each side in each pass, on one core; video by video, in an order that changes."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    seconds = {name: [0.0] * num_passes for name in loaders}
    for position in tqdm(range(num_videos * num_passes), desc="videos"):
        names = list(loaders)
        shift = position % len(names)
        for name in names[shift:] + names[:shift]:
            start = time.perf_counter()
            if "=4" in name:
                loaders[name].__getitems__(list(range(4 * position, 4 * position + 4)))
            else:
                loaders[name][position]
            taken = (time.perf_counter() - start) / (4 if "=4" in name else 1)
            seconds[name][position // num_videos] += taken / num_videos
    os.sched_setaffinity(0, cores)
    return seconds


def by_workers(loaders: dict, num_videos: int, num_passes: int, num_workers: int) -> dict[str, list[float]]:
    """Seconds per clip, in as many rounds; the sides take turns. Starting the workers is not counted."""
    seconds = {name: [] for name in loaders}
    for name in [name for _ in range(NUM_ROUNDS) for name in tqdm(loaders, desc="by workers")]:
        batches = torch.utils.data.DataLoader(loaders[name], batch_size=4, num_workers=num_workers, collate_fn=len)
        iterator = iter(batches)
        for _ in range(NUM_WARM_UP * num_workers):
            next(iterator)
        start = time.perf_counter()
        num_clips = sum(itertools.islice(iterator, num_videos * num_passes // 4 - NUM_WARM_UP * num_workers))
        seconds[name].append((time.perf_counter() - start) / num_clips)
        del iterator
    return seconds


def report(title: str, seconds: dict[str, list[float]]):
    ours = seconds["layerlock"]
    print(f"\n{title}\n\n| loader | clips/s | layerlock is faster by |\n| --- | --- | --- |")
    for name, theirs in seconds.items():
        ratios = [other / own for own, other in zip(ours, theirs, strict=True)]
        ratio = f"{sum(theirs) / sum(ours):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {name} | {1 / statistics.mean(theirs):.1f} | {ratio if theirs is not ours else ''} |")


def long_enough(path: str, min_seconds: float) -> bool:
    with av.open(path) as container:
        stream = container.streams.video[0]
        length = container.duration / av.time_base if container.duration else 0
        return length >= min_seconds and float(length * stream.average_rate) > SPAN


def plain_files(videos, folder: str) -> list[str]:
    """The videos of a table as files."""
    paths = []
    for index in range(len(videos)):
        source = fetch(videos[index])
        if isinstance(source, bytes):
            path = Path(folder) / f"{index}.mp4"
            path.write_bytes(source)
            source = str(path)
        paths.append(source)
    return paths


def main(source: str, min_seconds: float, num_passes: int, num_workers: int):
    torch.set_num_threads(1)
    videos = load_videos(source)
    with tempfile.TemporaryDirectory() as folder:
        paths = plain_files(videos, folder)
        kept = [index for index, path in enumerate(paths) if long_enough(path, min_seconds)]
        videos, paths = videos.select(kept), [paths[index] for index in kept]
        print(f"{len(paths)} videos of {source} of at least {min_seconds:g} seconds, {num_passes} passes")
        loaders = sides(videos, paths, num_passes)
        report("One core", in_turns(loaders, len(paths), num_passes))
        report(f"{num_workers} workers", by_workers(loaders, len(paths), num_passes, num_workers))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", required=True, help="Folder, or what `layerlock prepare` made.")
    parser.add_argument("--min_seconds", type=float, default=0.0, help="Leave out shorter videos (default 0).")
    parser.add_argument("--passes", type=int, default=5, help="Clips of each video (default 5).")
    parser.add_argument("--num_workers", type=int, default=2, help="Of the DataLoader (default 2).")
    arguments = parser.parse_args()
    main(arguments.videos, arguments.min_seconds, arguments.passes, arguments.num_workers)
