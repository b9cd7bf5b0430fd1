import time

import pytest

from layerlock_hf.data import ClipTransform, Isolated, PretrainingClips, load_videos
from layerlock_hf.data.timing import is_measured, measured, timed


def work():
    with timed("outer"):
        time.sleep(0.02)
        with timed("inner"):
            time.sleep(0.05)
        with timed("inner"):
            time.sleep(0.05)


def test_a_step_within_another_counts_for_itself_alone():
    with measured() as seconds:
        begin = time.perf_counter()
        work()
        whole = time.perf_counter() - begin
    assert seconds["inner"] >= 0.1 and seconds["outer"] >= 0.02
    assert sum(seconds.values()) <= whole


def test_nothing_is_measured_unless_asked_for():
    work()
    assert not is_measured()
    with measured(is_asked=False) as seconds:
        work()
        assert not is_measured()
    assert seconds == {}


def test_a_step_that_fails_is_measured():
    with measured() as seconds, pytest.raises(ZeroDivisionError), timed("fails"):
        1 / 0  # noqa: B018
    assert list(seconds) == ["fails"] and not is_measured()


def test_steps_of_a_child_count_here():
    isolated = Isolated(work, 20.0)
    isolated()  # forked while nobody asks
    with measured() as seconds:
        isolated()
    assert seconds.keys() == {"outer", "inner", "hand over"}
    assert seconds["inner"] >= 0.1 and seconds["hand over"] > 0
    before = dict(seconds)
    isolated()
    assert seconds == before, "nobody asked for the third call"


@pytest.mark.parametrize("decode_timeout", [0, 20.0])
@pytest.mark.parametrize("options", [{}, {"clips_per_video": 2}, {"augment_on_device": True}], ids=repr)
def test_the_loader_times_its_steps(folder, options, decode_timeout):
    videos = load_videos(str(folder))
    clips = PretrainingClips(videos, 8, 4, transform=ClipTransform(16), decode_timeout=decode_timeout, **options)
    clips.__getitems__([0, 1])
    with measured() as seconds:
        begin = time.perf_counter()
        clips.__getitems__([2, 3])
        whole = time.perf_counter() - begin
    assert seconds.keys() == {"fetch", "decode", "transform"} | ({"hand over"} if decode_timeout else set())
    assert min(seconds.values()) > 0
    assert sum(seconds.values()) <= whole
