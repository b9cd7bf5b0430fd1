import pytest
from transformers.utils import logging

from layerlock_hf.data import load_videos
from layerlock_hf.data.lists import read_rows


TWO = [{"path": "/d/a.mp4", "label": 3}, {"path": "/d/b.mp4", "label": 0}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/d/a.mp4 3\n/d/b.mp4 0\n", TWO),  # VideoMAE, V-JEPA
        ("/d/a.mp4,3\r\n/d/b.mp4,0\r\n", TWO),
        ("/d/a.mp4;3\n/d/b.mp4;0", TWO),
        ("/d/a.mp4\t3\n\n/d/b.mp4\t0\n", TWO),
        ('"/d/a.mp4",3\n"/d/b.mp4",0\n', TWO),
        ("/d/a.mp4 0 3\n/d/b.mp4 120 0\n", TWO),  # SlowFast: path start label
        ("v/a 120 3\nv/b 64 0\n", [{"path": "v/a", "label": 3}, {"path": "v/b", "label": 0}]),  # TSM, mmaction2
        ("/d/a.mp4 0 -1\n/d/b.mp4 0 -1\n", [{"path": "/d/a.mp4"}, {"path": "/d/b.mp4"}]),  # VideoMAE, pretraining
        ("/d/a.mp4\n/d/b.mp4\n", [{"path": "/d/a.mp4"}, {"path": "/d/b.mp4"}]),
        ("my cat.mp4 3\nb 2.mp4 0\n", [{"path": "my cat.mp4", "label": 3}, {"path": "b 2.mp4", "label": 0}]),
        ("a.mp4,kick a ball\n", [{"path": "a.mp4", "label": "kick a ball"}]),
        ("a.MP4 kick\n", [{"path": "a.MP4", "label": "kick"}]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_without_a_header(text, expected, encoding, caplog, monkeypatch):
    monkeypatch.setattr(logging.get_logger("layerlock_hf"), "propagate", True)
    assert read_rows("list.csv", text.encode(encoding)) == expected
    read_as = "path, then a label" if "label" in expected[0] else "path"
    assert f"'list.csv' has no header: its {len(expected)} rows are read as {read_as}" in caplog.text


@pytest.mark.parametrize("delimiter", [",", ";", "\t", " "])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "txt"])
def test_tables_with_a_header(delimiter, suffix):
    text = f"path{delimiter}label\na.mp4{delimiter}run\nb.mp4{delimiter}walk\n"
    rows = [{"path": "a.mp4", "label": "run"}, {"path": "b.mp4", "label": "walk"}]
    assert read_rows(f"list.{suffix}", text.encode()) == rows


def test_what_is_no_list_is_refused():
    with pytest.raises(ValueError, match="'a.csv' cannot be read: it is not UTF-8 text .*: save it as UTF-8"):
        read_rows("a.csv", "path\n\xe9.mp4\n".encode("latin-1"))
    with pytest.raises(ValueError, match="it has no header, and row 2 has 1 fields where the first has 2: add a"):
        read_rows("a.csv", b"a.mp4 1\nb.mp4\n")
    with pytest.raises(ValueError, match="'a.csv' lists no videos"):
        read_rows("a.csv", b"\n \n")


def test_columns_of_other_names(tmp_path):
    path = tmp_path / "list.csv"
    for name in ("Path", "video_path", "filename"):
        path.write_text(f"{name},label\na.mp4,1\n")
        assert load_videos(str(path))["video"][0]["path"] == str(tmp_path / "a.mp4")
    path.write_text("clip,label\na.mp4,1\nb.mp4,1\n")
    with pytest.raises(ValueError, match="only clip, label: name the column of the videos with video_column=NAME"):
        load_videos(str(path))
    assert len(load_videos(str(path), video_column="clip")) == 2


def test_labels_are_cleaned(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("path,label\na.mp4, run \nb.mp4,\u00e9\nc.mp4,e\u0301\n", encoding="utf-8")
    assert load_videos(str(path))["label"][:] == ["run", "\u00e9", "\u00e9"]
