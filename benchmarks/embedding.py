"""Windows per second of one core: `layerlock_hf.embed` against the script that people write.

python benchmarks/embedding.py [--videos SOURCE] [--window 2s] [--stride 1s] [--preset tiny] [--repeats 3]

The script decodes all frames of a video into memory (PyAV, RGB), loops over its windows, has the processor crop and
resize the 16 frames of each, and runs the model on one window at a time. Both sides run in a process of their own on
one core, with the same model and the same windows, and take turns. Time is that of the processor, children included,
so that other programs on the machine disturb it less; what both need before the first video is read is left out. By
default the encoder takes little of the time, as one on a GPU does, and the videos are two of 15 seconds in full HD, at
30 frames per second, made by ffmpeg (testsrc2).
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch
from transformers import AutoModel

import layerlock_hf
from layerlock_hf import LayerLockVideoProcessor, LayerLockViTConfig, LayerLockViTModel
from layerlock_hf.data import fetch, load_videos
from layerlock_hf.embedding.windows import make_plan


NUM_FRAMES = 16
MADE = {"count": 2, "seconds": 15, "size": "1920x1080"}


def make_videos(folder: Path):
    for number in range(MADE["count"]):
        source = f"testsrc2=d={MADE['seconds']}:r=30:s={MADE['size']},hue=h={90 * number}"
        command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", source, "-pix_fmt", "yuv420p", "-g", "60"]
        subprocess.run([*command, "-preset", "veryfast", str(folder / f"{number}.mp4")], check=True)


def script(source: str, model_name: str, window: float, stride: float) -> list[np.ndarray]:
    """A vector for every whole window of every video."""
    model = AutoModel.from_pretrained(model_name).eval()
    processor = LayerLockVideoProcessor.from_pretrained(model_name)
    begin_clock()
    vectors = []
    for row in load_videos(source):
        with av.open(fetch(row)) as container:
            rate = float(container.streams.video[0].average_rate)
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        for start in np.arange(0, len(frames) / rate - window + 1e-3, stride):
            indices = ((start + (np.arange(NUM_FRAMES) + 0.5) * window / NUM_FRAMES) * rate).astype(int)
            clip = processor(frames[indices], input_data_format="channels_last").pixel_values_videos
            with torch.no_grad():
                vectors.append(model(clip).last_hidden_state.mean(dim=1).numpy())
    return vectors


def begin_clock():
    global _begun
    _begun = processor_seconds()


def processor_seconds() -> float:
    """Of this process and of its children that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def measure(side: str, source: str, model: str, window: str, stride: str) -> tuple[int, float]:
    """Windows, and seconds of the processor, of a side, in this process."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    if side == "script":
        plan = make_plan(window, stride, None, NUM_FRAMES)
        return len(script(source, model, plan.window, plan.stride)), processor_seconds() - _begun
    with tempfile.TemporaryDirectory() as out:
        for number in range(2):  # the first imports
            before = processor_seconds()
            layerlock_hf.embed(source, f"{out}/{number}", model, rank=999, world_size=1000)  # which has no videos
        begun = processor_seconds()
        counts = layerlock_hf.embed(source, f"{out}/out", model, window=window, stride=stride)["counts"]
        return counts["windows"], processor_seconds() - begun - (begun - before)


def main(args: argparse.Namespace):
    with tempfile.TemporaryDirectory() as folder:
        if args.videos is None:
            args.videos = f"{folder}/videos"
            Path(args.videos).mkdir()
            make_videos(Path(args.videos))
        config = LayerLockViTConfig.from_preset(
            args.preset, num_frames=NUM_FRAMES, image_size=224, patch_size=args.patch_size
        )
        LayerLockViTModel(config).save_pretrained(f"{folder}/model")
        LayerLockVideoProcessor.from_config(config).save_pretrained(f"{folder}/model")
        rates = {"script": [], "embed": []}
        for _ in range(args.repeats):
            for side in rates:
                begun = time.perf_counter()
                command = [sys.executable, __file__, "--side", side, "--videos", args.videos]
                command += ["--model", f"{folder}/model", "--window", args.window, "--stride", args.stride]
                line = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
                windows, seconds = map(float, line.split())
                rates[side].append(windows / seconds)
                wall = time.perf_counter() - begun
                print(f"{side}: {windows:.0f} windows, {seconds:.1f} s of the processor ({wall:.0f} s in all)")
    for side, values in rates.items():
        print(f"{side}: {statistics.median(values):.2f} windows per second of a core")
    ratios = [ours / theirs for ours, theirs in zip(rates["embed"], rates["script"], strict=True)]
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos")
    parser.add_argument("--window", default="2s")
    parser.add_argument("--stride", default="1s")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--patch_size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=["script", "embed"], help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(*measure(args.side, args.videos, args.model, args.window, args.stride))
    else:
        main(args)
