import json
import multiprocessing
import pickle
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from layerlock_hf.data import BadVideos, PretrainingClips, PretrainingCollator, RandomMask, datasets, load_videos


@pytest.fixture
def videos(folder):
    return load_videos(str(folder))


def clips(videos, num_samples=21, **options):
    return PretrainingClips(videos, num_samples, num_frames=4, image_size=32, **options)


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
    order = [dataset._video_at(position) for position in range(21)]
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
        loader = torch.utils.data.DataLoader(
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
    dataset = clips(mixed(tmp_path, video), 40, frame_stride=3, resize_factor=1.0)
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
    loader = torch.utils.data.DataLoader(clips(videos, 16, bad_videos=bad_videos), num_workers=2)
    assert len(list(loader)) == 16
    assert bad_videos.count() == 1


def test_too_many_bad_videos_stop_the_run(tmp_path, folder, broken):
    other = tmp_path / "other.mp4"
    other.write_bytes(b"")
    videos = mixed(tmp_path, broken, str(other), str(folder / "v0.mp4"))
    dataset = clips(videos, bad_videos=BadVideos(str(tmp_path / "bad.jsonl"), len(videos)))
    with pytest.raises(RuntimeError, match="2 of 3 videos cannot be decoded.*bad.jsonl"):
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
    assert list(bad_videos._used) == ["row 0 (a.mp4)"]


def test_a_video_that_hangs_is_waited_for_once(tmp_path, video, monkeypatch):
    hanging = str(tmp_path / "hanging.mp4")
    Path(hanging).write_bytes(Path(video).read_bytes())
    read_clip = datasets.read_clip

    def read(source, choose):
        if source == hanging:
            with open(tmp_path / "log", "a") as log:
                log.write("hang\n")
            time.sleep(1000)
        return read_clip(source, choose)

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
    assert sorted(bad_videos._used) == ["row 0 (None)", "row 1 (None)"]


def test_addresses_in_a_list_are_not_requested(tmp_path, server, video):
    address, requests = server
    lists = [f"{address}/a.mp4", f"{address}/b.mp4?c", address.replace("http", "rtmp"), f"file:{video}"]
    (tmp_path / "list.csv").write_text("\n".join(["path", *lists, *[video] * 4]) + "\n")
    videos = load_videos(str(tmp_path / "list.csv"))
    bad_videos = BadVideos(None, len(videos))
    dataset = clips(videos, 8, bad_videos=bad_videos)
    assert len([dataset[position] for position in range(8)]) == 8
    assert bad_videos.count() == 4 and requests == []
    from datasets import Dataset, Video

    rows = [{"path": name, "bytes": None} for name in (*lists, *[video] * 4)]
    bad_videos = BadVideos(None, len(rows))
    videos = Dataset.from_dict({"video": rows}).cast_column("video", Video(decode=False))
    dataset = clips(videos, 8, bad_videos=bad_videos)
    assert len([dataset[position] for position in range(8)]) == 8
    assert bad_videos.count() == 4 and requests == []


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


def add_many(path):
    bad_videos = BadVideos(path, 1000)
    for index in range(50):
        bad_videos.add(f"{index}.mp4", "broken", used=False)


def test_processes_write_each_name_once(tmp_path):
    path = str(tmp_path / "bad.jsonl")
    processes = [multiprocessing.get_context("fork").Process(target=add_many, args=(path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert BadVideos(path, 1000).count() == 50


def test_crops_of_random_shape(videos):
    dataset, again = clips(videos, crop_scale=(0.3, 1.0)), clips(videos, crop_scale=(0.3, 1.0))
    for position in (3, 0):
        frames = dataset[position]["pixel_values_videos"]
        assert frames.shape == (4, 3, 32, 32)
        assert torch.equal(frames, again[position]["pixel_values_videos"])
    plain = clips(videos)[3]["pixel_values_videos"]
    assert torch.equal(plain, clips(videos, resize_factor=1.15)[3]["pixel_values_videos"])
    assert not torch.equal(plain, dataset[3]["pixel_values_videos"])


def test_colours_change_only_if_asked(videos):
    plain, changed = (clips(videos, jitter_strength=strength)[3]["pixel_values_videos"] for strength in (0.0, 1.0))
    assert torch.equal(plain, clips(videos)[3]["pixel_values_videos"])
    assert not torch.equal(plain, changed)
    again = clips(videos, jitter_strength=1.0)[3]["pixel_values_videos"]
    assert torch.equal(changed, again)


def test_one_kind_of_crop(videos):
    with pytest.raises(ValueError, match="resize_factor is 1.15 and crop_scale"):
        clips(videos, resize_factor=1.15, crop_scale=(0.3, 1.0))


@pytest.mark.parametrize(
    "options",
    [
        {"num_frames": 0},
        {"frame_stride": 0},
        {"image_size": 0},
        {"resize_factor": 0.5},
        {"crop_scale": (0.0, 1.0)},
        {"crop_scale": (0.3,)},
        {"jitter_strength": -1.0},
        {"decode_timeout": -1.0},
    ],
)
def test_wrong_options(videos, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        PretrainingClips(videos, 4, **options)
