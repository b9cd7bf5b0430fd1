"""Which windows a video has, and of which frames: by hand, and what must hold for any times of frames."""

import itertools
import random
import weakref

import pytest

from layerlock_hf.embedding.windows import Plan, WindowCutter, make_plan


def cut(plan, times, interval=0.1):
    """The windows of frames at these times, whose pixels are their numbers."""
    cutter, rendered = WindowCutter(plan), []

    def render(index):
        rendered.append(index)
        return index

    windows = [
        window
        for index, seconds in enumerate(times)
        for window in cutter.add(seconds, lambda index=index: render(index))
    ]
    windows += cutter.finish(interval)
    assert rendered == sorted(set(rendered)), "no frame is rendered twice"
    return windows, rendered


def at_rate(rate, count, begin=0.0):
    return [begin + index / rate for index in range(count)]


def spans(windows):
    return [(first, first + count) for first, count in map(span, windows)]


def span(window):
    (about,) = window.spans(1)
    return about["first_frame"], about["num_frames"]


def seen(window):
    return [frame.pixels for frame in window.shown]


def test_lengths_in_seconds_and_in_frames():
    assert make_plan("2s", "0.5s", None, 16) == Plan(2.0, 0.5, True, 16)
    assert make_plan("16f", None, None, 16) == Plan(16, 16, False, 16)
    assert make_plan("16f", "1s", 8.0, 16) == Plan(2.0, 1.0, True, 16)


@pytest.mark.parametrize("window", ["2", "s", "-1s", "0s", "0f", "1.5f", "2 s", "two", "", "1e3s", "nans"])
def test_what_is_no_length_is_refused(window):
    with pytest.raises(ValueError, match="window must be seconds or whole frames above 0, got .*: write 2s or 0.5s"):
        make_plan(window, "1s", None, 16)


def test_mixed_units_and_too_many_frames_are_refused():
    with pytest.raises(ValueError, match="stride must be in the unit of window, 2s, got 8f: give both"):
        make_plan("2s", "8f", None, 16)
    with pytest.raises(ValueError, match="window and stride must be at least 0.032s for 16 frames to show, got 0.01s"):
        make_plan("0.01s", None, None, 16)


def test_frames_are_counted():
    windows, rendered = cut(Plan(4, 2, False, 4), at_rate(25, 9))
    assert spans(windows) == [(0, 4), (2, 6), (4, 8), (5, 9)], "the last one ends with the video"
    assert [seen(window) for window in windows] == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [5, 6, 7, 8]]
    windows, rendered = cut(Plan(8, 8, False, 4), at_rate(25, 16))
    assert [seen(window) for window in windows] == [[0, 2, 4, 6], [8, 10, 12, 14]], "as a clip of stride 2"
    assert not {1, 3, 5} & set(rendered), "what is never seen is not rendered"


def test_seconds_and_clocks_that_round():
    for begin, digits in ((0.0, 9), (10.0, 9), (1 / 3, 3)):  # Matroska rounds to milliseconds
        times = [round(time, digits) for time in at_rate(30, 90, begin)]
        windows, _ = cut(Plan(1.0, 0.5, True, 4), times)
        assert spans(windows) == [(start, start + 30) for start in range(0, 75, 15)]
        about = windows[2].spans(1)[0]
        assert (about["start_seconds"], about["end_seconds"]) == (times[30], times[60])
        assert windows[-1].spans(1)[0]["end_seconds"] == pytest.approx(begin + 3, abs=2e-3)


def test_the_rate_of_the_video_does_not_matter_in_seconds():
    for rate in (8, 24, 30, 60):
        windows, _ = cut(Plan(2.0, 2.0, True, 16), at_rate(rate, 4 * rate))
        for number, window in enumerate(windows):
            shown = [frame.seconds - 2 * number for frame in window.shown]
            assert all(abs(time - (part + 0.5) / 8) <= 1 / rate for part, time in enumerate(shown))


