"""Whether `layerlock embed` gives every frame that FFmpeg decodes to a window, and the right times to the windows.

python benchmarks/embedding_check.py [SOURCE ...] [--window 1s]

A source is a video or a folder of videos; without one, videos of many codecs are made and damaged. Each is embedded by
a small random encoder, and the windows in the files are held against the frames that `ffprobe -show_frames` lists, a
program apart from the library that decodes here: every frame is in a window, no two windows have the same frames, a
window begins with its first frame and ends with the beginning of the frame after it, within a microsecond, which is
what ffprobe prints. Files that differ, and what embedding reports, are listed.
"""

import argparse
import itertools
import json
import random
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import av
import pyarrow.parquet as pq

import layerlock_hf
from layerlock_hf import LayerLockVideoProcessor, LayerLockViTConfig, LayerLockViTModel


PRINTED = 1.001e-6  # seconds: ffprobe rounds, and so do we
TIME = "best_effort_timestamp_time"  # pts_time, or in files without it what ffmpeg takes for it


MADE = {  # what ffmpeg is told, by the name of the file
    "h264.mp4": "-c:v libx264 -bf 2",
    "fragments.mp4": "-c:v libx264 -movflags frag_keyframe+empty_moov",
    "h264.ts": "-c:v libx264",
    "h264.mkv": "-c:v libx264",
    "h264.avi": "-c:v libx264 -bf 2",
    "hevc.mp4": "-c:v libx265",
    "hevc.ts": "-c:v libx265",
    "mpeg4.mp4": "-c:v mpeg4 -q:v 3",
    "mpeg4.avi": "-c:v mpeg4 -bf 2",
    "mpeg2.ts": "-c:v mpeg2video -bf 2",
    "mpeg2.mpg": "-c:v mpeg2video",
    "mjpeg.avi": "-c:v mjpeg",
    "vp8.webm": "-c:v libvpx -b:v 1M",
    "vp9.webm": "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -b:v 1M",
    "av1.mp4": "-c:v libaom-av1 -usage realtime -cpu-used 8",
    "flv1.flv": "-c:v flv1",
    "wmv.wmv": "-c:v msmpeg4",
}


def make_damaged(folder: Path):
    """Videos of six seconds with 40 bits flipped, three stretches set to zero, a tenth of the bytes removed, or, where
    the container allows it, the beginning."""
    source = ["-f", "lavfi", "-i", "testsrc2=d=6:r=25:s=192x144,noise=all_strength=6:all_flags=t"]
    for name, codec in MADE.items():
        path = folder / name
        command = ["ffmpeg", "-v", "quiet", *source, "-pix_fmt", "yuv420p", "-g", "25", *codec.split(), str(path)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        whole, draw = path.read_bytes(), random.Random(name)
        size = len(whole)
        path.unlink()
        flipped, zeroed = bytearray(whole), bytearray(whole)
        for _ in range(40):
            flipped[draw.randrange(size // 8, size - size // 8)] ^= 1 << draw.randrange(8)
        for _ in range(3):
            start = draw.randrange(size // 8, size - size // 8)
            zeroed[start : start + size // 40] = bytes(size // 40)
        start = draw.randrange(size // 8, size - size // 8 - size // 10)
        damaged = {"flipped": flipped, "zeroed": zeroed, "removed": whole[:start] + whole[start + size // 10 :]}
        if path.suffix in (".ts", ".mpg"):
            damaged["begun"] = whole[size // 9 :]
        for kind, data in damaged.items():
            (folder / f"{kind}_{name}").write_bytes(data)


def make_model(folder: str) -> str:
    config = LayerLockViTConfig.from_preset("tiny", num_frames=4, image_size=32, patch_size=16)
    LayerLockViTModel(config).save_pretrained(folder)
    LayerLockVideoProcessor.from_config(config).save_pretrained(folder)
    return folder


def times_by_ffprobe(path: str) -> list[float | None]:
    """When the frames of the best video stream are shown, None where the file does not tell; empty for no video."""
    try:
        with av.open(path) as container:
            stream = container.streams.best("video")
            index = None if stream is None else stream.index
    except av.FFmpegError:
        index = None
    which = ["-select_streams", "v:0" if index is None else str(index)]
    command = ["ffprobe", "-v", "quiet", "-threads", "1", *which, "-show_frames", "-of", "json"]
    found = subprocess.run([*command, "-show_entries", f"frame={TIME}", "-i", path], capture_output=True).stdout
    frames = json.loads(found or "{}").get("frames", [])
    return [float(frame[TIME]) if TIME in frame else None for frame in frames]


def differences(rows: list[dict], times: list[float | None]) -> list[str]:
    """What is not as it should be in the windows of a video; the stride is the window."""
    found = []
    begins = [row["first_frame"] for row in rows]
    ends = [row["first_frame"] + row["num_frames"] for row in rows]
    expected = [0, *ends[:-1]]  # each where the one before ended; the last may begin earlier
    if rows and (begins[:-1] != expected[:-1] or begins[-1] > expected[-1] or ends != sorted(set(ends))):
        found.append("frames between windows, or twice in them")
    num_frames = max(ends, default=0)
    if num_frames != len(times):
        return [*found, f"{num_frames} frames, {len(times)} by ffprobe"]
    if None in times or any(later <= before for before, later in itertools.pairwise(times)):
        found.append("times by ffprobe are missing, or do not ascend")
    for column, places in (("start_seconds", begins), ("end_seconds", ends)):
        known = [(row[column], times[place]) for row, place in zip(rows, places, strict=True) if place < num_frames]
        apart = [abs(ours - theirs) for ours, theirs in known if theirs is not None]
        if max(apart, default=0.0) > PRINTED:
            found.append(f"{sum(each > PRINTED for each in apart)} {column} are up to {max(apart):.6f} s off")
    return found


def main(args: argparse.Namespace):
    counts = Counter()
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(f"{folder}/model")
        if not args.sources:
            (made := Path(folder, "made")).mkdir()
            make_damaged(made)
        for number, source in enumerate(args.sources or [str(made)]):
            out = Path(folder, str(number))
            manifest = layerlock_hf.embed(source, out, model, window=args.window)
            rows = [row for path in sorted(out.glob("data/*.parquet")) for row in pq.read_table(path).to_pylist()]
            by_video = {}
            for row in sorted(rows, key=lambda row: row["window"]):
                by_video.setdefault(row["video"], []).append(row)
            reports = out / "bad_videos.jsonl"
            lines = reports.read_text().splitlines() if reports.exists() else []
            bad = {line["path"]: line for line in map(json.loads, lines)}
            paths = sorted({*by_video, *bad})
            assert len(paths) == manifest["counts"]["videos"], "a video has neither windows nor a reason"
            for path in paths:
                windows, times = by_video.get(path, []), times_by_ffprobe(path)
                found = differences(windows, times)
                counts.update(videos=1, windows=len(windows), frames=len(times), differing=bool(found))
                counts.update({"read in part": path in bad and bool(windows), "not read": not windows})
                if found or path in bad:
                    told = "; ".join(found) or "as ffprobe has it"
                    reason = f" ({bad[path]['reason']})" if path in bad else ""
                    print(f"{Path(path).name}: {told}{reason}", flush=True)
    print(", ".join(f"{name}: {number}" for name, number in counts.items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="*", metavar="SOURCE")
    parser.add_argument("--window", default="1s")
    main(parser.parse_args())
