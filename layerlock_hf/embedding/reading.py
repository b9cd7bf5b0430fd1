"""The windows of a video, one after the other, decoded in a child process: each frame once, and never all at once."""

import functools
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ..data import ClipTransform, DecodingError, isolated
from ..data.clips import one_line
from ..data.transforms import resize
from ..models.video_reading_opening import as_decoding_errors, openable
from ..models.video_reading_pictures import pictures_in, read_picture
from ..models.video_reading_pyav import Decoding
from ..models.video_reading_rgb import Upright, upright_size
from .windows import Plan, Window, WindowCutter


SLICE = 0.25  # of the limit of time, after which a child gives a sign of life though no window is complete


@dataclass(frozen=True)
class Cut:
    """A window as it comes from the child.

    Attributes:
        spans: of each step of time that has a vector, see `Window.spans`.
        extent: when the window begins and ends, in seconds; NaN where that is unknown.
        number: of the window.
        clip: what the encoder sees, uint8 (T, 3, S, S).
        progress: the share of the video that is read, 0 where its length is unknown.
    """

    spans: list[dict]
    extent: tuple[float, float]
    number: int
    clip: np.ndarray
    progress: float


@dataclass(frozen=True)
class End:
    """The end of a video.

    Attributes:
        note: what the file has lost, None if nothing.
    """

    note: str | None


class WindowReader:
    """Reads the windows of one video, in order.

    The child keeps the video open between calls. One that dies is replaced by another, which reads the video again up
    to the window that is asked for.

    Args:
        source: path or bytes of the video, or the path of a folder of pictures.
        plan: how it is cut.
        num_steps: steps of time of a window that have vectors of their own.
        transform: whose central box of a frame is shown.
        frame_rate: of folders of pictures.
        decode_timeout: seconds without a window, or a sign of life, before the video is given up; 0 decodes in this
            process.

    Attributes:
        note: once all windows are read, what the file has lost, None if nothing.
    """

    def __init__(
        self,
        source: str | bytes,
        plan: Plan,
        num_steps: int,
        transform: ClipTransform,
        frame_rate: float | None,
        decode_timeout: float,
    ):
        self.note: str | None = None
        time_slice = SLICE * decode_timeout if decode_timeout else math.inf
        # Nothing in there refers to this, so that the child ends as soon as this is forgotten
        self._ask = isolated(
            _Stream(source, plan, num_steps, transform, frame_rate, time_slice).advance, decode_timeout
        )

    def windows(self, first: int = 0) -> Iterator[Cut]:
        """The windows from one on, counted as they come.

        Raises:
            DecodingError: where the video breaks such that the process that decodes it does not survive, or where
                nothing of it decodes.
        """
        position = first
        while True:
            answer = self._ask(position)
            if isinstance(answer, End):
                self.note = answer.note
                return
            if answer is not None:
                yield answer
                position += 1


