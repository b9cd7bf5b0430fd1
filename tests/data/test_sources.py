import json
import os
from pathlib import Path

import datasets
import pytest

from layerlock_hf.data import fetch, is_remote, load_videos, name_of, sources
from layerlock_hf.data.addresses import SCHEMA
from layerlock_hf.data.indexes import VIDEO_SUFFIXES


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def hub(monkeypatch):
    """A Hub that answers."""
    monkeypatch.setattr(sources, "check_hub", lambda why: None)


def names(dataset):
    return [Path(row["path"]).name for row in dataset["video"]]


def test_folder_is_walked_in_order_without_side_files(folder):
    dataset = load_videos(str(folder))
    assert names(dataset) == ["short.mp4", "v1.mp4", "v3.mp4", "v5.mp4", "v0.mp4", "v2.mp4", "v4.mp4"]
    assert dataset.features["video"] == datasets.Video(decode=False)
    assert dataset[0]["video"]["bytes"] is None


def test_unknown_and_broken_files_of_a_folder_are_kept(tmp_path):
    for name in ("a.ts", "b.gif", "c.m4a", "d", "e.jpg", "f.csv", "g.YML"):
        (tmp_path / name).write_bytes(b"")
    assert names(load_videos(str(tmp_path))) == ["a.ts", "b.gif", "c.m4a", "d"]


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl"])
@pytest.mark.parametrize("column", ["path", "video", "file"])
def test_lists_are_relative_to_their_folder(tmp_path, suffix, column):
    rows = [{column: "a.mp4", "label": "run", "other": "x"}, {column: "sub/b.mp4", "label": "walk", "other": "y"}]
    text = {
        "csv": "\n".join([",".join(rows[0])] + [",".join(row.values()) for row in rows]),
        "json": json.dumps(rows),
        "jsonl": "\n".join(map(json.dumps, rows)),
    }[suffix]
    (tmp_path / f"list.{suffix}").write_text(text)
    dataset = load_videos(str(tmp_path / f"list.{suffix}"))
    assert [row["path"] for row in dataset["video"]] == [str(tmp_path / "a.mp4"), str(tmp_path / "sub/b.mp4")]
    assert dataset["label"][:] == ["run", "walk"]
    assert dataset.column_names == [*SCHEMA.names, "source", "label"]


def test_parquet_with_embedded_videos(tmp_path, video):
    rows = [{"path": "v0.mp4", "bytes": Path(video).read_bytes()}]
    datasets.Dataset.from_dict({"clip": rows, "label": [3]}).to_parquet(tmp_path / "videos.parquet")
    dataset = load_videos(str(tmp_path / "videos.parquet"), video_column="clip")
    # Not copied: the row is the address of the bytes
    assert dataset[0]["video"] == {"path": str(tmp_path / "videos.parquet"), "bytes": None}
    assert (fetch(dataset[0]), dataset[0]["label"]) == (rows[0]["bytes"], 3)


def test_saved_dataset(tmp_path, video):
    saved = datasets.Dataset.from_dict({"file": [video]})
    datasets.DatasetDict({"test": saved}).save_to_disk(tmp_path / "saved")
    assert names(load_videos(str(tmp_path / "saved"), split="test")) == ["v0.mp4"]
    with pytest.raises(ValueError, match="split must be one of .'test'. for .*, got 'train'"):
        load_videos(str(tmp_path / "saved"))


