import json
import os
import pickle
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from layerlock_hf.data import (
    BadVideos,
    BatchAugmentation,
    ClipTransform,
    DecodingError,
    PretrainingClips,
    PretrainingCollator,
    RandomMask,
    datasets,
    generator_for,
    isolation,
    load_videos,
    read_clip,
)


@pytest.fixture
def videos(folder):
    return load_videos(str(folder))


TRANSFORM = ClipTransform(32)


def clips(videos, num_samples=21, transform=TRANSFORM, **options):
    return PretrainingClips(videos, num_samples, num_frames=4, transform=transform, **options)


def mixed(tmp_path, *paths):
    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps({"path": path}) for path in paths))
    return load_videos(str(tmp_path / "list.jsonl"))


def entries(report):
    return {Path(entry["path"]).name: entry for entry in map(json.loads, report.read_text().splitlines())}


def test_samples(videos):
    sample = clips(videos)[5]
    assert sample["pixel_values_videos"].shape == (4, 3, 32, 32)
    assert sample["pixel_values_videos"].dtype == torch.uint8
    assert sample["position"] == 5
    with pytest.raises(IndexError):
        clips(videos)[21]


def test_every_video_once_per_epoch_in_changing_order(videos):
    dataset = clips(videos, 21)
    order = [dataset.order.video_at(position) for position in range(21)]
    assert [sorted(order[start : start + 7]) for start in (0, 7, 14)] == [list(range(7))] * 3
    assert order[:7] != order[7:14]


def test_a_clip_depends_on_seed_and_position_alone(videos):
    forward = {position: clips(videos, decode_timeout=0)[position] for position in range(14)}
    dataset = pickle.loads(pickle.dumps(clips(videos)))
    for position in reversed(range(14)):
        assert torch.equal(dataset[position]["pixel_values_videos"], forward[position]["pixel_values_videos"])
    other = clips(videos, seed=1)
    assert any(not torch.equal(other[p]["pixel_values_videos"], forward[p]["pixel_values_videos"]) for p in range(14))


def test_workers_change_nothing(videos):
    batches = []
    for num_workers in (0, 2):
        loader = DataLoader(
            clips(videos, 14),
            batch_size=4,
            num_workers=num_workers,
            collate_fn=PretrainingCollator((2, 4, 4), RandomMask(0.75), seed=0),
        )
        batches.append(list(loader))
    for alone, shared in zip(*batches, strict=True):
        assert alone.keys() == shared.keys()
        assert all(torch.equal(alone[name], shared[name]) for name in alone)


def test_frames_are_a_window_with_the_stride(tmp_path, video):
    dataset = clips(mixed(tmp_path, video), 40, frame_stride=3, transform=ClipTransform(32, resize_factor=1.0))
    starts = set()
    for position in range(40):
        brightness = dataset[position]["pixel_values_videos"].float().mean(dim=(1, 2, 3))
        assert torch.allclose(brightness.diff(), torch.tensor(24.0), atol=4)
        starts.add(round((float(brightness[0]) - 7.5) / 8))
    assert min(starts) >= 0 and max(starts) <= 20 and len(starts) > 10


def test_short_videos_repeat_their_last_frame(tmp_path, folder):
    sample = clips(mixed(tmp_path, str(folder / "short.mp4")), frame_stride=2)[0]
    frames = sample["pixel_values_videos"]
    assert sample["is_padded"] is True
    assert torch.equal(frames[2], frames[3])
    assert not torch.equal(frames[1], frames[2])
    assert clips(mixed(tmp_path, str(folder / "v0.mp4")))[0]["is_padded"] is False


def test_a_stride_that_leaves_most_of_a_clip_to_its_last_frame(tmp_path, folder):
    """Which is told, as it may be a mistake; a clip that lacks a frame or two is not."""
    report = tmp_path / "bad.jsonl"
    for stride, told in ((8, False), (1000, True)):
        bad_videos = BadVideos(str(report), 1)
        clips(mixed(tmp_path, str(folder / "v0.mp4")), frame_stride=stride, bad_videos=bad_videos)[0]
        assert report.is_file() == told
    entry = entries(report)["v0.mp4"]
    assert (entry["kind"], entry["used"]) == ("too short", True)
    assert "of which a clip shows 1 at frame_stride=1000, and repeats the last" in entry["reason"]


