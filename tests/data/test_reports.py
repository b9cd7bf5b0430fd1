import json
import multiprocessing

import pytest

from layerlock_hf.data import BadData, BadVideos


@pytest.fixture(params=["file", "memory"])
def path(request, tmp_path):
    return str(tmp_path / "bad.jsonl") if request.param == "file" else None


def test_counts_by_kind(path):
    bad_videos = BadVideos(path, 100)
    assert (bad_videos.count(), bad_videos.counts()) == (0, {})
    bad_videos.add("a.mp4", "no answer", used=False, kind="network")
    assert bad_videos.summary() == "1 bad video: 1 unreadable (1 network)"
    for name in ("b.mp4", "c.mp4", "b.mp4"):
        bad_videos.add(name, "broken", used=name == "c.mp4")
    assert bad_videos.count() == 3
    assert bad_videos.counts() == {"damaged": 2, "network": 1}
    assert bad_videos.summary() == "3 bad videos: 2 unreadable (1 network, 1 damaged), 1 read in part (1 damaged)"


def test_lines(tmp_path):
    BadVideos(str(tmp_path / "bad.jsonl"), 3).add("a.mp4", "no \n answer \u00e9", used=False, kind="network")
    (line,) = (tmp_path / "bad.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "path": "a.mp4",
        "kind": "network",
        "reason": "no \n answer \u00e9",
        "used": False,
    }


def test_what_stops_a_run_is_told_by_kind(path):
    bad_videos = BadVideos(path, 10, max_bad_fraction=0.2)
    bad_videos.add("used.mp4", "short", used=True, kind="too short")
    bad_videos.add("a.mp4", "no answer", used=False, kind="network")
    bad_videos.add("b.mp4", "broken", used=False)
    with pytest.raises(
        BadData, match=r"3 of 10 videos cannot be used \(2 network, 1 damaged\), more than max_bad_fraction=0.2 allows"
    ):
        bad_videos.add("c.mp4", "no answer", used=False, kind="network")
    with pytest.raises(BadData):  # by whatever is met next
        bad_videos.add("a.mp4", "no answer", used=False, kind="network")


def test_others_are_counted_and_nothing_is_read_twice(tmp_path):
    path = tmp_path / "bad.jsonl"
    ours, theirs = (BadVideos(str(path), 100) for _ in range(2))
    theirs.add("a.mp4", "broken", used=False)
    assert ours.count() == 1
    size = path.stat().st_size
    path.write_bytes(b"x" * (size - 1) + b"\n")  # unreadable, were it read again
    theirs.add("b.mp4", "broken", used=False, kind="empty")
    ours.add("b.mp4", "broken", used=False, kind="empty")
    assert ours.counts() == theirs.counts() == {"damaged": 1, "empty": 1}
    assert len(path.read_text().splitlines()) == 2


def test_a_new_run_empties_the_file(tmp_path):
    path = tmp_path / "bad.jsonl"
    BadVideos(str(path), 100).add("old.mp4", "broken", used=False)
    bad_videos = BadVideos(str(path), 100)
    assert bad_videos.count() == 1
    path.write_text("")
    assert bad_videos.count() == 0
    bad_videos.add("new.mp4", "broken", used=False)
    assert bad_videos.count() == 1


def test_a_line_cut_short_costs_no_other(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"path": "old.mp4", "reason": "broken", "used": false}\n{"path": "to')
    bad_videos = BadVideos(str(path), 100)
    assert bad_videos.counts() == {"damaged": 1}  # of an earlier version, without a kind
    bad_videos.add("new.mp4", "broken", used=True, kind="empty")
    assert bad_videos.counts() == BadVideos(str(path), 100).counts() == {"damaged": 1, "empty": 1}
    assert json.loads(path.read_text().splitlines()[-1])["path"] == "new.mp4"


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


def test_what_the_network_cost_an_earlier_attempt_is_forgiven(tmp_path):
    path = str(tmp_path / "bad.jsonl")
    first = BadVideos(path, 10, 0.3)
    first.add("broken.mp4", "no frame can be decoded", used=False)
    for index in range(2):
        first.add(f"far{index}.mp4", "network: no answer in time", used=False, kind="network")
    with pytest.raises(BadData, match="1 damaged.*once the network is back, resume from the last checkpoint"):
        first.add("far2.mp4", "network: no answer in time", used=False, kind="network")
    again = BadVideos(path, 10, 0.3)
    again.add("empty.mp4", "empty", used=False, kind="empty")
    assert again.counts() == {"damaged": 1, "empty": 1}
    again.add("far0.mp4", "network: no answer in time", used=False, kind="network")
    with pytest.raises(BadData, match="4 of 10 .*repair or remove"):
        again.add("text.mp4", "text", used=False, kind="text")
