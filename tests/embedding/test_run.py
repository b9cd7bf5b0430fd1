"""Embedding: what is written, that it is right, and that nothing is lost or changed by being stopped."""

import contextlib
import hashlib
import itertools
import json
import os
import random
import signal
import time

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTImageProcessor, ViTModel

import layerlock_hf
from layerlock_hf.data import read_clip
from layerlock_hf.data.transforms import center_crop
from layerlock_hf.embedding import making, reading, records, writing
from layerlock_hf.evaluation import load_encoder


SMALL = {"window": "8f", "stride": "4f", "batch_size": 2, "windows_per_shard": 4, "videos_at_once": 3}


def rows_of(out):
    return pa.concat_tables(map(pq.read_table, sorted(out.glob("data/*.parquet")))).to_pylist()


def tree(out):
    """The files of a folder and what they hold."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_rows_manifest_and_report(videos, model, tmp_path):
    out = tmp_path / "out"
    manifest = layerlock_hf.embed(str(videos), out, model, depths=[2, 0.95, 6], **SMALL)
    assert manifest == json.loads((out / "manifest.json").read_text())
    rows = rows_of(out)
    assert manifest["counts"] == {"windows": len(rows), "rows": len(rows), "videos": 9, "unreadable": 1, "partial": 1}
    assert manifest["columns"] == {"depth_2": [32], "depth_4": [32], "depth_6": [32]}
    for shard in manifest["shards"]:
        assert hashlib.sha256((out / shard["file"]).read_bytes()).hexdigest() == shard["sha256"]
        assert pq.read_metadata(out / shard["file"]).num_rows == shard["rows"]
    v2 = by_video(rows)[str(videos / "v2.mp4")]
    assert [(row["first_frame"], row["num_frames"]) for row in v2] == [(start, 8) for start in (0, 4, 8, 12, 14)]
    assert [12 * row["start_seconds"] for row in v2] == pytest.approx([0, 4, 8, 12, 14])
    assert [12 * row["end_seconds"] for row in v2] == pytest.approx([8, 12, 16, 20, 22])
    bad = [json.loads(line) for line in (out / "bad_videos.jsonl").read_text().splitlines()]
    assert {(os.path.basename(line["path"]), line["kind"], line["used"]) for line in bad} == {
        ("text.mp4", "text", False),
        ("cut.mp4", "damaged", True),
    }
    assert {os.path.basename(name) for name in by_video(rows)} == {p.name for p in videos.iterdir()} - {"text.mp4"}


def by_video(rows):
    rows = sorted(rows, key=lambda row: (row["video"], row["window"]))
    return {name: list(some) for name, some in itertools.groupby(rows, key=lambda row: row["video"])}


def test_vectors_are_those_of_the_encoder(videos, model, tmp_path):
    """Of the clip as the data of a readout has it, alone in its batch."""
    layerlock_hf.embed(str(videos / "v5.mp4"), tmp_path / "out", model, window="4f", stride="3f", depths=[3])
    encoder = load_encoder(model)
    for row in rows_of(tmp_path / "out"):
        start = row["first_frame"]
        clip = read_clip(row["video"], lambda _, start=start: list(range(start, start + 4)))
        pixels = center_crop(clip.frames, 16)[None].float() / 255
        (tokens,) = encoder.tap(pixels, [3])
        np.testing.assert_allclose(row["depth_3"], tokens.mean(dim=1)[0].numpy(), atol=1e-5)


def test_pools_agree(videos, model, tmp_path):
    made = {}
    for pool in ("window", "frame", "grid"):
        manifest = layerlock_hf.embed(str(videos / "v5.mp4"), tmp_path / pool, model, pool=pool, window="8f")
        shape = manifest["columns"]["depth_6"]
        vectors = np.array([row["depth_6"] for row in rows_of(tmp_path / pool)], np.float32)
        made[pool] = vectors.reshape(-1, manifest["steps"], *shape)
    assert [vectors.shape for vectors in made.values()] == [(5, 1, 32), (5, 2, 32), (5, 2, 4, 4, 32)]
    np.testing.assert_allclose(made["grid"].mean(axis=(2, 3)), made["frame"], atol=1e-5)
    np.testing.assert_allclose(made["frame"].mean(axis=1, keepdims=True), made["window"], atol=1e-5)
    first, second = rows_of(tmp_path / "frame")[:2]
    assert (first["step"], first["first_frame"], first["num_frames"]) == (0, 0, 3)
    assert (second["step"], second["first_frame"], second["num_frames"]) == (1, 4, 3)


def test_datasets_loads_it(videos, model, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    layerlock_hf.embed(str(videos), tmp_path / "out", model, **SMALL)
    loaded = datasets.load_dataset(str(tmp_path / "out" / "data"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.to_list() == rows_of(tmp_path / "out")


class Stopped(Exception):
    """What stands for a kill."""


@pytest.mark.parametrize(("owner", "name"), [(writing, "write_aside"), (writing, "write_record"), (records, "merged")])
@pytest.mark.slow
def test_stopped_anywhere_it_ends_with_the_same_bytes(owner, name, videos, model, tmp_path, monkeypatch):
    """Before a shard, its record or the manifest is written."""
    whole = layerlock_hf.embed(str(videos), tmp_path / "whole", model, **SMALL)
    assert len(whole["shards"]) > 3
    real = getattr(owner, name)
    for stop_at in (0, 1, 2):
        with monkeypatch.context() as patch:
            count = itertools.count()

            def stop(*arguments, count=count, stop_at=stop_at, **settings):
                if next(count) == stop_at:
                    raise Stopped
                return real(*arguments, **settings)

            patch.setattr(owner, name, stop)
            try:
                layerlock_hf.embed(str(videos), tmp_path / "out", model, **SMALL)
            except Stopped:
                continue
    assert layerlock_hf.embed(str(videos), tmp_path / "out", model, **SMALL) == whole
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_bytes(videos, model, tmp_path):
    settings = SMALL | {"windows_per_shard": 2}
    arguments, out = (str(videos), tmp_path / "out", model), tmp_path / "out"
    whole = layerlock_hf.embed(arguments[0], tmp_path / "whole", model, num_workers=2, **settings)
    draw, num_kills, num_started = random.Random(0), 0, 0
    while not (out / "manifest.json").exists():
        num_started += 1
        assert num_started < 100
        num_shards = len(list(out.glob("data/*.parquet")))
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(Exception):
                layerlock_hf.embed(*arguments, num_workers=2, **settings)
            os._exit(0)
        # Somewhere between a shard and the next but one
        is_over = False
        while num_kills < 10 and not is_over and len(list(out.glob("data/*.parquet"))) < num_shards + 1:
            time.sleep(0.005)
            is_over = os.waitpid(pid, os.WNOHANG)[0] == pid
        if num_kills < 10 and not is_over:
            time.sleep(draw.uniform(0, 0.02))
            os.kill(pid, signal.SIGKILL)
            num_kills += 1
        if not is_over:
            os.waitpid(pid, 0)
    assert num_kills >= 5, "more shards are needed"  # a fast machine writes several between two kills
    assert json.loads((out / "manifest.json").read_text()) == whole
    assert tree(out) == tree(tmp_path / "whole")


def test_what_is_done_is_not_done_again(videos, model, tmp_path, monkeypatch):
    first = layerlock_hf.embed(str(videos), tmp_path / "out", model, **SMALL)
    monkeypatch.setattr(making, "Lanes", None)
    assert layerlock_hf.embed(str(videos), tmp_path / "out", model, **SMALL) == first


@pytest.mark.slow
def test_neither_workers_nor_ranks_change_a_vector(videos, model, tmp_path):
    layerlock_hf.embed(str(videos), tmp_path / "alone", model, **SMALL)
    layerlock_hf.embed(str(videos), tmp_path / "two", model, num_workers=2, **SMALL)
    assert tree(tmp_path / "alone") == tree(tmp_path / "two")
    first = layerlock_hf.embed(str(videos), tmp_path / "ranks", model, rank=1, world_size=2, **SMALL)
    assert not (tmp_path / "ranks" / "manifest.json").exists() and "position" in first
    manifest = layerlock_hf.embed(str(videos), tmp_path / "ranks", model, rank=0, world_size=2, **SMALL)
    alone, ranks = (by_video(rows_of(tmp_path / name)) for name in ("alone", "ranks"))
    assert alone.keys() == ranks.keys() and manifest["counts"]["rows"] == sum(map(len, alone.values()))
    for name, rows in alone.items():
        for ours, theirs in zip(rows, ranks[name], strict=True):
            np.testing.assert_allclose(ours.pop("depth_6"), theirs.pop("depth_6"), atol=1e-5)
            assert ours == theirs


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"window": "4f"}, "window was '8f' there, and is '4f'"),
        ({"depths": [3]}, r"depths was \[6\] there, and is \[3\]"),
        ({"batch_size": 3}, "batch_size was 2 there, and is 3"),
        ({"format": "safetensors"}, "format was 'parquet' there, and is 'safetensors'"),
        ({"world_size": 2}, "world_size must be 1, with which .* was begun, got 2: give that, or choose another OUT"),
    ],
)
def test_other_settings_are_refused(setting, told, videos, model, tmp_path):
    layerlock_hf.embed(str(videos / "v0.mp4"), tmp_path / "out", model, **SMALL)
    with pytest.raises(ValueError, match=told):
        layerlock_hf.embed(str(videos / "v0.mp4"), tmp_path / "out", model, **(SMALL | setting))


def test_other_weights_and_videos_are_refused(videos, model, tmp_path, save_model):
    layerlock_hf.embed(str(videos / "v0.mp4"), tmp_path / "out", model, **SMALL)
    with pytest.raises(ValueError, match=r"the list has changed \(it had 1 videos and has 9; names and sizes count\)"):
        layerlock_hf.embed(str(videos), tmp_path / "out", model, **SMALL)
    other = save_model(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=f"model must be {model}, which made the vectors, got {other}, whose weights"):
        layerlock_hf.embed(str(videos / "v0.mp4"), tmp_path / "out", other, **SMALL)
    layerlock_hf.embed(str(videos / "v0.mp4"), tmp_path / "changed", other, **SMALL)
    save_model(tmp_path / "other", seed=2)
    with pytest.raises(ValueError, match=f"the weights or the configuration of {other} have changed: give that, or"):
        layerlock_hf.embed(str(videos / "v0.mp4"), tmp_path / "changed", other, **SMALL)


def test_a_second_process_is_told_of(videos, model, tmp_path):
    out = tmp_path / "out"
    layerlock_hf.embed(str(videos / "v0.mp4"), out, model, **SMALL)
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        with records.locked(out / "ranks" / ".00000"):
            os.write(told, b"1")
            signal.pause()
    try:
        os.read(ready, 1)
        with pytest.raises(ValueError, match="another process is at work on rank 0"):
            layerlock_hf.embed(str(videos / "v0.mp4"), out, model, **SMALL)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_video_that_crashes_its_decoder_keeps_what_precedes(videos, model, tmp_path, monkeypatch):
    """And so does one whose decoder dies once, of what is not the video's doing."""
    real, deaths = reading._Stream._render, tmp_path / "deaths"

    def render(reader, frame, *rest):
        if reader.source.endswith("v3.mp4") and frame.pts * frame.time_base >= 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        if reader.source.endswith("v4.mp4") and frame.pts * frame.time_base >= 1 and not deaths.exists():
            deaths.touch()
            os.kill(os.getpid(), signal.SIGSEGV)
        return real(reader, frame, *rest)

    monkeypatch.setattr(reading._Stream, "_render", render)
    layerlock_hf.embed(str(videos), tmp_path / "out", model, **(SMALL | {"window": "4f"}))
    rows = {os.path.basename(name): rows for name, rows in by_video(rows_of(tmp_path / "out")).items()}
    assert [row["first_frame"] for row in rows["v3.mp4"]] == [0, 4, 8]
    assert [row["first_frame"] for row in rows["v4.mp4"]] == [0, 4, 8, 12, 16, 20, 24, 28]
    assert '"kind": "crash"' in (tmp_path / "out" / "bad_videos.jsonl").read_text()


