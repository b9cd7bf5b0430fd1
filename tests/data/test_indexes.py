"""Indexing tars and parquet files: what is found, what is refused, and how little is read for it."""

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from layerlock_hf.data import files
from layerlock_hf.data.indexes import index_parquet, index_shards, index_tar


BIG = 10 * files.INDEX_BLOCK
MEMBERS = [
    ("walk/a.mp4", b"a" * BIG),
    ("walk/a.cls", b"3"),
    ("walk/a.txt", b"a dog"),
    ("walk/b.json", b'{"label": 5, "caption": "x"}'),
    ("walk/b.left.mp4", b"b" * BIG),
    ("walk/b.right.MKV", b"c" * 513),
    ("walk/._a.mp4", b"resource fork"),
    ("c.2.webm", b""),
    ("c.2.wav", b"sound"),
    ("c.cls", b"7\n"),
]
NAMES = ["walk/a.mp4", "walk/b.left.mp4", "walk/b.right.MKV", "c.2.webm"]


def test_videos_of_a_tar(tmp_path, write_tar):
    path = write_tar(tmp_path / "a.tar", MEMBERS)
    table = index_tar(path)
    assert table["name"].to_pylist() == NAMES
    assert table["label"].to_pylist() == [3, 5, 5, 7]
    whole = (tmp_path / "a.tar").read_bytes()
    found = [whole[row["offset"] :][: row["size"]] for row in table.to_pylist()]
    assert found == [dict(MEMBERS)[name] for name in NAMES]
    assert table["video"].to_pylist() == [{"path": path, "bytes": None}] * 4


def test_a_remote_tar_is_indexed_by_small_reads(website, write_tar):
    path = write_tar(website.root / "a.tar", MEMBERS)
    table = index_tar(f"{website.url}/a.tar")
    assert table.drop_columns("video") == index_tar(path).drop_columns("video")
    ranges = [request[2] for request in website.requests if request[0] == "GET"]
    spans = [np.subtract(*map(int, text.removeprefix("bytes=").split("-")[::-1])) + 1 for text in ranges]
    # One for each of the two large members and what stands beside it, one for the rest, one for its end
    assert len(spans) <= 4 and max(spans) <= files.INDEX_BLOCK


def test_labels_are_kept_if_all_have_them(tmp_path, write_tar):
    one = write_tar(tmp_path / "1.tar", [("a.mp4", b"x"), ("a.cls", b"1"), ("b.mp4", b"x")])
    two = write_tar(tmp_path / "2.tar", [("c.mp4", b"x"), ("c.cls", b"1")])
    empty = write_tar(tmp_path / "3.tar", [])
    assert "label" not in index_tar(one).column_names
    assert index_shards(index_tar, [two, empty, two])["label"].to_pylist() == [1, 1]
    assert "label" not in index_shards(index_tar, [two, one]).column_names
    assert index_shards(index_tar, [one, empty, two])["name"].to_pylist() == ["a.mp4", "b.mp4", "c.mp4"]


@pytest.mark.parametrize("name, data", [("a.cls", b"dog"), ("a.json", b"{")])
def test_a_label_that_is_none(tmp_path, write_tar, name, data):
    with pytest.raises(ValueError, match=f"1.tar.*{name}' cannot be read"):
        index_tar(write_tar(tmp_path / "1.tar", [("a.mp4", b"x"), (name, data)]))


def test_labels_of_several_types(tmp_path, write_tar):
    members = [("a.mp4", b""), ("a.cls", b"1"), ("b.mp4", b""), ("b.json", b'{"label": "run"}')]
    with pytest.raises(ValueError, match="labels are of several types"):
        index_tar(write_tar(tmp_path / "1.tar", members))


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda data: b"", "or not an uncompressed tar"),
        (lambda data: b"no tar" * 1000, "or not an uncompressed tar"),
        (lambda data: data[:BIG], "damaged, truncated"),  # in the bytes of a member
        (lambda data: data[: 512 + BIG], "is truncated: at byte"),  # after a member
        (lambda data: data[: 512 + BIG + 100], "is truncated: at byte"),  # in a header
        (lambda data: data[: 512 + BIG] + b"?" + data[513 + BIG :], "is damaged: at byte"),  # of a header
    ],
)
def test_a_damaged_tar_is_no_shorter_tar(tmp_path, write_tar, damage, message):
    path = tmp_path / "a.tar"
    write_tar(path, MEMBERS)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"a.tar' .*{message}"):
        index_tar(str(path))


