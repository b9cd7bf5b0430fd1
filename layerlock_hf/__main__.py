"""`python -m layerlock_hf`, where the command `layerlock` is not on the path. It starts more slowly."""

import sys

from .cli import programs  # noqa: F401  (how programs end)
from .cli.main import main


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