@pytest.mark.slow
def test_a_video_that_hangs_its_decoder_keeps_what_precedes(videos, model, tmp_path, monkeypatch):
    real = reading._Stream._render

    def render(reader, frame, *rest):
        time.sleep(60 * (frame.pts * frame.time_base >= 1))
        return real(reader, frame, *rest)

    monkeypatch.setattr(reading._Stream, "_render", render)
    settings = SMALL | {"window": "4f", "decode_timeout": 5.0}
    counts = layerlock_hf.embed(str(videos / "v3.mp4"), tmp_path / "out", model, **settings)["counts"]
    assert [row["first_frame"] for row in rows_of(tmp_path / "out")] == [0, 4, 8]
    assert (counts["partial"], counts["unreadable"]) == (1, 0)
    assert '"kind": "timeout"' in (tmp_path / "out" / "bad_videos.jsonl").read_text()


def test_a_model_of_images_sees_the_frames_one_by_one(videos, tmp_path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes), add_pooling_layer=False).save_pretrained(
        tmp_path / "vit"
    )
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
    settings = {"num_frames": 4, "pool": "frame", "window": "4f"}
    manifest = layerlock_hf.embed(str(videos / "v0.mp4"), tmp_path / "out", str(tmp_path / "vit"), **settings)
    assert manifest["steps"] == 4 and manifest["settings"]["ignores_aspect"]
    rows = rows_of(tmp_path / "out")
    assert [(row["first_frame"], row["num_frames"]) for row in rows] == [(index, 1) for index in range(12)]
    vectors = torch.tensor([row["depth_2"] for row in rows])
    assert len(vectors.unique(dim=0)) > 6, "frames of other brightness have other vectors"


