"""Find the windows of embedded videos that are most like a clip.

layerlock search OUT --query CLIP [--top 10] [--one_per_video] [--output_dir DIR]

OUT is a folder that `layerlock embed` wrote, or is writing. The clip is embedded by the same model with the same
settings, and every window of OUT compared with the window of the clip that it is most like, by cosine similarity.
DIR receives search.png, a sheet of the windows, and search.html, the same as a page that needs no other file.
"""

import argparse
import sys
from dataclasses import asdict

from transformers.utils import logging

from ..embedding import search
from ..embedding.sheet import time_of, write_sheets
from ..utils.outputs import check_output, print_table
from ..utils.records import json_text
from . import programs
from .embed import default_device
from .predict import device


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("out", metavar="OUT", type=programs.folder, help="Folder that `layerlock embed` wrote.")
    parser.add_argument("--query", required=True, metavar="CLIP", help="Video to look for.")
    parser.add_argument("--top", type=programs.whole(1), default=10, help="Windows to find (default 10).")
    parser.add_argument("--one_per_video", action="store_true", help="Find of every video the best window alone.")
    parser.add_argument(
        "--query_window",
        type=float,
        metavar="START",
        help="Look only for the window of the clip that shows this time, in seconds.",
    )
    parser.add_argument(
        "--depth", type=programs.whole(0), help="Whose vectors are compared (default: the last that there is)."
    )
    parser.add_argument("--model", help="What made the vectors, if it is no longer where it was.")
    parser.add_argument(
        "--output_dir", type=programs.folder, metavar="DIR", help="Folder for search.png and search.html."
    )
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    parser.add_argument("--device", type=device, default=default_device(), help="Device, as PyTorch names it.")
    return parser


def main(arguments: list[str]):
    args = build_parser().parse_args(arguments)
    logging.disable_progress_bar()
    with programs.errors_told():
        if args.output_dir is not None:
            check_output(args.output_dir, ())
        found = search(
            args.out, args.query, args.top, args.query_window, args.depth, args.model, args.device, args.one_per_video
        )
        sheets = [] if args.output_dir is None else write_sheets(found, args.output_dir)
    if found.note:
        print(f"incomplete: {found.note}", file=sys.stderr)
    if args.json:
        return print(json_text(asdict(found), indent=1, ensure_ascii=False))
    rows = [
        {"rank": rank, "score": hit.score, "time": time_of(hit), "video": hit.video}
        for rank, hit in enumerate(found.hits, start=1)
    ]
    print_table(rows)
    print(f"among {found.num_searched} windows, after {found.depth} layers")
    for path in sheets:
        print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