def test_bad_videos_are_replaced_and_reported_once(tmp_path, folder, broken, truncated):
    videos = mixed(tmp_path, broken, truncated, str(folder / "v0.mp4"), str(folder / "v2.mp4"))
    report = tmp_path / "bad.jsonl"
    bad_videos = BadVideos(str(report), len(videos))
    dataset = clips(videos, 80, bad_videos=bad_videos)
    again = clips(videos, 80)
    for position in range(80):
        assert torch.equal(dataset[position]["pixel_values_videos"], again[position]["pixel_values_videos"])
    assert bad_videos.count() == 2
    assert entries(report)["broken.mp4"]["used"] is False
    assert entries(report)["truncated.mp4"]["used"] is True
    assert entries(report)["truncated.mp4"]["reason"]


def test_workers_share_the_report(tmp_path, folder, broken):
    videos = mixed(tmp_path, broken, str(folder / "v0.mp4"))
    bad_videos = BadVideos(str(tmp_path / "bad.jsonl"), len(videos))
    loader = DataLoader(clips(videos, 16, bad_videos=bad_videos), num_workers=2)
    assert len(list(loader)) == 16
    assert bad_videos.count() == 1


def test_too_many_bad_videos_stop_the_run(tmp_path, folder, broken):
    other = tmp_path / "other.mp4"
    other.write_bytes(b"")
    videos = mixed(tmp_path, broken, str(other), str(folder / "v0.mp4"))
    dataset = clips(videos, bad_videos=BadVideos(str(tmp_path / "bad.jsonl"), len(videos)))
    with pytest.raises(RuntimeError, match="2 of 3 videos cannot be used.*more than max_bad_fraction.*bad.jsonl"):
        [dataset[position] for position in range(21)]


def test_no_usable_video_ends_after_ten_attempts(tmp_path, broken):
    dataset = clips(mixed(tmp_path, broken), bad_videos=BadVideos(None, 1, max_bad_fraction=1.0))
    with pytest.raises(RuntimeError, match="10 videos in a row.*broken.mp4"):
        dataset[0]


def test_embedded_videos_are_named_by_row(video):
    from datasets import Dataset, Video

    rows = [{"path": "a.mp4", "bytes": content} for content in (b"broken", Path(video).read_bytes())]
    bad_videos = BadVideos(None, 2)
    dataset = clips(
        Dataset.from_dict({"video": rows}).cast_column("video", Video(decode=False)), bad_videos=bad_videos
    )
    counts = Counter(dataset[position]["pixel_values_videos"].shape for position in range(4))
    assert counts == {(4, 3, 32, 32): 4}
    assert list(bad_videos._names) == ["row 0 (a.mp4)"]


def test_a_video_that_hangs_is_waited_for_once(tmp_path, video, monkeypatch):
    hanging = str(tmp_path / "hanging.mp4")
    Path(hanging).write_bytes(Path(video).read_bytes())
    read_clip = datasets.read_clip

    def read(source, choose, **options):
        if source == hanging:
            with open(tmp_path / "log", "a") as log:
                log.write("hang\n")
            time.sleep(1000)
        return read_clip(source, choose, **options)

    monkeypatch.setattr(datasets, "read_clip", read)
    bad_videos = BadVideos(str(tmp_path / "bad.jsonl"), 4)
    dataset = clips(mixed(tmp_path, hanging, *[video] * 3), 12, bad_videos=bad_videos, decode_timeout=1)
    assert len([dataset[position] for position in range(12)]) == 12
    assert (tmp_path / "log").read_text() == "hang\n"
    assert list(entries(tmp_path / "bad.jsonl")) == ["hanging.mp4"]


def test_rows_without_a_video_are_bad_videos(video):
    from datasets import Dataset, Video

    rows = [None, {"path": None, "bytes": None}, *[{"path": video, "bytes": None}] * 3]
    bad_videos = BadVideos(None, 5)
    dataset = clips(
        Dataset.from_dict({"video": rows}).cast_column("video", Video(decode=False)), bad_videos=bad_videos
    )
    assert len([dataset[position] for position in range(5)]) == 5
    assert sorted(bad_videos._names) == ["row 0 (None)", "row 1 (None)"]


