"""Which frames of a video make a window, decided as the frames come, from their times alone.

Window k is the stretch from k strides on, a window long, counted from the first frame, in seconds or in frames. It has
the frames that begin in it; one that has none, as where a still is shown for long, or the same as the one before, is
left out. Of a window the encoder sees T frames: those on display at the middles of T equal parts. If frames are left
over in the end, the last window is the one that ends with the video; a video that is shorter than a window repeats its
last frame.
"""

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


# By which a frame counts as later than it is: clocks of files round, some of them to milliseconds, and a frame that
# begins with a window must be in it. In seconds, or in frames
SLACK = 1e-3


@dataclass(frozen=True)
class Plan:
    """How a video is cut into windows.

    Args:
        window: length of a window, in seconds or in frames.
        stride: from the beginning of one window to that of the next.
        in_seconds: whether these are seconds, else frames of the file.
        num_frames: frames T of a window that the encoder sees.

    Raises:
        ValueError: if the encoder would see more frames than can be told apart.
    """

    window: float
    stride: float
    in_seconds: bool
    num_frames: int

    def __post_init__(self):
        least = 2 * SLACK * self.num_frames
        if not (self.window >= least and self.stride >= least):
            unit = "s" if self.in_seconds else "f"
            raise ValueError(
                f"window and stride must be at least {least:g}{unit} for {self.num_frames} frames to show, got "
                f"{self.window:g}{unit} and {self.stride:g}{unit}: give longer ones"
            )

    @property
    def step(self) -> float:
        """From one of the T instants of a window to the next."""
        return self.window / self.num_frames


def make_plan(window: str, stride: str | None, frame_rate: float | None, num_frames: int) -> Plan:
    """The plan that settings ask for.

    Args:
        window: such as "2s" or "16f".
        stride: likewise; by default the window.
        frame_rate: how many frames of these settings make a second, whatever the rate of the video; by default they
            are the frames of the file.
        num_frames: frames of a window that the encoder sees.

    Raises:
        ValueError: if a length is not one, or the two are of different units.
    """
    stride = window if stride is None else stride
    (window_length, window_unit), (stride_length, stride_unit) = (
        _length(name, text, frame_rate) for name, text in (("window", window), ("stride", stride))
    )
    if window_unit != stride_unit:
        raise ValueError(
            f"stride must be in the unit of window, {window}, got {stride}: give both in seconds or both in frames, "
            "or a frame_rate"
        )
    return Plan(window_length, stride_length, window_unit == "s", num_frames)


def _length(name: str, text: str, frame_rate: float | None) -> tuple[float, str]:
    """A length and its unit; frames of a given rate are seconds."""
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)s|(\d+)f", text)
    if found is None or float(found[1] or found[2]) == 0:
        raise ValueError(f"{name} must be seconds or whole frames above 0, got {text!r}: write 2s or 0.5s, or 16f")
    if found[1]:
        return float(found[1]), "s"
    return (int(found[2]), "f") if frame_rate is None else (int(found[2]) / frame_rate, "s")


@dataclass
class Frame:
    """A frame of a video.

    Attributes:
        index: in the file, from 0 on.
        seconds: when it begins, on the clock of the file.
        place: where it begins, in the unit of the plan, from the first frame on.
        until: when it ends, in seconds.
        pixels: uint8 (3, S, S), if an encoder may be shown it.
    """

    index: int
    seconds: float
    place: float
    until: float = math.nan
    pixels: np.ndarray | None = None


@dataclass(frozen=True)
class Window:
    """A window of a video.

    Attributes:
        number: of the window, from 0 on; those that are left out count.
        frames: all frames that begin in it: the first, and the last.
        shown: the T frames that the encoder sees.
    """

    number: int
    frames: tuple[Frame, Frame]
    shown: Sequence[Frame]

    def spans(self, num_steps: int) -> list[dict]:
        """What each of so many equal parts of the clip shows, and for one part the window: "start_seconds",
        "end_seconds", "first_frame" and "num_frames" in the file."""
        size = len(self.shown) // num_steps
        parts = [(self.shown[step * size], self.shown[(step + 1) * size - 1]) for step in range(num_steps)]
        return [
            {
                "start_seconds": first.seconds,
                "end_seconds": last.until,
                "first_frame": first.index,
                "num_frames": last.index - first.index + 1,
            }
            for first, last in (parts if num_steps > 1 else [self.frames])
        ]