def test_errors_name_the_culprit(tmp_path, folder):
    with pytest.raises(ValueError, match="holds no videos"):
        load_videos(str(tmp_path))
    with pytest.raises(ValueError, match="does not exist"):
        load_videos(str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="missing.csv.*does not exist"):
        load_videos("missing.csv")
    with pytest.raises(ValueError, match="nobody/nothing"):
        load_videos("nobody/nothing")
    with pytest.raises(ValueError, match="is not a list of videos"):
        load_videos(str(folder / "v0.mp4"))
    (tmp_path / "list.csv").write_text("name,size\na.mp4,3\n")
    with pytest.raises(ValueError, match="path or video or file, only name, size"):
        load_videos(str(tmp_path / "list.csv"))
    (tmp_path / "empty.csv").write_text("path\n")
    with pytest.raises(ValueError, match="empty.csv.*lists no videos"):
        load_videos(str(tmp_path / "empty.csv"))


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.csv", "path,label\na.mp4,1\nb.mp4\n", "row 2 has no label"),
        ("a.csv", 'path\n""\n', "row 1 has no path"),
        ("a.jsonl", '{"path": null}\n', "row 1 has no path"),
        ("a.jsonl", '{"path": "a.mp4"}\n{"file": "b.mp4"}\n', "row 2 has no path"),
        ("a.jsonl", '"a.mp4"\n', "must hold one object per video"),
        ("a.json", '{"path": "a.mp4"}', "must hold one object per video"),
        ("a.jsonl", "{", "a.jsonl' cannot be read"),
        ("a.csv", f"path\n{'x' * 200000}\n", "a.csv' cannot be read: field larger"),
        ("a.csv", "path,label\na,1.mp4,2\n", "row 1 has more fields"),
        ("a.jsonl", '{"path": "a", "label": "x"}\n{"path": "b", "label": 1}\n', "a.jsonl': its labels are of several"),
        ("a.jsonl", '{"path": "a", "label": 1}\n{"path": "b", "label": "x"}\n', "a.jsonl': its labels are of several"),
    ],
)
def test_malformed_lists_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_videos(str(tmp_path / name))


def test_lists_as_spreadsheets_write_them(tmp_path):
    (tmp_path / "LIST.CSV").write_text("\ufeffpath, label\na.mp4, x,,\n", encoding="utf-8")
    (row,) = load_videos(str(tmp_path / "LIST.CSV"))
    assert row["video"]["path"].endswith("a.mp4") and row["label"] == "x"


@pytest.mark.parametrize("suffix", ["csv", "tar", "parquet"])
def test_a_pipe_is_no_list(tmp_path, suffix):
    os.mkfifo(tmp_path / f"a.{suffix}")
    with pytest.raises(ValueError, match="not a regular file"):
        load_videos(str(tmp_path / f"a.{suffix}"))


