"""Compare several results.json of `layerlock readout` in one table and one plot.

layerlock compare RUN_A RUN_B --output FOLDER

Writes results.md and results.png. Every dataset has a section. The first file of a section is what the others are
compared with: a note says where another test set, other steps or other settings make the numbers not comparable. Rows
tell the size of an encoder's clips, and readouts, single frames and seeds where these are what is compared. Numbers
that the LayerLock paper prints for a dataset (Table 1) stand beside it as references.
"""

import argparse
import sys

from ..evaluation.compare import compare
from . import programs


def main(arguments: list[str]):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "results", type=programs.folder, nargs="+", metavar="RESULTS", help="results.json, or its folder"
    )
    parser.add_argument("--output", type=programs.folder, required=True, help="folder for results.md and results.png")
    args = parser.parse_args(arguments)
    with programs.errors_told():
        print(compare(args.results, args.output))


if __name__ == "__main__":
    main(sys.argv[1:])
