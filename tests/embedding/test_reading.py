"""Reading a video window by window in a child process."""

import multiprocessing
import time

import psutil
import pytest
from PIL import Image

from layerlock_hf.data import ClipTransform, DecodingError
from layerlock_hf.embedding import reading
from layerlock_hf.embedding.reading import WindowReader
from layerlock_hf.embedding.windows import Plan
from layerlock_hf.models.video_reading_pyav import Decoding


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


def test_windows_after_damage_have_their_times(damaged):
    """Frame 20, at 2 s, does not decode: the window before it lasts until the frame after it."""
    reader = WindowReader(str(damaged), Plan(1, 1, True, 4), *REST, 0)
    (spans,) = zip(*(cut.spans for cut in reader.windows()), strict=True)
    assert [(span["first_frame"], span["num_frames"]) for span in spans] == [(0, 10), (10, 10), (20, 9), (29, 10)]
    assert [span["start_seconds"] for span in spans] == pytest.approx([0, 1, 2.1, 3])
    assert [span["end_seconds"] for span in spans] == pytest.approx([1, 2.1, 3, 4])
    assert reader.note == "damaged at 2.00 s: 1 of 40 packets do not decode"


def test_pictures_after_damage_have_their_times(tmp_path):
    """The last one is shown for as long as any, though one before it is missing."""
    for index in range(7):
        Image.new("RGB", (20, 16)).save(tmp_path / f"{index}.png")
    (tmp_path / "3.png").write_bytes(b"broken")
    reader = WindowReader(str(tmp_path), Plan(1, 1, True, 4), 1, ClipTransform(16, 1.0), 10.0, 0)
    (cut,) = reader.windows()
    assert cut.extent == pytest.approx((0, 0.7)) and "only 6 of 7 frames decode" in reader.note


def test_a_folder_of_other_things_is_told_of_as_such(videos):
    with pytest.raises(DecodingError, match="the folder holds no pictures"):
        next(WindowReader(str(videos), Plan(1, 1, True, 4), *REST, 0).windows())


def test_clocks_that_go_back_after_damage(damaged, monkeypatch):
    """What goes back follows in usual steps: windows never overlap in time."""
    real = Decoding.__iter__

    def going_back(decoding):
        for index, frame in enumerate(real(decoding)):
            frame.pts -= 10_000 * (20 <= index < 25)
            yield frame

    monkeypatch.setattr(Decoding, "__iter__", going_back)
    reader = WindowReader(str(damaged), Plan(5, 5, False, 4), *REST, 0)
    starts = [cut.spans[0]["start_seconds"] for cut in reader.windows()]
    assert starts == pytest.approx([0, 0.5, 1, 1.5, 2, 2.6, 3.1, 3.5], abs=0.01)


def test_slow_videos_are_no_hanging_ones(videos, monkeypatch):
    """A window that takes longer than the limit is waited for, as long as frames come."""
    real = reading._Stream._render
    monkeypatch.setattr(reading._Stream, "_render", lambda *arguments: time.sleep(0.05) or real(*arguments))
    windows = list(WindowReader(str(videos / "v5.mp4"), Plan(32, 32, False, 32), *REST, 1.0).windows())
    assert len(windows) == 2