def test_short_videos_repeat_their_last_frame():
    windows, _ = cut(Plan(8, 4, False, 8), at_rate(25, 3))
    assert [seen(window) for window in windows] == [[0, 1, 2, 2, 2, 2, 2, 2]]
    windows, _ = cut(Plan(2.0, 1.0, True, 4), [5.0])
    assert [seen(window) for window in windows] == [[0, 0, 0, 0]]
    assert windows[0].spans(1) == [{"start_seconds": 5.0, "end_seconds": 5.1, "first_frame": 0, "num_frames": 1}]
    assert cut(Plan(2.0, 1.0, True, 4), [])[0] == []


def test_nothing_new_is_no_window():
    """Neither where a still is shown for hours, nor where windows lie closer than frames."""
    windows, _ = cut(Plan(1.0, 1.0, True, 2), [0.0, 0.5, 90000.0, 90000.5])
    assert spans(windows) == [(0, 2), (2, 4)]
    windows, _ = cut(Plan(1.0, 0.25, True, 2), at_rate(1, 4))
    assert len(set(spans(windows))) == len(windows) == 4


def test_steps_tell_what_they_show():
    windows, _ = cut(Plan(2.0, 2.0, True, 4), at_rate(10, 20))
    steps = windows[0].spans(2)
    assert [(step["first_frame"], step["num_frames"]) for step in steps] == [(2, 6), (12, 6)]
    assert [step["start_seconds"] for step in steps] == [0.2, 1.2]
    assert [step["end_seconds"] for step in steps] == [0.8, 1.8]


@pytest.mark.parametrize("seed", range(40))
def test_every_frame_is_in_a_window_and_no_window_comes_twice(seed):
    draw = random.Random(seed)
    times, rate = [draw.uniform(0, 9)], draw.choice([5, 24, 30, 60])
    for _ in range(draw.randrange(200)):
        times.append(times[-1] + draw.choice([1 / rate, 1 / rate, draw.uniform(0.001, 0.5)]))
    in_seconds = draw.random() < 0.5
    window = draw.choice([0.3, 1.0, 2.5, 7]) if in_seconds else draw.randrange(4, 40)
    stride = window * draw.choice([0.1, 0.3, 0.5, 0.9, 1])
    plan = Plan(window, stride if in_seconds else max(1, int(stride)), in_seconds, draw.choice([2, 4, 16]))
    windows, _ = cut(plan, times)
    assert set().union(*(range(*span) for span in spans(windows))) == set(range(len(times)))
    assert len(set(spans(windows))) == len(windows)
    assert [window.number for window in windows] == sorted({window.number for window in windows})
    assert spans(windows) == sorted(spans(windows))
    for window in windows:
        about = window.spans(1)[0]
        assert about["start_seconds"] == times[about["first_frame"]]
        end = about["first_frame"] + about["num_frames"]
        assert end == len(times) or about["end_seconds"] == times[end]
        shown = [frame.index for frame in window.shown]
        assert shown == sorted(shown) and len(shown) == plan.num_frames
        # On display when the window begins, or later
        assert shown[0] >= about["first_frame"] - 1 or times[shown[0]] >= about["start_seconds"] - plan.step
        assert shown[-1] < end


class Pixels:
    """What a weak reference can tell of."""


def test_little_is_held():
    """Of two minutes, with a window of a second: the pixels of no more than two windows."""
    cutter, alive, most = WindowCutter(Plan(1.0, 0.5, True, 8)), weakref.WeakSet(), 0

    def render():
        pixels = Pixels()
        alive.add(pixels)
        return pixels

    for index in range(3600):
        cutter.add(index / 30, render)
        most = max(most, len(alive))
    assert most <= 16


def test_windows_of_a_long_still_are_passed_over_at_once():
    windows, _ = cut(Plan(0.1, 0.1, True, 2), [0.0, 1e9, 1e9 + 0.1])
    assert len(windows) == 3
    assert all(a.number < b.number for a, b in itertools.pairwise(windows))