def test_addresses_are_asked_by_us_and_never_by_the_decoder(tmp_path, server, video):
    address, requests = server
    lists = [f"{address}/a.mp4", f"{address}/b.mp4?c", address.replace("http", "rtmp"), f"file:{video}"]
    (tmp_path / "list.csv").write_text("\n".join(["path", *lists, *[video] * 4]) + "\n")
    videos = load_videos(str(tmp_path / "list.csv"))
    bad_videos = BadVideos(str(tmp_path / "bad.jsonl"), len(videos))
    dataset = clips(videos, 8, bad_videos=bad_videos)
    assert len([dataset[position] for position in range(8)]) == 8
    kinds = {name: entry["kind"] for name, entry in entries(tmp_path / "bad.jsonl").items()}
    assert sorted(kinds.values()) == ["missing", "missing", "missing", "unreadable"]
    assert set(requests) == {"/a.mp4", "/b.mp4?c"}


def test_names_in_the_report_stay_in_it(tmp_path, video):
    hostile = [
        "../escaped",
        "/nowhere/escaped",
        'a"}\n{"path": "innocent.mp4", "reason": "x", "used": false}',
        "nul\0.mp4",
    ]
    videos = mixed(tmp_path, *hostile, *[video] * 4)
    (tmp_path / "out" / "in").mkdir(parents=True)
    report = tmp_path / "out" / "in" / "bad.jsonl"
    before = sorted(tmp_path.rglob("*"))
    dataset = clips(videos, 8, bad_videos=BadVideos(str(report), len(videos)))
    assert len([dataset[position] for position in range(8)]) == 8
    assert sorted(tmp_path.rglob("*")) == sorted([*before, report])
    reported = [json.loads(line)["path"] for line in report.read_text().splitlines()]
    assert sorted(reported) == sorted(row["path"] for row in videos["video"][:4])


def test_the_transform_is_applied(videos):
    dataset, again = (clips(videos, transform=ClipTransform(24, crop_scale=(0.3, 1.0))) for _ in range(2))
    for position in (3, 0):
        frames = dataset[position]["pixel_values_videos"]
        assert frames.shape == (4, 3, 24, 24)
        assert torch.equal(frames, again[position]["pixel_values_videos"])


def test_draws_are_those_of_earlier_versions(tmp_path, video):
    """A run goes on with the clips it began with: what is drawn, from what, and in which order stays."""
    transform = ClipTransform(32, crop_scale=(0.3, 1.0), jitter_strength=1.0)
    dataset = clips(mixed(tmp_path, video), transform=transform, seed=5)
    for position in (0, 7):
        generator = generator_for("clip", 5, position, 0)
        start = int(float(torch.rand((), generator=generator)) * (30 - 7 + 1))
        frames = read_clip(video, lambda available, start=start: list(range(start, start + 7, 2))).frames
        augmentation = transform.draw(48, 64, generator)
        expected = augmentation.finish(augmentation.crop(frames), 32)
        assert torch.equal(dataset[position]["pixel_values_videos"], expected)


@pytest.fixture
def mixture(tmp_path, folder, broken, truncated):
    """Two sources with bad videos in each."""
    (tmp_path / "a.csv").write_text("\n".join(["path", broken, truncated, str(folder / "v0.mp4")]))
    (tmp_path / "b.csv").write_text("\n".join(["path", str(folder / "short.mp4"), "missing.mp4"]))
    return load_videos([str(tmp_path / "a.csv"), str(folder), str(tmp_path / "b.csv")])


def same(samples, others):
    for sample, other in zip(samples, others, strict=True):
        assert sample.keys() == other.keys()
        for name, value in sample.items():
            assert torch.equal(value, other[name]) if torch.is_tensor(value) else value == other[name]
    return True