def write_parquet(path, kind, num_rows=5, **further):
    videos = [f"video {index}".encode() for index in range(num_rows)]
    values = {
        "struct": [{"bytes": video, "path": "x.mp4"} for video in videos],
        "bytes": videos,
        "large": pyarrow.array(videos, pyarrow.large_binary()),
    }[kind]
    pyarrow.parquet.write_table(pyarrow.table({"video": values, **further}), path, row_group_size=2)
    return str(path)


@pytest.mark.parametrize("kind", ["struct", "bytes", "large"])
def test_videos_of_a_parquet_file(tmp_path, kind):
    path = write_parquet(tmp_path / "a.parquet", kind, label=[1, 2, 3, 4, 5], depth=["d.npz"] * 5)
    table = index_parquet(path)
    assert table["row_group"].to_pylist() == [0, 0, 1, 1, 2]
    assert table["row"].to_pylist() == [0, 1, 0, 1, 0]
    assert table["column"].to_pylist() == ["video"] * 5
    assert table["label"].to_pylist() == [1, 2, 3, 4, 5]
    assert table["depth"].to_pylist() == [str(tmp_path / "d.npz")] * 5
    assert table["video"].to_pylist() == [{"path": path, "bytes": None}] * 5


def test_a_remote_parquet_file_is_indexed_by_its_footer(website):
    videos = [np.random.default_rng(index).bytes(100_000) for index in range(20)]
    table = pyarrow.table({"video": [{"bytes": video, "path": "a.mp4"} for video in videos]})
    pyarrow.parquet.write_table(table, website.root / "a.parquet", row_group_size=5)
    assert len(index_parquet(f"{website.url}/a.parquet")) == 20
    starts = [int(request[2][6:].split("-")[0]) for request in website.requests if request[2]]
    assert len(starts) <= 2 and min(starts) > 1_900_000


def test_the_column_of_a_parquet_file(tmp_path):
    clips = [{"bytes": b"x", "path": None}]
    path = str(tmp_path / "a.parquet")
    dataset = datasets.Dataset.from_dict({"clip": clips, "path": ["other"]})
    dataset.to_parquet(path)
    assert index_parquet(path, "clip")["column"].to_pylist() == ["clip"]
    dataset.cast_column("clip", datasets.Video(decode=False)).to_parquet(path)
    assert index_parquet(path)["column"].to_pylist() == ["clip"]
    assert index_parquet(path, "path")["video"].to_pylist() == [{"path": str(tmp_path / "other"), "bytes": None}]
    with pytest.raises(ValueError, match="no column 'nothing', only clip, path: name the column"):
        index_parquet(path, "nothing")
    pyarrow.parquet.write_table(pyarrow.table({"video": [1.5]}), path)
    with pytest.raises(ValueError, match="column video must hold bytes, .* got double"):
        index_parquet(path)


def test_rows_that_a_parquet_file_does_not_hold(tmp_path):
    values = [{"bytes": b"x", "path": "a"}, {"bytes": None, "path": "b.mp4"}, {"bytes": None, "path": None}, None]
    path = str(tmp_path / "a.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"video": values}), path)
    table = index_parquet(path)
    paths = [video["path"] for video in table["video"].to_pylist()]
    assert paths == [path, str(tmp_path / "b.mp4"), None, None]
    assert table["row"].to_pylist() == [0, None, None, None]


def test_a_damaged_parquet_file(tmp_path):
    path = tmp_path / "a.parquet"
    for data in (b"", b"PAR1", b"no parquet" * 100):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="a.parquet' is damaged"):
            index_parquet(str(path))
    whole = write_parquet(path, "struct")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="a.parquet' is damaged"):
        index_parquet(whole)


def test_an_empty_parquet_file(tmp_path):
    assert len(index_parquet(write_parquet(tmp_path / "a.parquet", "large", num_rows=0))) == 0
