"""How long the steps of loading take; nothing is timed unless asked for."""

import contextlib
import time
from collections.abc import Iterator


_NOTHING = contextlib.nullcontext()
_clock: "_Clock | None" = None  # of this process, within `measured`


@contextlib.contextmanager
def measured(is_asked: bool = True) -> Iterator[dict[str, float]]:
    """Time what is `timed` within: seconds by step, or nothing unless asked.

    A step within another counts for itself alone, so that the steps add up to the whole.
    """
    global _clock
    before, _clock = _clock, _Clock() if is_asked else None
    seconds = _clock.seconds if is_asked else {}
    try:
        yield seconds
    finally:
        _clock = before


def is_measured() -> bool:
    return _clock is not None


def timed(step: str) -> contextlib.AbstractContextManager:
    """What a step of loading is done within."""
    return _NOTHING if _clock is None else _clock.time(step)


def count(seconds: dict[str, float]):
    """Steps that another process has measured, while the present step waited for it."""
    if _clock is not None:
        _clock.count(seconds)


class _Clock:
    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._inner = 0.0  # seconds of the steps within the present one

    @contextlib.contextmanager
    def time(self, step: str) -> Iterator[None]:
        outer, self._inner, begin = self._inner, 0.0, time.perf_counter()
        try:
            yield
        finally:
            whole = time.perf_counter() - begin
            self._add(step, whole - self._inner)
            self._inner = outer + whole

    def count(self, seconds: dict[str, float]):
        for step, value in seconds.items():
            self._add(step, value)
            self._inner += value

    def _add(self, step: str, value: float):
        self.seconds[step] = self.seconds.get(step, 0.0) + value