def test_folders_of_pictures(model, tmp_path):
    folder = tmp_path / "frames" / "clip"
    folder.mkdir(parents=True)
    for index in range(8):
        Image.new("RGB", (20, 16), (8 * index,) * 3).save(folder / f"{index}.png")
    layerlock_hf.embed(str(tmp_path / "frames"), tmp_path / "out", model, window="2s", frame_rate=2.0)
    assert [(row["first_frame"], row["start_seconds"]) for row in rows_of(tmp_path / "out")] == [(0, 0.0), (4, 2.0)]
    (folder / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    layerlock_hf.embed(str(tmp_path / "frames"), tmp_path / "damaged", model, window="2s", frame_rate=2.0)
    assert [(row["num_frames"], row["start_seconds"]) for row in rows_of(tmp_path / "damaged")] == [(3, 0.0), (4, 2.0)]
    assert "only 7 of 8 frames decode" in (tmp_path / "damaged/bad_videos.jsonl").read_text()
    layerlock_hf.embed(str(tmp_path / "frames"), tmp_path / "refused", model, window="2s")
    assert "give window and stride in frames, or a frame_rate" in (tmp_path / "refused/bad_videos.jsonl").read_text()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"pool": "max"}, "pool must be one of window, frame, grid, got 'max'"),
        ({"depths": ["deep"]}, "depths must be layers passed, such as 12, or fractions"),
        ({"depths": [7]}, "depths must be between 0 and the 6 layers of this encoder, got 7"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"rank": 2, "world_size": 2}, "rank must be at least 0 and less than world_size=2, got 2"),
    ],
)
def test_impossible_settings(settings, told, videos, model, tmp_path):
    with pytest.raises(ValueError, match=told):
        layerlock_hf.embed(str(videos), tmp_path / "out", model, **settings)