@pytest.mark.parametrize("clips_per_video", [1, 4])
@pytest.mark.parametrize("augment_on_device", [False, True])
def test_a_batch_holds_what_its_positions_hold(mixture, clips_per_video, augment_on_device):
    options = {"clips_per_video": clips_per_video, "source_weights": [0.3, 0.5, 0.2], "seed": 1}
    options |= {"augment_on_device": augment_on_device, "transform": ClipTransform(24, jitter_strength=1.0)}
    one, many = (clips(mixture, 96, bad_videos=BadVideos(None, 11, 1.0), **options) for _ in range(2))
    batches = [[*range(40)], [*range(56, 96)], [5, 3, 3, 90, 4], []]
    for positions in batches:
        assert same(many.__getitems__(positions), [one[position] for position in positions])
    assert many.bad_videos.counts() == one.bad_videos.counts() != {}
    with pytest.raises(IndexError, match="position must be at least 0 and less than num_samples=96, got 96"):
        many.__getitems__([0, 96])


def test_augmenting_later_makes_the_same_clips(mixture):
    early, late = (
        DataLoader(
            clips(mixture, 32, ClipTransform(32, jitter_strength=1.0), clips_per_video=2, augment_on_device=is_late),
            batch_size=8,
            num_workers=1,
            collate_fn=PretrainingCollator((2, 4, 4), RandomMask(0.75)),
        )
        for is_late in (False, True)
    )
    finish = BatchAugmentation(32, 4)
    for expected, batch in zip(early, late, strict=True):
        difference = finish(batch)["pixel_values_videos"].int() - expected["pixel_values_videos"].int()
        assert difference.abs().max() <= 1  # colours: sums in another order


def log_reads(monkeypatch, path):
    """From now on `read_clip` writes a line per call to a file."""
    read_clip = datasets.read_clip

    def read(source, choose, **options):
        with open(path, "a") as log:
            log.write(f"{Path(source).name}\n")
        return read_clip(source, choose, **options)

    monkeypatch.setattr(datasets, "read_clip", read)


def test_a_group_is_decoded_once_and_augmented_apart(videos, tmp_path, monkeypatch):
    log_reads(monkeypatch, tmp_path / "log")
    dataset = clips(videos, 28, ClipTransform(32, resize_factor=2.0), clips_per_video=4)
    samples = dataset.__getitems__(range(28))
    assert len((tmp_path / "log").read_text().split()) == 7
    assert len(set((tmp_path / "log").read_text().split())) == 7
    for start in range(0, 28, 4):
        group = [sample["pixel_values_videos"] for sample in samples[start : start + 4]]
        assert len({clip.numpy().tobytes() for clip in group}) > 1
        # Frame i has brightness 8 i, and crops change it by less than half of that: the same frames
        means = torch.stack([clip.float().mean(dim=(1, 2, 3)) for clip in group])
        assert (means - means[0]).abs().max() < 4


def test_a_group_is_replaced_together(tmp_path, folder, broken, monkeypatch):
    log_reads(monkeypatch, tmp_path / "log")
    dataset = clips(mixed(tmp_path, broken, str(folder / "v0.mp4"), str(folder / "v2.mp4")), 36, clips_per_video=4)
    samples = dataset.__getitems__(range(36))
    shown = [name for name in (tmp_path / "log").read_text().split() if name != "broken.mp4"]
    assert len(shown) == 9
    assert same([dataset[position] for position in range(36)], samples)


class Network:
    """Stands for `fetching`: videos whose names begin with "far" come over a network."""

    def __init__(self, monkeypatch, folder):
        self.folder, self.fetched_by, self.num_at_once, self.is_down = folder, [], 0, set()
        self.lock, self.num_now = threading.Lock(), 0
        monkeypatch.setattr(datasets, "is_remote", lambda row: "far" in row["video"]["path"])
        monkeypatch.setattr(datasets, "fetch", self.fetch)

    def fetch(self, row):
        path = Path(row["video"]["path"])
        if not path.name.startswith("far"):
            return str(path)
        with self.lock:
            self.fetched_by.append(os.getpid())
            self.num_now += 1
            self.num_at_once = max(self.num_at_once, self.num_now)
        time.sleep(0.05)
        with self.lock:
            self.num_now -= 1
        if path.name in self.is_down:
            raise DecodingError("network: no answer", "network")
        return (self.folder / path.name.removeprefix("far_")).read_bytes()


