"""Serve a page on which people drop a video and see what an encoder makes of it, or write it as a Space of the Hub.

layerlock app RUN [--classes READOUT] [--depth READOUT] [--export FOLDER]

RUN is a run of `layerlock pretrain`, a folder with a model, or a readout. The page shows the clip, what the encoder
saw of it in training and what the model predicts from that, its features as colours at a chosen depth, and what
resembles a patch that is clicked. Of a run, a slider goes over the models that it has kept (--save_stages true).
--classes adds the likeliest classes, --depth a film of depth; each is a folder of `layerlock readout`.

The page is served on this machine alone, unless --host says otherwise, and asks nobody else for anything. Videos are
read in a child process, and visitors wait for each other. Ctrl-C ends it.
"""

import argparse
import sys

from transformers.utils import logging

from ..app import Subject, build_page, find_kept, serve, write_space
from ..app.page import HOST, PORT, load_gradio
from ..app.reading import MAX_MB, MAX_SECONDS
from . import programs


def main(arguments: list[str]):
    parser = programs.Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", metavar="RUN", type=programs.folder, help="Folder of a run, a model, or a readout.")
    parser.add_argument("--classes", metavar="READOUT", type=programs.folder, help="Folder of a readout for classes.")
    parser.add_argument("--depth", metavar="READOUT", type=programs.folder, help="Folder of a readout for depth.")
    parser.add_argument("--title", help="Title of the page (default: the name of RUN).")
    parser.add_argument(
        "--max_mb", type=programs.whole(1), default=MAX_MB, help=f"Megabytes of a video (default {MAX_MB})."
    )
    parser.add_argument(
        "--max_seconds",
        type=programs.whole(1),
        default=MAX_SECONDS,
        help=f"Seconds of a video that are read (default {MAX_SECONDS}).",
    )
    parser.add_argument("--host", default=HOST, help=f"Address to listen at (default {HOST}: this machine alone).")
    parser.add_argument(
        "--port", type=programs.whole(1, 65535), default=PORT, help=f"Port to listen at (default {PORT})."
    )
    parser.add_argument(
        "--export", metavar="FOLDER", type=programs.folder, help="Write the page as a Space to this folder, and end."
    )
    args = parser.parse_args(arguments)
    logging.disable_progress_bar()
    title = args.title or args.run.resolve().name
    with programs.errors_told():
        load_gradio()  # before models are loaded, which takes long
        kept = find_kept(args.run)
        if args.export is not None:
            write_space(args.export, kept, title, args.classes, args.depth, args.max_mb, args.max_seconds)
            print(f"try it with `python {args.export}/app.py`; its README.md says how to upload it")
            return
        page = build_page(Subject(kept, args.classes, args.depth), title, args.max_mb, args.max_seconds)
        serve(page, args.max_mb, args.host, args.port)


if __name__ == "__main__":
    main(sys.argv[1:])
