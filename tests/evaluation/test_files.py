import os

import pytest

from layerlock_hf.evaluation.files import written_aside


def test_a_file_is_replaced_when_it_is_on_the_disk(tmp_path, monkeypatch):
    path, flushed = tmp_path / "file", []
    path.write_text("before")
    monkeypatch.setattr(os, "fsync", lambda number: flushed.append(path.read_text()))
    with written_aside(path) as aside:
        aside.write_text("after")
    assert flushed == ["before"] and path.read_text() == "after"
    assert os.listdir(tmp_path) == ["file"]


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(KeyError), written_aside(path) as aside:
        aside.write_text("half")
        raise KeyError
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["file"]


def test_two_may_write_the_same_file(tmp_path):
    path = tmp_path / "file"
    with written_aside(path) as first, written_aside(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # which was ended last
