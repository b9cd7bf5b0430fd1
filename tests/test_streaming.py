"""Runs of scripts/pretrain.py on videos that are fetched as they are needed: from a server, and from shards.

Two processes with two data workers each, but where a test says otherwise. A run is 12 steps of 4 clips: two epochs.
"""

import collections
import json
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import av
import forked
import launching
import numpy as np
import pytest
import streaming_run


pytestmark = pytest.mark.slow
NUM_VIDEOS, CLIPS_PER_STEP, NUM_STEPS = 24, 4, 12
# Seconds after which a run that should end counts as hung
PATIENCE = 60


def encode(path: Path, level: int):
    """Eight frames that differ, of about this brightness."""
    ramp = np.linspace(-2, 2, 32)[None, :, None]
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        for index in range(8):
            image = np.broadcast_to(level + ramp + index % 3 - 1, (32, 32, 3)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def videos(tmp_path_factory, write_tar):
    """The same videos as files, in a list of these, and in four shards."""
    folder = tmp_path_factory.mktemp("videos")
    names = [f"v{index:02}.mp4" for index in range(NUM_VIDEOS)]
    for index, name in enumerate(names):
        encode(folder / name, streaming_run.DARKEST + streaming_run.STEP * index)
    (folder / "list.csv").write_text("\n".join(["path", *names]) + "\n")
    for shard in range(4):
        members = [(name, (folder / name).read_bytes()) for name in names[6 * shard : 6 * shard + 6]]
        write_tar(folder / f"shard-{shard}.tar", members)
    return folder


@pytest.fixture(scope="module")
def settings(tiny_sizes):
    return {
        "preset": "tiny",
        **tiny_sizes,
        "frame_stride": 1,
        "mask_ratio": 0.75,
        "max_steps": NUM_STEPS,
        "global_batch_size": CLIPS_PER_STEP,
        "per_device_train_batch_size": 2,
        "save_steps": 2,
        "logging_steps": 1,
        "diagnostics_steps": 0,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_num_workers": 2,
        "ddp_timeout": 2 * PATIENCE,
    }


@dataclass
class Run:
    """What a run leaves.

    Attributes:
        statuses: exit status of each process; None where it had to be killed.
        seen: (position, video, checksum, step) of every clip that was trained on, in order of positions.
    """

    folder: Path
    statuses: list[int | None]

    @property
    def seen(self) -> list[tuple[int, int, int, int]]:
        lines = [line for path in self.folder.glob("seen-*.jsonl") for line in path.read_text().splitlines()]
        return sorted(tuple(json.loads(line)) for line in lines)

    @property
    def videos(self) -> list[int]:
        return [video for _, video, *_ in self.seen]

    @property
    def weights(self) -> bytes:
        return (self.folder / "model.safetensors").read_bytes()

    @property
    def bad(self) -> list[dict]:
        path = self.folder / "bad_videos.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def log(self, rank: int = 0) -> str:
        return (self.folder / f"{rank}.log").read_text()


@pytest.fixture(scope="module")
def run(settings):
    """A function that runs, or goes on with, the program."""

    def run(folder, train_data, accident=None, processes=2, changes=None, timeout_s=0.5, **details) -> Run:
        arguments = {**settings, "train_data": train_data, **(changes or {})}
        ranks = forked.start(processes, _run, folder, arguments, timeout_s, accident, details)
        return Run(folder, forked.finish(ranks, PATIENCE))

    return run


def _run(folder: Path, settings: dict, timeout_s: float, accident: str | None, details: dict):
    streaming_run.run(folder, settings, timeout_s, accident, **details)


def shards(videos: Path) -> str:
    return str(videos / "shard-*.tar")


@pytest.fixture
def site(website, videos):
    website.root = videos
    return website


@pytest.fixture(scope="module")
def alone(run, videos, tmp_path_factory):
    """One process that makes all clips itself."""
    changes = {"per_device_train_batch_size": CLIPS_PER_STEP, "dataloader_num_workers": 0}
    result = run(tmp_path_factory.mktemp("alone"), shards(videos), processes=1, changes=changes)
    assert result.statuses == [0], result.log()
    return result


@pytest.fixture(scope="module")
def undisturbed(settings, videos, tmp_path_factory):
    """On local shards, started by accelerate."""
    folder = tmp_path_factory.mktemp("undisturbed")
    job = json.dumps({**settings, "train_data": shards(videos)})
    launching.launch(streaming_run.__file__, folder, job)
    return Run(folder, [0, 0])


def assert_undisturbed(result: Run, undisturbed: Run):
    assert result.statuses == [0, 0], result.log()
    assert result.weights == undisturbed.weights
    assert result.bad == []


def test_every_video_is_seen_once_per_epoch(alone, undisturbed):
    turns = [(position, step) for position, _, _, step in alone.seen]
    assert turns == [(position, position // CLIPS_PER_STEP) for position in range(CLIPS_PER_STEP * NUM_STEPS)]
    for epoch in range(2):
        assert sorted(alone.videos[epoch * NUM_VIDEOS :][:NUM_VIDEOS]) == list(range(NUM_VIDEOS))
    assert alone.videos[:NUM_VIDEOS] != alone.videos[NUM_VIDEOS:]
    assert undisturbed.seen == alone.seen


def test_clips_from_a_server_are_those_from_shards(run, site, undisturbed, tmp_path):
    result = run(tmp_path / "out", f"{site.url}/list.csv")
    assert result.seen == undisturbed.seen
    assert_undisturbed(result, undisturbed)
    fetched = collections.Counter(path for _, path, _ in site.requests if path.endswith(".mp4"))
    assert len(fetched) == NUM_VIDEOS and set(fetched.values()) == {2}  # once per epoch


def test_a_killed_run_goes_on_with_the_next_video(run, site, undisturbed, tmp_path):
    source = f"{site.url}/list.csv"
    killed = run(tmp_path / "out", source, "kill_rank", rank=1, step=9)
    assert killed.statuses[1] == -9 and killed.statuses[0] not in (0, None)
    time.sleep(0.5)  # data workers of the killed process end the batches that were asked of them
    del site.requests[:]
    for path in killed.folder.glob("seen-*.jsonl"):
        path.unlink()
    resumed = run(tmp_path / "out", source)
    assert resumed.seen == undisturbed.seen[8 * CLIPS_PER_STEP :]
    assert_undisturbed(resumed, undisturbed)
    fetched = sorted(path for _, path, _ in site.requests if path.endswith(".mp4"))
    assert fetched == sorted(f"/v{video:02}.mp4" for video in resumed.videos)


def test_a_mixture_keeps_its_shares(run, videos, tmp_path):
    """Of 128 groups of two clips, in two blocks, three quarters are of the first source, which is twice as large."""
    sources = [str(videos / "shard-[01].tar"), str(videos / "shard-2.tar")]
    changes = {"train_weights": [3, 1], "clips_per_video": 2, "global_batch_size": 16, "max_steps": 16}
    changes |= {"per_device_train_batch_size": 8, "save_steps": 4}
    one = {**changes, "per_device_train_batch_size": 16, "dataloader_num_workers": 0}
    alone = run(tmp_path / "alone", sources, processes=1, changes=one)
    whole = run(tmp_path / "whole", sources, changes=changes)
    assert alone.statuses == [0] and whole.statuses == [0, 0], whole.log()
    assert whole.seen == alone.seen
    groups = whole.videos[::2]
    assert groups == whole.videos[1::2]
    assert len({checksum for _, _, checksum, _ in whole.seen}) > len(groups)  # a group's clips differ
    for block in (groups[:64], groups[64:]):
        counts = collections.Counter(block)
        assert sum(counts[video] for video in range(12)) == 48
    counts = collections.Counter(groups)
    assert [counts[video] for video in range(12)] == [8] * 12
    assert {counts[video] for video in range(12, 18)} <= {5, 6}  # 32 of 6 videos, an epoch each

    killed = run(tmp_path / "killed", sources, "kill_rank", changes=changes, rank=1, step=10)
    assert killed.statuses[1] == -9
    resumed = run(killed.folder, sources, changes=changes)
    assert resumed.statuses == [0, 0], resumed.log()
    assert resumed.weights == whole.weights


def test_a_server_that_is_overloaded_for_a_while(run, site, undisturbed, tmp_path):
    # Four in a row: a request is tried five times. First the two processes read the list
    site.faults = [503, 503, 503, None, None, 503, 503, 429, 429, None, None, "cut", 503, "cut", "hang"]
    result = run(tmp_path / "out", f"{site.url}/list.csv")
    assert site.faults == []
    assert_undisturbed(result, undisturbed)


def copied(videos: Path, folder: Path) -> dict:
    """Shards to be spoilt before position 12 of the run, and the list of all."""
    folder.mkdir()
    for path in videos.glob("*.tar"):
        shutil.copy(path, folder)
    return {"missing": folder / "shard-1.tar", "changed": folder / "shard-2.tar", "position": 12}


def test_shards_that_vanish_or_change(run, videos, undisturbed, tmp_path):
    results = []
    for number in range(2):
        details = copied(videos, tmp_path / f"videos{number}")
        results.append(run(tmp_path / f"out{number}", shards(tmp_path / f"videos{number}"), "spoil", **details))
        assert results[-1].statuses == [0, 0], results[-1].log()
    first, second = results
    assert first.weights == second.weights and first.seen == second.seen
    good = set(range(6)) | set(range(18, 24))
    for seen, expected in zip(first.seen, undisturbed.seen, strict=True):
        is_spoilt = expected[0] >= details["position"] and expected[1] not in good
        assert seen[1] in good if is_spoilt else seen == expected
    reported = {(Path(entry["path"]).name, entry["kind"], entry["used"]) for entry in first.bad}
    expected = {(f"v{index:02}.mp4", "missing" if index < 12 else "changed", False) for index in range(6, 18)}
    assert reported == expected and len(first.bad) == 12
    assert re.search(r"\d bad videos?: .*\d (missing|changed)", first.log())  # while it runs
    assert re.search(r"12 bad videos: 12 unreadable \(6 \w+, 6 \w+\); see .*bad_videos.jsonl", first.log())


def test_too_many_lost_videos_stop_the_run(run, videos, tmp_path):
    details = copied(videos, tmp_path / "videos")
    # With one data worker: another might have met a fourth video by the time that three are too many
    changes = {"max_bad_fraction": 0.1, "dataloader_num_workers": 1}
    result = run(tmp_path / "out", shards(tmp_path / "videos"), "spoil", processes=1, changes=changes, **details)
    assert result.statuses == [1]
    (error,) = [line for line in result.log().splitlines() if "rror" in line]
    assert re.fullmatch(
        r"error: 3 of 24 videos cannot be used \(\d (missing|changed).*\), more than max_bad_fraction=.*", error
    )
    assert "Traceback" not in result.log()


def test_a_run_does_not_go_on_without_a_shard(run, videos, tmp_path):
    """A pattern matches fewer files then, of which no clip that follows would be the next one."""
    missing = copied(videos, tmp_path / "videos")["missing"]
    changes = {"max_steps": 2}
    assert run(tmp_path / "out", shards(tmp_path / "videos"), processes=1, changes=changes).statuses == [0]
    missing.unlink()
    resumed = run(tmp_path / "out", shards(tmp_path / "videos"), processes=1)
    assert resumed.statuses == [1]
    assert re.search(r"^error: .*num_videos=\[24\].*, but it is now .*num_videos=\[18\]", resumed.log(), re.M)


@pytest.mark.parametrize("fault, processes", [("close", 2), ("hang", 1)])
def test_a_server_that_is_gone_stops_the_run(run, site, undisturbed, tmp_path, fault, processes):
    """For good, after 30 videos. Each of ten videos in a row is tried five times, a fifth of a second if it hangs."""
    source, changes = f"{site.url}/list.csv", {"max_bad_fraction": 1.0}
    site.faults = [None] * (processes + 30) + [fault] * 5000
    gone = run(tmp_path / "out", source, processes=processes, changes=changes, timeout_s=0.2)
    assert None not in gone.statuses and 0 not in gone.statuses
    errors = [line for rank in range(processes) for line in gone.log(rank).splitlines() if line.startswith("error")]
    assert errors, gone.log()
    for error in errors:
        assert re.search(r"no clip for position \d+: 10 videos in a row cannot be used, among them .*network: ", error)
        assert error.endswith("Once the network is back, resume from the last checkpoint.")
    site.faults = []
    resumed = run(tmp_path / "out", source, processes=processes, changes=changes)
    assert resumed.statuses == [0] * processes, resumed.log()


def test_a_decoding_process_that_is_killed_costs_nothing(run, videos, undisturbed, tmp_path):
    result = run(tmp_path / "out", shards(videos), "kill_decoding_child", position=21)
    assert (result.folder / "killed").exists()
    assert_undisturbed(result, undisturbed)


def test_a_data_worker_that_is_killed_stops_the_run(run, videos, undisturbed, tmp_path):
    """As by the system when memory runs out."""
    # A clip of the first process, which is asked for four steps before it is trained on, and not during a save
    changes = {"save_steps": 4}
    killed = run(tmp_path / "out", shards(videos), "kill_worker", changes=changes, position=41)
    assert None not in killed.statuses and 0 not in killed.statuses
    (error,) = [line for line in killed.log().splitlines() if "DataLoader worker" in line]
    assert re.fullmatch(r"error: DataLoader worker \(pid.*Resume with --resume_from_checkpoint auto", error)
    assert "Traceback" not in killed.log()
    for path in killed.folder.glob("seen-*.jsonl"):
        path.unlink()
    resumed = run(tmp_path / "out", shards(videos), changes=changes)
    assert resumed.seen == undisturbed.seen[4 * CLIPS_PER_STEP :]
    assert_undisturbed(resumed, undisturbed)
