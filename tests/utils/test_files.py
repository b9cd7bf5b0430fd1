import errno
import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from layerlock_hf.utils.files import (
    flush,
    flush_all,
    put_in_place,
    remove_left_over,
    write_aside,
    write_folder_aside,
)


@pytest.fixture
def flushed(monkeypatch) -> list[int]:
    """The inodes of what is flushed from now on."""
    inodes = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: inodes.append(os.fstat(descriptor).st_ino))
    return inodes


def test_a_file_is_replaced_when_it_is_on_the_disk(tmp_path, monkeypatch):
    path, seen = tmp_path / "file", []
    path.write_text("before")
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append(path.read_text()))
    with write_aside(path) as aside:
        aside.write_text("after")
    assert seen == ["before", "after"]  # the content, then the name
    assert path.read_text() == "after" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("before", [None, "before"])
def test_an_error_leaves_what_was_there(tmp_path, before):
    path = tmp_path / "file"
    if before is not None:
        path.write_text(before)
    with pytest.raises(KeyError), write_aside(path) as aside:
        aside.write_text("half")
        raise KeyError
    assert [entry.read_text() for entry in tmp_path.iterdir()] == ([] if before is None else [before])


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "file"
    path.write_text("before")
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"), write_aside(path) as aside:
        aside.write_text("after")
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["file"]


def test_two_may_write_the_same_file(tmp_path):
    path = tmp_path / "file"
    with write_aside(path) as first, write_aside(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # which was ended last


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_mode_is_that_of_any_new_file(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with write_aside(tmp_path / "weights.safetensors") as aside:
            save_file({"weight": torch.zeros(1)}, aside)
            aside.chmod(0o400)  # as a library may, whatever its version
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "weights.safetensors").stat().st_mode) == mode


def test_what_a_killed_process_left_is_removed(tmp_path):
    path = tmp_path / "file[1].pt"
    others = {"file[1].pt", "file1.pt.0123abcd.new", "file[1].pt.new", "file[1].pt2.0123abcd.new"}
    for name in [*others, "file[1].pt.0123abcd.new", "file[1].pt.ba9876fe.new"]:
        (tmp_path / name).touch()
    remove_left_over(path)
    assert set(os.listdir(tmp_path)) == others


def test_a_file_put_in_place_stays(tmp_path, flushed):
    part, path = tmp_path / "work" / "part", tmp_path / "out" / "file"
    part.parent.mkdir()
    path.parent.mkdir()
    path.write_text("before")
    part.write_text("after")
    put_in_place(part, path)
    assert path.read_text() == "after" and not part.exists()
    assert flushed == [path.stat().st_ino, path.parent.stat().st_ino]


def test_all_of_a_folder_is_flushed(tmp_path, flushed):
    names = ["a", "a/b", "a/b/file", "file"]
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in names[2:]:
        (tmp_path / name).touch()
    flush_all(tmp_path)
    assert sorted(flushed) == sorted((tmp_path / name).stat().st_ino for name in [*names, "."])
    assert flushed[-1] == tmp_path.stat().st_ino


def test_a_file_system_may_have_no_flush_of_folders(tmp_path, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "fsync", fsync)
    flush(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        flush(tmp_path / "file")


def test_a_folder_is_there_as_a_whole(tmp_path, flushed):
    folder = tmp_path / "folder"
    folder.mkdir()
    with write_folder_aside(folder) as aside:
        (aside / "file").write_text("content")
        inode = (aside / "file").stat().st_ino
        assert not any(folder.iterdir())
    assert inode in flushed
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "file"]


def test_a_folder_that_fails_leaves_what_was_there(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(KeyError), write_folder_aside(tmp_path / "new") as aside:
        (aside / "half").touch()
        raise KeyError
    with pytest.raises(OSError, match="not empty"), write_folder_aside(tmp_path / "full") as aside:
        (aside / "other").touch()
    assert sorted(tmp_path.rglob("*")) == before
