"""A fifth of the videos is bad in every way that is known: a run finishes, names them, and can be repeated."""

import ctypes
import json
import os
import shutil
import signal
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import yaml

from layerlock_hf.cli import pretrain as program
from layerlock_hf.data import datasets


NUM_GOOD = 40
TIMEOUT = 2  # seconds
# What is reported, and whether the video is used all the same
REASONS = {
    "empty.mp4": ("empty", False),
    "text.mp4": ("text, no video", False),
    "truncated.mp4": ("only ", True),
    "rotten.mp4": ("", False),
    "short.mp4": ("has 3 frames, fewer than a clip of 4", True),
    "audio.mp4": ("no video stream", False),
    "missing.mp4": ("no such file", False),
    "pipe.mp4": ("not a regular file", False),
    "hangs.mp4": (f"decoding takes more than {TIMEOUT} seconds", False),
    "kills.mp4": ("Segmentation fault", False),
}


def encode(path, num_frames):
    rng = np.random.default_rng(num_frames)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(num_frames):
            image = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def encode_audio(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = 8000, Fraction(1, 8000), 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A list of 50 videos, ten of them bad."""
    folder = tmp_path_factory.mktemp("videos")
    encode(folder / "good0.mp4", 12)
    for number in range(1, NUM_GOOD):
        encode(folder / f"good{number}.mp4", 12 + number % 5)
    encode(folder / "long.mp4", 60)
    whole = (folder / "long.mp4").read_bytes()
    with av.open(str(folder / "long.mp4")) as container:
        fourth = [packet for packet in container.demux(video=0) if packet.size][3]
        (folder / "truncated.mp4").write_bytes(whole[: fourth.pos + fourth.size // 2])
    (folder / "long.mp4").unlink()
    rng = np.random.default_rng(0)
    rotten = np.frombuffer(whole, np.uint8) ^ rng.integers(0, 256, len(whole), dtype=np.uint8)
    (folder / "rotten.mp4").write_bytes(whole[:32] + rotten[32:].tobytes())
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("this is no video\n" * 10)
    encode(folder / "short.mp4", 3)
    encode_audio(folder / "audio.mp4")
    os.mkfifo(folder / "pipe.mp4")
    for name in ("hangs.mp4", "kills.mp4"):
        shutil.copy(folder / "good0.mp4", folder / name)
    names = [f"good{number}.mp4" for number in range(NUM_GOOD)] + list(REASONS)
    (folder / "list.csv").write_text("\n".join(["path", *names]) + "\n")
    return folder / "list.csv"


@pytest.fixture
def poison(monkeypatch):
    """Two videos do in C what a decoder with a bug would do."""
    read_clip = datasets.read_clip

    def read(source, choose, **options):
        if Path(source).name == "hangs.mp4":
            ctypes.PyDLL(None).pause()  # Python's own handlers of signals never run
        if Path(source).name == "kills.mp4":
            os.kill(os.getpid(), signal.SIGSEGV)
        return read_clip(source, choose, **options)

    monkeypatch.setattr(datasets, "read_clip", read)


@pytest.fixture(scope="module")
def pretrain():
    return program.main


@pytest.fixture
def run(pretrain, tiny_sizes, videos, tmp_path):
    """Two epochs of the list into a folder."""
    settings = {
        "preset": "tiny",
        **tiny_sizes,
        "frame_stride": 1,
        "mask_ratio": 0.75,
        "train_data": str(videos),
        "decode_timeout": TIMEOUT,
        "max_steps": 10,
        "per_device_train_batch_size": 10,
        "save_strategy": "steps",
        "save_steps": 5,
        "logging_steps": 5,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "dataloader_num_workers": 0,
    }

    def run(folder, **changes):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml.safe_dump({**settings, **changes}))
        pretrain(["--config", str(recipe), "--output_dir", str(folder)])
        return (folder / "model.safetensors").read_bytes()

    return run


def reported(folder):
    entries = [json.loads(line) for line in (folder / "bad_videos.jsonl").read_text().splitlines()]
    assert len(entries) == len({entry["path"] for entry in entries})
    return {Path(entry["path"]).name: (entry["reason"], entry["used"]) for entry in entries}


@pytest.mark.slow
def test_bad_videos_of_every_kind(run, poison, tmp_path):
    first, second, resumed = (tmp_path / name for name in ("first", "second", "resumed"))
    weights = run(first, dataloader_num_workers=2)
    entries = reported(first)
    assert entries.keys() == REASONS.keys()
    for name, (reason, used) in REASONS.items():
        assert reason in entries[name][0] and entries[name][0], name
        assert entries[name][1] == used, name
    assert run(second, dataloader_num_workers=1) == weights
    assert reported(second) == entries
    shutil.copytree(first / "checkpoint-5", resumed / "checkpoint-5")
    shutil.copy(second / "bad_videos.jsonl", resumed)
    assert run(resumed, dataloader_num_workers=2, resume_from_checkpoint="auto") == weights
    assert reported(resumed) == entries


def test_a_list_that_is_mostly_bad_stops_the_run(run, videos, tmp_path):
    bad = ("empty", "text", "missing", "pipe", "audio", "rotten")
    names = [*(f"good{number}.mp4" for number in range(5)), *(f"{name}.mp4" for name in bad)]
    source = videos.with_name("mostly_bad.csv")
    source.write_text("\n".join(["path", *names]) + "\n")
    with pytest.raises(SystemExit, match="error: 6 of 11 videos cannot be used.*See .*bad_videos.jsonl: repair"):
        run(tmp_path / "out", train_data=str(source))
