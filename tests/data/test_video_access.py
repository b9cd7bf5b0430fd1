"""From rows to videos: whole files, tars and parquet files, local and remote, and what happens when they fail."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from layerlock_hf.data import DecodingError, fetch, files, is_remote, load_videos, name_of


VIDEOS = {f"v{index}.mp4": np.random.default_rng(index).bytes(10_000 + index) for index in range(6)}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(files, "FIRST_PAUSE", 0.001)


def fill(folder, write_tar):
    """The same videos as files, in a tar and in a parquet file of three row groups."""
    for name, data in VIDEOS.items():
        (folder / "plain").mkdir(exist_ok=True)
        (folder / "plain" / name).write_bytes(data)
    write_tar(folder / "a.tar", VIDEOS.items())
    rows = [{"bytes": data, "path": name} for name, data in VIDEOS.items()]
    pyarrow.parquet.write_table(pyarrow.table({"video": rows}), folder / "a.parquet", row_group_size=2)


@pytest.fixture
def site(website, write_tar):
    fill(website.root, write_tar)
    return website


KINDS = ["plain", "a.tar", "a.parquet"]


@pytest.mark.parametrize("kind", KINDS)
def test_all_videos_come_from_everywhere(site, kind):
    local, remote = load_videos(str(site.root / kind)), load_videos(f"{site.url}/{kind}")
    del site.requests[:]
    for index, data in enumerate(VIDEOS.values()):
        found = fetch(local[index])
        assert (Path(found).read_bytes() if kind == "plain" else found) == data
        assert not is_remote(local[index]) and is_remote(remote[index])
        assert fetch(remote[index]) == data
    assert [request[0] for request in site.requests] == ["GET"] * len(VIDEOS)  # one each


def test_a_row_of_a_parquet_file_costs_no_more_than_its_group(site):
    videos = load_videos(f"{site.url}/a.parquet")
    del site.requests[:]
    fetch(videos[3])
    ((_, _, span),) = site.requests
    start, end = map(int, span[6:].split("-"))
    assert 20_000 < end - start < 21_000


def test_names():
    def row(path=None, content=None, **address):
        return {"video": {"path": path, "bytes": content}, **address}

    assert name_of(row("/a.mp4"), 7) == "/a.mp4"
    assert name_of(row("/s.tar", offset=512, size=1, name="sub/a.mp4"), 7) == "/s.tar/sub/a.mp4"
    assert name_of(row("/s.parquet", row_group=1, row=2, column="video"), 7) == "/s.parquet/row group 1, row 2"
    assert name_of(row("a.mp4", b"x"), 7) == "row 7 (a.mp4)"
    assert name_of({"video": None}, 7) == "row 7 (None)"


def test_rows_of_other_tables():
    assert fetch({"video": {"path": "a.mp4", "bytes": None}}) == "a.mp4"
    assert fetch({"video": {"path": "a.mp4", "bytes": b"x"}}) == b"x"
    for video in (None, {"path": None, "bytes": None}):
        assert not is_remote({"video": video})
        with pytest.raises(DecodingError, match="^the row has no video$"):
            fetch({"video": video})


def damage(path, kind):
    data = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(data[:3000])
    elif kind == "other":
        path.write_bytes(b"\0" * len(data))
    elif kind == "shifted":
        path.write_bytes(data[512:] + bytes(512))


@pytest.mark.parametrize("is_url", [False, True])
@pytest.mark.parametrize(
    "shard, kind, message",
    [
        ("a.tar", "missing", "^no such shard$"),
        ("a.tar", "cut", "^shard changed: ends"),
        ("a.tar", "other", "^shard changed: no video of 10003 bytes begins"),
        ("a.tar", "shifted", "^shard changed: no video of 10003 bytes begins"),
        ("a.parquet", "missing", "^no such shard$"),
        ("a.parquet", "cut", "^shard changed: "),
        ("a.parquet", "other", "^shard changed: "),
    ],
)
def test_a_shard_that_changes_during_the_run(site, shard, kind, message, is_url):
    source = f"{site.url}/{shard}" if is_url else str(site.root / shard)
    videos = load_videos(source)
    damage(site.root / shard, kind)
    with pytest.raises(DecodingError, match=message) as caught:
        fetch(videos[3])
    assert "\n" not in str(caught.value)


def test_a_shard_with_fewer_rows_than_before(site):
    videos = load_videos(str(site.root / "a.parquet"))
    pyarrow.parquet.write_table(pyarrow.table({"video": [b"x"]}), site.root / "a.parquet")
    with pytest.raises(DecodingError, match="^shard changed: row 0 of row group 1 is not there"):
        fetch(videos[2])


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_fails(site, kind):
    videos = load_videos(f"{site.url}/{kind}")
    site.faults = [503, "cut"]
    assert fetch(videos[3]) == VIDEOS["v3.mp4"]
    site.faults = [503] * 99
    with pytest.raises(DecodingError, match="^network: ClientResponseError: 503"):
        fetch(videos[3])
    site.faults = [403]
    with pytest.raises(DecodingError, match="^no access"):
        fetch(videos[3])


def test_a_file_that_disappears(site):
    videos = load_videos(f"{site.url}/plain")
    (site.root / "plain" / "v3.mp4").unlink()
    with pytest.raises(DecodingError, match="^no such file$"):
        fetch(videos[3])


def test_a_server_without_ranges(site):
    videos = load_videos(f"{site.url}/a.tar")
    site.has_ranges = False
    with pytest.raises(DecodingError, match="^the server ignores byte ranges"):
        fetch(videos[3])
    with pytest.raises(ValueError, match="a.tar' cannot be read: the server ignores byte ranges"):
        load_videos(f"{site.url}/a.tar")


@pytest.mark.parametrize(
    "kind, is_url", [("plain", True), ("a.tar", True), ("a.tar", False), ("a.parquet", True), ("a.parquet", False)]
)
def test_a_video_too_large_for_memory(site, monkeypatch, kind, is_url):
    videos = load_videos(f"{site.url}/{kind}" if is_url else str(site.root / kind))
    monkeypatch.setattr(files, "MAX_SIZE", 9_000)
    with pytest.raises(DecodingError, match="^too large: .* more than 9000"):
        fetch(videos[3])


def test_a_row_without_bytes_is_no_change(tmp_path):
    path = str(tmp_path / "a.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"video": pyarrow.array([None], pyarrow.binary())}), path)
    with pytest.raises(DecodingError, match="^the row has no video$"):
        fetch({"video": {"path": path, "bytes": None}, "row_group": 0, "row": 0, "column": "video"})


def test_many_threads_at_once(site):
    sources = [f"{site.url}/{kind}" for kind in KINDS] + [str(site.root / kind) for kind in KINDS[1:]]
    kinds = [load_videos(source) for source in sources]
    rows = [videos[index] for _ in range(3) for videos in kinds for index in range(6)]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(fetch, rows)) == list(VIDEOS.values()) * (3 * len(kinds))


def test_rows_travel_to_other_processes(site):
    videos = pickle.loads(pickle.dumps(load_videos(f"{site.url}/a.tar")))
    assert fetch(videos[2]) == VIDEOS["v2.mp4"]


def test_workers_of_a_data_loader(site):
    """Forked from a process that used the same filesystems."""
    videos = load_videos([f"{site.url}/{kind}" for kind in KINDS])
    expected = list(VIDEOS.values()) * len(KINDS)
    assert fetch(videos[0]) == expected[0]
    loader = torch.utils.data.DataLoader(
        videos,
        batch_size=4,
        num_workers=2,
        collate_fn=lambda rows: list(map(fetch, rows)),
        multiprocessing_context="fork",
    )
    assert [video for batch in loader for video in batch] == expected
    assert fetch(videos[17]) == expected[17]
