"""Reading a video window by window in a child process."""

import multiprocessing
import time

import psutil
import pytest

from layerlock_hf.data import ClipTransform, DecodingError
from layerlock_hf.embedding import reading
from layerlock_hf.embedding.reading import WindowReader
from layerlock_hf.embedding.windows import Plan


REST = (1, ClipTransform(16, 1.0), None)


def test_the_child_ends_with_its_reader(videos):
    before = set(psutil.Process().children())
    reader = WindowReader(str(videos / "v5.mp4"), Plan(8, 8, False, 4), *REST, 60.0)
    numbers = [cut.number for cut in reader.windows()]
    assert numbers == [0, 1, 2, 3, 4] and reader.note is None
    assert len(set(psutil.Process().children()) - before) == 1
    del reader
    assert set(psutil.Process().children()) <= before and not multiprocessing.active_children()


def test_windows_from_one_on(videos):
    plan = Plan(8, 8, False, 4)
    whole, part = (list(WindowReader(str(videos / "v5.mp4"), plan, *REST, 0).windows(first)) for first in (0, 3))
    assert [cut.spans for cut in part] == [cut.spans for cut in whole[3:]]
    assert all((ours.clip == theirs.clip).all() for ours, theirs in zip(part, whole[3:], strict=True))
    assert [cut.progress for cut in whole] == sorted(cut.progress for cut in whole) and whole[
        -1
    ].progress == pytest.approx(1)


def test_bytes_and_notes(videos):
    reader = WindowReader((videos / "cut.mp4").read_bytes(), Plan(8, 8, False, 4), *REST, 0)
    windows = list(reader.windows())
    assert 1 <= len(windows) < 5 and "of 40 frames decode" in reader.note
    with pytest.raises(DecodingError, match="text, no video"):
        next(WindowReader(str(videos / "text.mp4"), Plan(8, 8, False, 4), *REST, 0).windows())


def test_slow_videos_are_no_hanging_ones(videos, monkeypatch):
    """A window that takes longer than the limit is waited for, as long as frames come."""
    real = reading._Stream._render
    monkeypatch.setattr(reading._Stream, "_render", lambda *arguments: time.sleep(0.05) or real(*arguments))
    windows = list(WindowReader(str(videos / "v5.mp4"), Plan(32, 32, False, 32), *REST, 1.0).windows())
    assert len(windows) == 2
