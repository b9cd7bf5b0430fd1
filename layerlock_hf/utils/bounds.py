"""Bounds of settings, checked where they are typed."""

import math


MAX_SEED = 2**32 - 1  # of NumPy


def check_bounds(settings: object, bounds: dict[str, tuple[float, float]]):
    """Raise a `ValueError` unless settings are numbers within their bounds, both included; None is not set.

    Args:
        settings: has them as attributes; of a list each value counts.
        bounds: from a name to the least and the largest value, which may be `math.inf`; numbers are finite still.
    """
    for name, (least, most) in bounds.items():
        given = getattr(settings, name)
        values = given if isinstance(given, list | tuple) else [] if given is None else [given]
        for value in values:
            if not (least <= value <= most and math.isfinite(value)):
                allowed = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
                raise ValueError(f"{name} must be {allowed}, got {value}")
