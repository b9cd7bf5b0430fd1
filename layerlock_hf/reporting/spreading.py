"""A few of many."""

from collections.abc import Sequence


def spread(items: Sequence, num_kept: int) -> list:
    """At most `num_kept` of the items, evenly spread, the first and the last included.

    >>> spread(range(101), 5)
    [0, 25, 50, 75, 100]
    """
    if len(items) <= num_kept:
        return list(items)
    return [items[round(place * (len(items) - 1) / (num_kept - 1))] for place in range(num_kept)]
