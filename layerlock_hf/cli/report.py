"""Write a page about a run of pretraining: what it was, how it went, what it learned. One HTML file, to be sent.

layerlock report RUN [--output FILE.html] [--data VIDEOS]

RUN is the folder of `layerlock pretrain`, finished or not. The page needs no server and no network, and tells no paths
of this machine. It shows settings, stages, curves, cost against plan, readouts that lie in RUN, and bad videos; of a
few clips what the model predicts in pixels, and their features as colours, with sliders over the stages and the depth.
The models that the run has kept are loaded on the CPU, one at a time. What cannot be shown says why.
"""

import argparse
import sys

from ..reporting import report
from . import programs


def main(arguments: list[str]):
    parser = programs.Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", metavar="RUN", type=programs.folder, help="Folder of a run.")
    parser.add_argument(
        "--output", metavar="FILE.html", type=programs.folder, help="File to write (default: RUN/report.html)."
    )
    parser.add_argument(
        "--data",
        metavar="VIDEOS",
        help="Videos for the pictures, at least two: a folder, list or data set, as for train_data (default: those "
        "that the run was trained on, if they are still there).",
    )
    args = parser.parse_args(arguments)
    with programs.errors_told():
        path = report(args.run, args.output, args.data)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB. Open it in a browser, or send it")


if __name__ == "__main__":
    main(sys.argv[1:])
