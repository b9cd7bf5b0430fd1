import math
from types import SimpleNamespace

import pytest

from layerlock_hf.utils.bounds import check_bounds


BOUNDS = {"share": (0, 1), "count": (1, math.inf)}


@pytest.mark.parametrize("count", [1, 2.5, [1, 3], None])
def test_within(count):
    check_bounds(SimpleNamespace(share=1, count=count), BOUNDS)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"share": 1.1, "count": 1}, "share must be between 0 and 1, got 1.1"),
        ({"share": math.nan, "count": 1}, "share must be between 0 and 1, got nan"),
        ({"share": 0, "count": 0}, "count must be at least 1, got 0"),
        ({"share": 0, "count": math.inf}, "count must be at least 1, got inf"),
        ({"share": 0, "count": [1, -1]}, "count must be at least 1, got -1"),
    ],
)
def test_outside(settings, message):
    with pytest.raises(ValueError, match=message):
        check_bounds(SimpleNamespace(**settings), BOUNDS)
