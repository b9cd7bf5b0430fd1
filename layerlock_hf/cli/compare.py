"""Compare several results.json of `layerlock readout` in one table and one plot.

layerlock compare RUN_A RUN_B --output FOLDER

Writes results.md and results.png, with a section for every dataset. The first file of a section is what the others are
compared with; a note says where a different test set, number of steps or other settings make numbers incomparable.
Clip sizes, readouts, single frames and seeds may be what is being compared: the rows name them.
Numbers from the LayerLock paper (Table 1) are shown beside their dataset for reference.
"""

import argparse
import sys

from ..evaluation.compare import compare
from . import programs


def main(arguments: list[str]):
    parser = programs.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "results", type=programs.folder, nargs="+", metavar="RESULTS", help="results.json files, or their folders"
    )
    parser.add_argument("--output", type=programs.folder, required=True, help="folder for results.md and results.png")
    args = parser.parse_args(arguments)
    with programs.errors_told():
        print(compare(args.results, args.output))


if __name__ == "__main__":
    main(sys.argv[1:])
