"""`layerlock embed` on a long video: its windows, its memory as the video goes on, and what a kill costs.

python benchmarks/embedding_long.py [--minutes 120] [--size 640x360] [--num_workers 4] [--kill_at 60] [--folder DIR]

The video is a minute made by ffmpeg (testsrc2 with noise, H.264, 30 frames per second), repeated without encoding it
again. Windows are of 2 s, those of five minutes make a file. The encoder is small and random. Memory is that of all
processes, sampled every second: resident, and proportional (PSS), where pages that they share count once. With
--kill_at, all of them are killed by SIGKILL once so many minutes of the video are written, and the command is given
again. Seconds are those of the processor.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq

from embedding_check import make_model


RATE, WINDOW, PER_SHARD = 30, 2, 150  # frames per second, seconds, windows


def make_video(path: Path, minutes: int, size: str):
    minute = path.with_name("minute.mp4")
    source = f"testsrc2=d=60:r={RATE}:s={size},noise=all_strength=4:all_flags=t"
    command = ["ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", source, "-pix_fmt", "yuv420p", "-g", "60"]
    subprocess.run([*command, "-preset", "ultrafast", "-crf", "30", str(minute)], check=True)
    command = ["ffmpeg", "-v", "error", "-y", "-stream_loop", str(minutes - 1), "-i", str(minute), "-c", "copy"]
    subprocess.run([*command, str(path)], check=True)


def minutes_written(out: Path) -> float:
    records = list(out.glob("ranks/*.json"))
    return sum(json.loads(path.read_text())["counts"]["windows"] for path in records) * WINDOW / 60


def tree_of(process: subprocess.Popen) -> list[psutil.Process]:
    try:
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def used_by(processes: list[psutil.Process]) -> tuple[float, float, float]:
    """MiB resident, MiB proportional, seconds of the processor, of those that still live."""
    resident = proportional = seconds = 0.0
    for process in processes:
        try:
            memory, times = process.memory_full_info(), process.cpu_times()
        except (psutil.NoSuchProcess, psutil.ZombieProcess, FileNotFoundError):
            continue
        resident, proportional = resident + memory.rss / 2**20, proportional + memory.pss / 2**20
        seconds += times.user + times.system
    return resident, proportional, seconds


def follow(command: list[str], out: Path, kill_at: float) -> bool:
    """Run it and print, for every file, what memory it took; whether it came to its end, or was killed."""
    begun = minutes_written(out)
    process, peaks, last = subprocess.Popen(command, stderr=subprocess.DEVNULL), (0.0, 0.0), begun
    while process.poll() is None:
        processes = tree_of(process)
        resident, proportional, seconds = used_by(processes)
        peaks = max(peaks[0], resident), max(peaks[1], proportional)
        written = minutes_written(out)
        if written > last:
            about = f"resident at most {peaks[0]:.0f} MiB, proportional {peaks[1]:.0f} MiB"
            print(
                f"minute {last:.0f} to {written:.0f}: {about}, {len(processes)} processes, {seconds:.0f} s", flush=True
            )
            last, peaks = written, (0.0, 0.0)
        if begun < kill_at <= written:
            for each in processes:
                each.kill()
            process.wait()
            return False
        time.sleep(1)
    if process.returncode:
        raise SystemExit(f"layerlock embed ended with status {process.returncode}")
    return True


def check(out: Path, minutes: int):
    """Every frame is in one window, and every time is that of its frame."""
    rows = [row for path in sorted(out.glob("data/*.parquet")) for row in pq.read_table(path).to_pylist()]
    rows.sort(key=lambda row: row["window"])
    assert len(rows) == minutes * 60 // WINDOW, len(rows)
    for number, row in enumerate(rows):
        assert (row["window"], row["first_frame"], row["num_frames"]) == (
            number,
            number * RATE * WINDOW,
            RATE * WINDOW,
        )
        ends = row["start_seconds"] - number * WINDOW, row["end_seconds"] - (number + 1) * WINDOW
        assert max(map(abs, ends)) < 1e-6, row
        assert all(map(math.isfinite, row["depth_8"]))
    print(
        f"{len(rows)} windows; the last begins at {rows[-1]['start_seconds']:.6f} s, ends at {row['end_seconds']:.6f}"
    )


def main(args: argparse.Namespace):
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder, out = Path(name), Path(name) / "out"
        make_video(folder / "long.mp4", args.minutes, args.size)
        command = [sys.executable, "-m", "layerlock_hf", "embed", str(folder / "long.mp4"), str(out)]
        command += ["--model", make_model(f"{folder}/model"), "--window", f"{WINDOW}s", "--device", "cpu"]
        command += ["--windows_per_shard", str(PER_SHARD), "--num_workers", str(args.num_workers)]
        if not follow(command, out, args.kill_at):
            print(f"killed at minute {minutes_written(out):.0f}, and begun again")
            follow(command, out, math.inf)
        check(out, args.minutes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=int, default=120)
    parser.add_argument("--size", default="640x360")
    parser.add_argument("--num_workers", type=int, default=4)
    parser.add_argument("--kill_at", type=float, default=math.inf, help="minute of the video")
    parser.add_argument("--folder", help="where the video is made (default: among temporary files)")
    main(parser.parse_args())