class _Stream:
    """A video that is being read, in the child; arguments as of `WindowReader`, and the seconds that a call may take
    without a window."""

    def __init__(self, source, plan, num_steps, transform, frame_rate, time_slice):
        self.source, self.plan, self.num_steps, self.transform = source, plan, num_steps, transform
        self.frame_rate, self.time_slice = frame_rate, time_slice
        self.note: str | None = None
        self._cuts: Iterator[Cut | None] | None = None  # begun by the child: what is open here would be open there
        self._num_read = 0
        self._interval, self._duration, self._has_gaps = math.nan, None, False

    def advance(self, position: int) -> Cut | End | None:
        """The window at a position; None if it takes long."""
        if self._cuts is None:
            self._cuts = self._cut()
        stop = time.monotonic() + self.time_slice
        try:
            for cut in self._cuts:
                self._num_read += cut is not None
                if cut is not None and self._num_read > position:
                    return cut
                if time.monotonic() > stop:
                    return None
        except (RuntimeError, ValueError, MemoryError) as error:  # of FFmpeg's filters, and of frames of any size
            raise DecodingError(f"{type(error).__name__}: {one_line(error)}") from error
        return End(self.note)

    def _cut(self) -> Iterator[Cut | None]:
        """The windows, and None after every frame."""
        cutter, begin = WindowCutter(self.plan), None
        is_folder = isinstance(self.source, str) and os.path.isdir(self.source)
        try:
            for seconds, render in self._pictures() if is_folder else self._frames():
                begin = seconds if begin is None else begin
                for window in cutter.add(seconds, render):
                    yield self._finished(window, begin)
                yield None
        except DecodingError as error:
            if begin is None:
                raise
            self.note = str(error)  # what precedes it is kept
        for window in cutter.finish(self._interval, self._has_gaps):
            yield self._finished(window, begin)

    def _finished(self, window: Window, begin: float) -> Cut:
        clip = np.stack([frame.pixels for frame in window.shown])
        extent = window.frames[0].seconds, window.frames[1].until
        progress = (extent[1] - begin) / self._duration if self._duration else 0.0
        return Cut(window.spans(self.num_steps), extent, window.number, clip, min(1.0, max(0.0, progress)))

    def _frames(self) -> Iterator[tuple[float, Callable[[], np.ndarray]]]:
        """Of every frame that decodes, also after damage, when it begins and what makes its pixels."""
        uprights, seconds = {}, None
        with openable(self.source) as file:
            decoding = Decoding(file, stops_at_damage=False)
            with as_decoding_errors():
                for frame in decoding:
                    self._interval, self._duration = 1 / (decoding.average_rate or 1), decoding.duration
                    tick = frame.pts if decoding.has_times else frame.dts
                    later = None if tick is None else tick * decoding.tick
                    # Frames left in the decoder at the end have no time in AVI, and some files give all the same
                    if later is None or seconds is not None and later <= seconds:
                        later = 0.0 if seconds is None else seconds + self._interval
                    seconds = later
                    yield seconds, functools.partial(self._render, frame, decoding.pixel_aspect, uprights)
        if seconds is None:
            raise DecodingError("no frame can be decoded")
        self.note, self._has_gaps = decoding.note, decoding.is_damaged

    def _render(self, frame, pixel_aspect: float, uprights: dict[tuple, Upright]) -> np.ndarray:
        """What is shown of a frame; the size of the frames may change within a video."""
        key = frame.format.name, frame.height, frame.width
        if key not in uprights:
            uprights[key] = Upright(frame, self.transform.center(*upright_size(frame), pixel_aspect).box)
        return self._resized(uprights[key](frame))

    def _pictures(self) -> Iterator[tuple[float, Callable[[], np.ndarray]]]:
        """As `_frames`, of a folder; without a frame rate the times are NaN."""
        paths = pictures_in(self.source)
        if not paths:
            raise DecodingError("the folder holds no pictures", "empty")
        if self.plan.in_seconds and self.frame_rate is None:
            raise DecodingError(
                "pictures have no times: give window and stride in frames, or a frame_rate", "no times"
            )
        if self.frame_rate is not None:
            self._interval, self._duration = 1 / self.frame_rate, len(paths) / self.frame_rate
        failed = []  # the reasons
        for index, path in enumerate(paths):
            try:
                picture = read_picture(path)
            except ValueError as error:
                failed.append(one_line(error))
                continue
            shown = self.transform.center(*picture.shape[-2:]).crop(picture)
            yield index * self._interval, functools.partial(self._resized, shown)
        if len(failed) == len(paths):
            raise DecodingError(f"no frame can be decoded: {failed[0]}")
        if failed:
            self._has_gaps = True
            self.note = f"only {len(paths) - len(failed)} of {len(paths)} frames decode: {failed[0]}"

    def _resized(self, pixels: torch.Tensor) -> np.ndarray:
        return resize(pixels[None], self.transform.image_size)[0].numpy()
