"""Bounds of settings, checked when they are set."""

import math


MAX_SEED = 2**32 - 1  # of NumPy


def check_bounds(settings: object, bounds: dict[str, tuple[float, float]]):
    """Raise a `ValueError` unless settings are numbers within their bounds, both included; None is not set.

    Args:
        settings: has them as attributes; every value of a list is checked.
        bounds: from a name to the smallest and largest value. These may be `math.inf`, but values must be finite.
    """
    for name, (least, most) in bounds.items():
        given = getattr(settings, name)
        values = given if isinstance(given, list | tuple) else [] if given is None else [given]
        for value in values:
            if not (least <= value <= most and math.isfinite(value)):
                allowed = f"at least {least:g}" if most == math.inf else f"between {least:g} and {most:g}"
                raise ValueError(f"{name} must be {allowed}, got {value}")