def test_remote_videos_are_fetched_at_once_and_here(tmp_path, folder, monkeypatch):
    names = [f"sub/v{index}.mp4" if index % 2 else f"v{index}.mp4" for index in range(6)]
    near = mixed(tmp_path, *[str(folder / name) for name in names], *[str(folder / name) for name in names])
    expected = clips(near, 12).__getitems__(range(12))
    (tmp_path / "flat").mkdir()
    for name in names:
        (tmp_path / "flat" / Path(name).name).write_bytes((folder / name).read_bytes())
    network = Network(monkeypatch, tmp_path / "flat")
    far = mixed(tmp_path, *[f"far_{Path(name).name}" for name in names], *[str(folder / name) for name in names])
    dataset, num_threads = clips(far, 12), threading.active_count()
    assert same(dataset.__getitems__(range(12)), expected)
    assert network.fetched_by == [os.getpid()] * 6
    assert 2 <= network.num_at_once <= datasets.NUM_FETCHES
    assert threading.active_count() == num_threads


def test_a_video_that_cannot_be_fetched_is_replaced(tmp_path, folder, monkeypatch):
    network = Network(monkeypatch, folder)
    network.is_down.add("far_v0.mp4")
    videos = mixed(tmp_path, "far_v0.mp4", "far_v2.mp4", str(folder / "v4.mp4"))
    dataset = clips(videos, 6, bad_videos=BadVideos(None, 3), clips_per_video=2)
    samples = dataset.__getitems__(range(6))
    assert dataset.bad_videos.counts() == {"network": 1}
    # There is another chance each time, of which nothing of the clips depends
    assert same([dataset[position] for position in range(6)], samples)


def test_a_child_that_is_killed_once_costs_no_clip(tmp_path, videos, monkeypatch):
    expected = clips(videos, 7).__getitems__(range(7))
    read_clip = datasets.read_clip

    def read(*arguments, **options):
        clip = read_clip(*arguments, **options)
        if len(list(tmp_path.iterdir())) < 3:
            Path(tmp_path / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return clip

    monkeypatch.setattr(datasets, "read_clip", read)
    monkeypatch.setattr(isolation, "PAUSES", (0.0, 0.01, 0.02))
    dataset = clips(videos, 7)
    assert same([dataset[position] for position in range(7)], expected)
    assert len(list(tmp_path.iterdir())) == 3
    assert dataset.bad_videos.count() == 0


def test_a_frame_rate_is_that_of_the_decoder(videos, monkeypatch):
    asked = []

    def read(source, choose, **options):
        asked.append((options["frame_rate"], options["device"]))
        return read_clip(source, choose, **options)

    monkeypatch.setattr(datasets, "read_clip", read)
    clips(videos, 7, frame_rate=4.0, decode_timeout=0)[0]
    assert asked == [(4.0, "cpu")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_decoding_on_a_gpu_needs_one(videos):
    with pytest.raises(ValueError, match="decode_device in recipes. must be cpu where PyTorch finds no GPU, got cuda"):
        clips(videos, device="cuda")


@pytest.mark.parametrize(
    "options",
    [
        {"num_frames": 0},
        {"frame_stride": 0},
        {"decode_timeout": -1.0},
        {"clips_per_video": 0},
        {"source_weights": [0.5, 0.5]},
        {"frame_rate": 0.0},
        {"device": "tpu"},
    ],
)
def test_wrong_options(videos, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        PretrainingClips(videos, 4, **options)


@pytest.mark.slow
def test_workers_that_are_not_forked_make_the_same_clips(videos):
    loader = DataLoader(clips(videos, 8, clips_per_video=2), 4, num_workers=1, multiprocessing_context="forkserver")
    expected = clips(videos, 8, clips_per_video=2).__getitems__(range(8))
    frames = torch.cat([batch["pixel_values_videos"] for batch in loader])
    assert torch.equal(frames, torch.stack([sample["pixel_values_videos"] for sample in expected]))
