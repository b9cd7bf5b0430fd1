"""`layerlock push`, as a file."""

import runpy
import sys
from pathlib import Path


if __name__ == "__main__":
    sys.argv.insert(1, "push")
    runpy.run_path(str(Path(__file__).with_name("layerlock")), run_name="__main__")
