import json
from pathlib import Path

import datasets
import pytest

from layerlock_hf.data import fetch, load_videos
from layerlock_hf.data.addresses import SCHEMA


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


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
    with pytest.raises(ValueError, match="'train'.*test"):
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
    with pytest.raises(ValueError, match="no list of videos"):
        load_videos(str(folder / "v0.mp4"))
    (tmp_path / "list.csv").write_text("name,size\na.mp4,3\n")
    with pytest.raises(ValueError, match="path or video or file; its columns are name, size"):
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
        ("a.jsonl", '"a.mp4"\n', "must hold an object for every video"),
        ("a.json", '{"path": "a.mp4"}', "must hold an object for every video"),
        ("a.jsonl", "{", "a.jsonl' cannot be read"),
    ],
)
def test_malformed_lists_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_videos(str(tmp_path / name))


def test_lists_as_spreadsheets_write_them(tmp_path):
    (tmp_path / "LIST.CSV").write_text("\ufeffpath, label\na.mp4, x\n", encoding="utf-8")
    (row,) = load_videos(str(tmp_path / "LIST.CSV"))
    assert row["video"]["path"].endswith("a.mp4") and row["label"] == "x"


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
    with pytest.raises(ValueError, match="row 2 names .*link.mp4"):
        load_videos(str(root), video_root=str(root))
    (root / "link.mp4").unlink()
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


def test_a_dataset_of_the_hub_names_downloaded_files_alone(tmp_path, monkeypatch, video):
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