@pytest.fixture
def outside(tmp_path, video):
    """Names in a list, of a video that lies outside the folder `root` of that list."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "inside.mp4").write_bytes(Path(video).read_bytes())
    (tmp_path / "private.mp4").write_bytes(Path(video).read_bytes())
    (tmp_path / "root" / "link.mp4").symlink_to(tmp_path / "private.mp4")
    (tmp_path / "root" / "folder").symlink_to(tmp_path)
    (tmp_path / "root-of-another").mkdir()
    (tmp_path / "root-of-another" / "a.mp4").write_bytes(b"")
    return [
        "../private.mp4",
        str(tmp_path / "private.mp4"),
        "link.mp4",
        "folder/private.mp4",
        "../root-of-another/a.mp4",
    ]


def test_names_may_be_confined_to_a_folder(tmp_path, outside):
    root = tmp_path / "root"
    for name in outside:
        (root / "list.jsonl").write_text("\n".join(json.dumps({"path": path}) for path in ("inside.mp4", name)))
        with pytest.raises(ValueError, match="row 2 names .*which does not lie in .*set video_root"):
            load_videos(str(root / "list.jsonl"), video_root=str(root))
        # The user's own list may name what it likes
        assert len(load_videos(str(root / "list.jsonl"))) == 2
        assert len(load_videos(str(root / "list.jsonl"), video_root=str(tmp_path))) == 2
    for name in ("folder/private.mp4", "link.mp4"):
        with pytest.raises(ValueError, match=f"names .*{name}.*, which does not lie in"):
            load_videos(str(root), video_root=str(root))
        (root / name.split("/")[0]).unlink()
    assert names(load_videos(str(root), video_root=str(root))) == ["inside.mp4"]


def test_embedded_videos_need_not_lie_anywhere(tmp_path, video):
    rows = [{"path": "/etc/v0.mp4", "bytes": Path(video).read_bytes()}, {"path": "/etc/passwd", "bytes": None}]
    for count in (1, 2):
        datasets.Dataset.from_dict({"video": rows[:count]}).to_parquet(tmp_path / "videos.parquet")
        if count == 1:
            assert len(load_videos(str(tmp_path / "videos.parquet"), video_root=str(tmp_path))) == 1
        else:
            with pytest.raises(ValueError, match="row 2 names '/etc/passwd'"):
                load_videos(str(tmp_path / "videos.parquet"), video_root=str(tmp_path))


def test_a_dataset_of_the_hub_names_downloaded_files_alone(tmp_path, monkeypatch, video, hub):
    (tmp_path / "cache").mkdir()
    inside = tmp_path / "cache" / "v0.mp4"
    inside.write_bytes(Path(video).read_bytes())
    monkeypatch.setattr("layerlock_hf.data.sources.HF_HUB_CACHE", str(tmp_path / "cache"))
    for name, is_allowed in ((str(inside), True), ("/etc/passwd", False), ("http://127.0.0.1:9/a.mp4", False)):
        remote = datasets.Dataset.from_dict({"video": [name]})
        monkeypatch.setattr(datasets, "load_dataset", lambda source, split, remote=remote: remote)
        if is_allowed:
            assert len(load_videos("somebody/videos")) == 1
        else:
            with pytest.raises(ValueError, match="'somebody/videos': row 1 names"):
                load_videos("somebody/videos")
        if name.startswith("/"):
            assert len(load_videos("somebody/videos", video_root="/")) == 1
        else:  # an address, which lies in no folder
            with pytest.raises(ValueError, match="which does not lie in /"):
                load_videos("somebody/videos", video_root="/")


def test_what_is_a_video_in_a_tar_is_one_in_a_folder(tmp_path):
    for suffix in VIDEO_SUFFIXES:
        (tmp_path / f"a{suffix}").write_bytes(b"")
    assert len(load_videos(str(tmp_path))) == len(VIDEO_SUFFIXES)


@pytest.fixture
def tars(tmp_path, write_tar):
    """A folder of three tars of two labelled videos, and what video2dataset puts beside them."""
    for index in range(3):
        members = [(f"{index}{n}.{kind}", data) for n in "ab" for kind, data in (("mp4", n.encode()), ("cls", b"1"))]
        write_tar(tmp_path / "tars" / f"0000{index}.tar", members)
        for name in (f"0000{index}.parquet", f"0000{index}_stats.json"):
            (tmp_path / "tars" / name).write_bytes(b"aside")
    return tmp_path / "tars"


@pytest.mark.parametrize(
    "pattern, count", [("", 6), ("/*.tar", 6), ("/0000{0..1}.tar", 4), ("/0000{0,2}.tar", 4), ("/00001.tar", 2)]
)
def test_tars(tars, pattern, count):
    videos = load_videos(f"{tars}{pattern}")
    assert len(videos) == count and videos["label"][:] == [1] * count
    assert [fetch(row) for row in videos] == [b"a", b"b"] * (count // 2)


@pytest.mark.parametrize("is_url", [False, True])
def test_tars_of_several_splits(website, write_tar, is_url):
    folder = website.root / "test"  # no split: it is outside
    for name in ("train-00000-of-00001", "test-00000-of-00001"):
        write_tar(folder / "data" / f"{name}.tar", [(f"{name}.mp4", b"x")])
    source = f"{website.url}/test" if is_url else str(folder)
    assert load_videos(source)["name"][:] == ["train-00000-of-00001.mp4"]
    assert load_videos(source, split="test")["name"][:] == ["test-00000-of-00001.mp4"]
    with pytest.raises(ValueError, match="split must be one of .'test', 'train'.* got 'validation'"):
        load_videos(source, split="validation")
    (folder / "data" / "train-00000-of-00001.tar").rename(folder / "data" / "extra.tar")
    with pytest.raises(ValueError, match="extra.tar' belongs to no split, while other shards do"):
        load_videos(source)


def test_tars_that_cannot_be_read(tars):
    with pytest.raises(ValueError, match="00003.tar' cannot be read: no such file"):
        load_videos(f"{tars}/{{00000..00003}}.tar")
    (tars / "00001.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(ValueError, match="00001.tar' is damaged, truncated, or not an uncompressed tar"):
        load_videos(str(tars))
    (tars / "00001.tar").rename(tars / "00001.tar.gz")
    for source in (tars, tars / "00001.tar.gz", f"{tars}/*"):
        with pytest.raises(ValueError, match="00001.tar.gz' is compressed.*unpack"):
            load_videos(str(source))
    (tars / "00001.tar.gz").rename(tars / "a.mp4")
    with pytest.raises(ValueError, match="mixes .mp4 and .tar files"):
        load_videos(str(tars))
    with pytest.raises(ValueError, match="missing.tar' does not exist"):
        load_videos("missing.tar")


def test_parquet_files(tmp_path):
    for index in range(2):
        rows = [{"path": "a.mp4", "bytes": f"{index}{n}".encode()} for n in range(2)]
        datasets.Dataset.from_dict({"video": rows, "label": [0, 1]}).to_parquet(tmp_path / f"{index}.parquet")
    for source in (tmp_path, tmp_path / "*.parquet", tmp_path / "{0..1}.parquet"):
        videos = load_videos(str(source))
        assert [fetch(row) for row in videos] == [b"00", b"01", b"10", b"11"]
        assert videos["label"][:] == [0, 1, 0, 1]


def test_a_parquet_file_of_paths(tmp_path):
    paths = ["a.mp4", "/b.mp4", "https://host/c.mp4"]
    datasets.Dataset.from_dict({"path": paths, "label": [1, 2, 3]}).to_parquet(tmp_path / "list.parquet")
    videos = load_videos(str(tmp_path / "list.parquet"))
    assert [row["video"]["path"] for row in videos] == [str(tmp_path / "a.mp4"), "/b.mp4", "https://host/c.mp4"]
    assert [is_remote(row) for row in videos] == [False, False, True]


def test_depth_files_are_named_as_videos_are(tmp_path):
    (tmp_path / "list.csv").write_text("path,depth\na.mp4,\nb.mp4,b.npz\n")
    assert load_videos(str(tmp_path / "list.csv"))["depth"][:] == [None, str(tmp_path / "b.npz")]
    for name, text in (("list.csv", "path,depth\na.mp4,\n"), ("list.json", '[{"path": "a.mp4", "depth": 1.5}]')):
        (tmp_path / name).write_text(text)
        assert "depth" not in load_videos(str(tmp_path / name)).column_names


def test_a_folder_at_a_url(website):
    (website.root / "sub").mkdir()
    for name in ("b.mp4", "sub/a.mp4", "README.md", "list.csv"):
        (website.root / name).write_bytes(name.encode())
    videos = load_videos(website.url)
    assert [fetch(row) for row in videos] == [b"b.mp4", b"sub/a.mp4"]
    assert name_of(videos[1], 1) == f"{website.url}/sub/a.mp4"
    assert load_videos((website.root).as_uri())[0]["video"]["path"] == str(website.root / "b.mp4")
    with pytest.raises(ValueError, match="is not a list of videos"):
        load_videos(f"{website.url}/b.mp4")
    with pytest.raises(ValueError, match="nothing.csv' cannot be read: no such file"):
        load_videos(f"{website.url}/nothing.csv")
    with pytest.raises(ValueError, match="nothing/' cannot be read: no such file"):
        load_videos(f"{website.url}/nothing/")


def test_tars_at_a_url(website, tars, monkeypatch):
    website.root = tars
    for pattern in ("", "/*.tar", "/0000{0..2}.tar"):
        videos = load_videos(f"{website.url}{pattern}")
        assert [fetch(row) for row in videos] == [b"a", b"b"] * 3 and videos["label"][:] == [1] * 6


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_list_at_a_url(website, suffix):
    (website.root / "sub").mkdir()
    (website.root / "sub" / "a b.mp4").write_bytes(b"video")

    def load(name):
        dataset = datasets.Dataset.from_dict({"path": ["sub/a b.mp4", name], "label": [1, 2]})
        getattr(dataset, f"to_{suffix}")(website.root / f"list.{suffix}")
        return load_videos(f"{website.url}/list.{suffix}")

    videos = load("b.mp4")
    assert fetch(videos[0]) == b"video" and [int(row["label"]) for row in videos] == [1, 2]
    for name in ("../a.mp4", "/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:9/a.mp4"):
        with pytest.raises(ValueError, match=f"list.{suffix}': row 2: .* does not lie under"):
            load(name)


def test_a_list_on_disk_may_name_addresses(tmp_path, website):
    (website.root / "a.mp4").write_bytes(b"video")
    local = (website.root / "a.mp4").as_uri()
    (tmp_path / "list.csv").write_text(f"path\n{website.url}/a.mp4\n{local}\n")
    videos = load_videos(str(tmp_path / "list.csv"))
    assert [is_remote(row) for row in videos] == [True, True]
    assert [fetch(row) for row in videos] == [b"video"] * 2
    with pytest.raises(ValueError, match="row 1 names 'http.*does not lie in"):
        load_videos(str(tmp_path / "list.csv"), video_root=str(tmp_path))


def test_a_parquet_file_names_addresses_only_of_its_own_folder(website):
    rows = [{"path": "a.mp4", "bytes": b"x"}, {"path": "/etc/passwd", "bytes": None}]
    datasets.Dataset.from_dict({"video": rows}).to_parquet(website.root / "a.parquet")
    with pytest.raises(ValueError, match="'/etc/passwd' does not lie under"):
        load_videos(f"{website.url}/a.parquet")


@pytest.mark.parametrize("kind", ["tar", "parquet", "mp4"])
def test_streaming_from_the_hub(tmp_path, monkeypatch, write_tar, kind, hub):
    """With a folder in the place of the Hub."""
    for split in ("train", "test"):
        path = tmp_path / "hub" / "data" / f"{split}-00000-of-00001.{kind}"
        if kind == "tar":
            write_tar(path, [("a.mp4", split.encode())])
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "parquet":
            datasets.Dataset.from_dict({"video": [{"path": "a.mp4", "bytes": split.encode()}]}).to_parquet(path)
        if kind == "mp4":
            path.write_bytes(split.encode())
    (tmp_path / "hub" / "README.md").write_text("---\nlicense: mit\n---\n")
    build = datasets.load_dataset_builder
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda source: build(str(tmp_path / "hub")))
    monkeypatch.setattr(sources, "HUB", str(tmp_path / "hub"))
    for split in ("train", "test"):
        (row,) = load_videos("somebody/videos", split, streaming=True)
        found = fetch(row)
        assert (found if isinstance(found, bytes) else Path(found).read_bytes()) == split.encode()
    with pytest.raises(ValueError, match="split must be one of .* got 'validation'"):
        load_videos("somebody/videos", "validation", streaming=True)


def test_streaming_reads_nothing_of_this_machine(tmp_path, monkeypatch, video, hub):
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {video}\n---\n")
    build = datasets.load_dataset_builder
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda source: build(str(tmp_path)))
    with pytest.raises(ValueError, match="'somebody/videos' names '/.*v0.mp4', which is not on the Hub"):
        load_videos("somebody/videos", streaming=True)


def test_streaming_what_is_not_there(hub):
    with pytest.raises(ValueError, match="'nobody/nothing' is neither"):
        load_videos("nobody/nothing", streaming=True)


@pytest.mark.parametrize("source", ["ssv2", "nobody/nothing"])
def test_a_misspelt_folder_where_there_is_no_hub(source):
    """As soon as it is read, not after half a minute of tries."""
    with pytest.raises(ValueError, match=f"'{source}' is not an existing path, and HF_HUB_OFFLINE forbids"):
        load_videos(source)


@pytest.mark.parametrize("source", ["", " "])
def test_a_name_that_is_empty(source):
    with pytest.raises(ValueError, match="source must be a folder, list or dataset of videos, got an empty name"):
        load_videos(source)


def test_mixtures(tmp_path, folder, tars, video):
    datasets.Dataset.from_dict({"video": [{"path": "v0.mp4", "bytes": b"x"}]}).save_to_disk(tmp_path / "saved")
    (tmp_path / "list.csv").write_text("path,label\na.mp4,1\nb.mp4,2\n")
    (tmp_path / "list.json").write_text('[{"path": "c.mp4", "label": 3}]')
    sources = [str(folder), str(tars), str(tmp_path / "saved"), str(tmp_path / "list.csv")]
    videos = load_videos(sources)
    assert videos["source"][:] == [0] * 7 + [1] * 6 + [2] + [3] * 2
    assert videos[0] == load_videos(str(folder))[0]
    assert [fetch(videos[index]) for index in (7, 13)] == [b"a", b"x"]
    assert videos.features == load_videos(str(folder)).features
    # Labels of the same type are kept
    assert load_videos([str(tars), str(tmp_path / "list.json")])["label"][:] == [1] * 6 + [3]
    assert "label" not in load_videos([str(tars), str(tmp_path / "list.csv")]).column_names
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty' holds no videos"):
        load_videos([str(folder), str(tmp_path / "empty")])
    with pytest.raises(ValueError, match="source must name at least one folder, list or dataset of videos, got none"):
        load_videos([])
