"""Push what a run left to the Hub, as complete repositories.

layerlock push RUN --repo_id ORG/NAME [--stages] [--collection TITLE] [--private] [--dry_run]

RUN is what `layerlock export` takes. `main` shows the model at the end of the run. With `--stages` each stage is a
revision, too (`from_pretrained("ORG/NAME", revision="stage-2")`): the model as it was when that stage began and its
layers froze. What is on the Hub already is not sent again, so after a failure the same command goes on. Needs a token:
`hf auth login`, or HF_TOKEN.
"""

import argparse
import sys
from contextlib import ExitStack

from huggingface_hub import constants

from ..pretraining.pushing import plan, push
from ..utils.outputs import print_table
from . import programs
from .export import add_source


def chosen(args: argparse.Namespace) -> dict:
    """What is to be pushed, and where to."""
    names = ("run", "repo_id", "what", "checkpoint", "dtype", "license", "stages")
    return {name: getattr(args, name) for name in names}


def print_plan(args: argparse.Namespace):
    with ExitStack() as stack, programs.errors_told():
        plans = plan(stack, readouts=args.collection is not None, **chosen(args))
        rows = [
            {
                "repository": name,
                "revision": revision.tag or "main",
                "commit": revision.title,
                "files": len(files := list(revision.folder.iterdir())),
                "MB": sum(path.stat().st_size for path in files) / 1e6,
            }
            for name, revisions, _ in plans
            for revision in revisions
        ]
    print_table(rows)
    print("This would be pushed. Nothing was sent")


def main(arguments: list[str]):
    parser = programs.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source(parser)
    parser.add_argument("--repo_id", metavar="ORG/NAME", required=True, help="Where to; made if it is not there.")
    parser.add_argument("--private", action="store_true", default=None, help="Make new repositories private.")
    parser.add_argument("--stages", action="store_true", help="Also every stage that the run kept, as a revision.")
    parser.add_argument(
        "--collection",
        metavar="TITLE",
        help="Make or update a collection of the model and the readouts in RUN, each of which becomes a repository "
        "ORG/NAME-FOLDER.",
    )
    parser.add_argument("--replace", action="store_true", help="Push even if the repository holds another run.")
    parser.add_argument("--dry_run", action="store_true", help="Say what would be pushed, and send nothing.")
    args = parser.parse_args(arguments)
    if args.dry_run:
        return print_plan(args)
    with programs.errors_told():
        pushed = push(private=args.private, collection=args.collection, replaces=args.replace, **chosen(args))
    for name, revisions in pushed.items():
        for one in revisions:
            done = "was there" if one.was_there else "pushed"
            print(f"{done}: {constants.ENDPOINT}/{name}/tree/{one.revision.tag or 'main'}  ({one.revision.title})")


if __name__ == "__main__":
    main(sys.argv[1:])
