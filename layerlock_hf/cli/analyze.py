"""Look at what runs and checkpoints have become.

layerlock analyze representations --models NAME=PATH ... --data VIDEOS --output_dir OUT
layerlock analyze convergence --config RECIPE --train_data VIDEOS --output_dir OUT
layerlock analyze plateau RUN --data VIDEOS

  representations  what encoders represent at each depth: ranks, likeness, retrieval, decodability, attention
  convergence      in which order layers converge: what freezing the first of them costs, by depth and step (Fig. 1)
  plateau          when the layers of a run have settled, and the freeze schedule that follows

`layerlock analyze NAME --help` says more of each.
"""

import difflib
import importlib
import sys

from . import programs  # noqa: F401  (how programs end)


# Each is the module analyze_NAME beside this one, and `main(arguments)` there
ANALYSES = ("representations", "convergence", "plateau")
HELP = ("-h", "--help", "help")


def main(arguments: list[str]):
    """Run an analysis."""
    name, *rest = arguments or ["--help"]
    if name in HELP:
        return print(f"usage: layerlock analyze {{{','.join(ANALYSES)}}} [--help | ARGUMENTS]\n\n{__doc__.strip()}")
    if name not in ANALYSES:
        close = difflib.get_close_matches(name, ANALYSES, n=1)
        hint = f"did you mean {close[0]}?" if close else "`layerlock analyze --help` lists them"
        raise SystemExit(f"error: there is no analysis {name}: {hint}")
    sys.argv = [f"layerlock analyze {name}", *rest]  # what messages call the program
    return importlib.import_module(f"layerlock_hf.cli.analyze_{name}").main(rest)


if __name__ == "__main__":
    main(sys.argv[1:])