class WindowCutter:
    """Cuts a video into windows while its frames come.

    It holds the frames of one window's length, and pixels of those alone that are on display at some instant.
    """

    def __init__(self, plan: Plan):
        self.plan = plan
        self._frames: list[Frame] = []  # with pixels, where they are due, all but the last
        self._last: Frame | None = None
        self._render: Callable[[], np.ndarray] | None = None  # of the last
        self._first_seconds = math.nan
        self._number = 0  # of the next window
        self._span = (-1, -1)  # first and last frame of the window before

    def add(self, seconds: float, render: Callable[[], np.ndarray]) -> list[Window]:
        """The windows that the next frame completes.

        Args:
            seconds: when the frame begins, on the clock of the file; later than the one before it.
            render: makes its pixels, called at most once, before the frame after the next is added.
        """
        index = 0 if self._last is None else self._last.index + 1
        if index == 0:
            self._first_seconds = seconds
        place = (seconds - self._first_seconds if self.plan.in_seconds else index) + SLACK
        windows = self._settle(seconds, place) if self._last is not None else []
        self._last, self._render = Frame(index, seconds, place), render
        return windows

    def finish(self, interval: float, has_gaps: bool = False) -> list[Window]:
        """The windows that are left when the last frame has been added.

        Args:
            interval: seconds that a video of one frame shows it; of others it is the average.
            has_gaps: whether frames are missing in between, so that the last one is not shown for longer than this.
        """
        if self._last is None:
            return []
        last = self._last
        if last.index > 0:
            average = (last.seconds - self._first_seconds) / last.index
            interval = min(interval, average) if has_gaps else average
        end = last.place + (interval if self.plan.in_seconds else 1)
        windows = self._settle(last.seconds + interval, end, is_end=True)
        begun = self._number * self.plan.stride
        covered = begun - self.plan.stride + self.plan.window if self._number else 0.0
        if last.place >= max(begun, covered):
            windows += self._window(max(0.0, end - self.plan.window - SLACK / 2))
        return windows

    def _settle(self, seconds: float, place: float, is_end: bool = False) -> list[Window]:
        """The windows that are complete, now that it is known when the last frame ends."""
        last = self._last
        last.until = seconds
        if is_end or self._is_shown(last.place, place):
            last.pixels = self._render()
        self._frames.append(last)
        windows, plan = [], self.plan
        while (start := self._number * plan.stride) + plan.window <= place:
            if start > last.place:  # none begins there, nor in those after it
                self._number = math.floor((place - plan.window) / plan.stride) + 1
                break
            windows += self._window(start)
            self._number += 1
        self._forget_before(place - plan.window)
        return windows

    def _is_shown(self, start: float, end: float) -> bool:
        """Whether a frame on display in [start, end) is seen: at an instant of a window, or at any other as far from
        these as they are from each other, as the last window may need it."""
        plan = self.plan

        def instants_before(place: float) -> int:
            return math.ceil(place / plan.step - 0.5)

        if instants_before(start) < instants_before(end):
            return True
        # Here the frame is shorter than a step, so that few windows are asked
        numbers = range(max(0, math.floor((start - plan.window) / plan.stride)), math.floor(end / plan.stride) + 1)
        return any(
            max(0, instants_before(start - number * plan.stride))
            < min(plan.num_frames, instants_before(end - number * plan.stride))
            for number in numbers
        )

    def _window(self, start: float) -> list[Window]:
        """The window that begins there, unless it has no frames, or those of the one before."""
        frames, plan = self._frames, self.plan
        begun, ended = (
            bisect_left(frames, place, key=lambda frame: frame.place) for place in (start, start + plan.window)
        )
        if begun == ended or self._span == (frames[begun].index, frames[ended - 1].index):
            return []
        self._span = frames[begun].index, frames[ended - 1].index
        seen = [frame for frame in frames if frame.pixels is not None]
        instants = (start + (part + 0.5) * plan.step for part in range(plan.num_frames))
        shown = [bisect_right(seen, instant, key=lambda frame: frame.place) - 1 for instant in instants]
        shown = [seen[max(0, index)] for index in shown]
        return [Window(self._number, (frames[begun], frames[ended - 1]), shown)]

    def _forget_before(self, place: float):
        """Keep what begins from there on, and what is on display there."""
        kept = max(0, bisect_left(self._frames, place, key=lambda frame: frame.place) - 1)
        while kept > 0 and self._frames[kept].pixels is None:
            kept -= 1
        del self._frames[:kept]
