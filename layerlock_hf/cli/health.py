"""Whether a run of pretraining is healthy, while it runs or afterwards, and which of its checkpoints to keep.

layerlock health RUN [--json] [--output_dir OUT]

RUN is the OUT of `layerlock pretrain`. Tells from its log whether it is collapsing, diverging, not learning, losing
what it had learnt, starved of data, or has stages that are too short, with the numbers and what to do. Draws
`health.png` into OUT, if that is given. The exit status is 0 if nothing is wrong or it is too early to tell, 1 if
something is wrong, and 2 if RUN cannot be judged.
"""

import argparse
import sys
import textwrap
from itertools import groupby

from ..analysis.health import Health
from ..analysis.health_plot import plot_health
from ..hub.words import listed
from ..pretraining.health import judge_run, read_run
from ..utils.outputs import check_output, print_table
from ..utils.records import json_text
from . import programs


PICTURE = "health.png"
WIDTH = 100  # characters of a line of text
TROUBLED, NOT_JUDGED = 1, 2  # exit statuses


def make_parser() -> argparse.ArgumentParser:
    parser = programs.Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", type=programs.folder, metavar="RUN", help="Folder of the run.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object instead of text.")
    parser.add_argument("--output_dir", type=programs.folder, metavar="OUT", help=f"Folder for {PICTURE}.")
    return parser


def print_health(health: Health):
    print(f"step {health.step:,} of {health.max_steps:,}\n")
    print_table([_table_row(stage) for stage in health.stages])
    for name, group in groupby(sorted(health.verdicts, key=lambda verdict: verdict.name), lambda one: one.name):
        first, *others = group
        place = "" if first.stage is None else f" (stage {first.stage})"
        also = f" Also in {listed([f'stage {other.stage}' for other in others])}." if others else ""
        advice = f" {first.advice}." if first.advice else ""
        told = f"{name.upper()}{place}: {first.text}.{also}{advice}"
        print(f"\n{_wrapped(told)}")
    print(f"\n{_wrapped(health.checkpoint_text)}")


def _table_row(stage: dict) -> dict:
    label, objective = list(stage["objectives"].items())[-1]  # the deepest of several
    return {
        "stage": stage["stage"],
        "from step": f"{stage['start']:,}",
        "frozen": stage["num_frozen"],
        "predicts": label,
        "explained variance: first": f"{objective['first_explained_variance']:.2f}",
        "best": f"{objective['best_explained_variance']:.2f}",
        "last": f"{objective['last_explained_variance']:.2f}",
        "target variance": f"{objective['last_target_variance']:.3g}",
        "gradient norm": f"{stage['grad_norm']['last']:.2g}" if "grad_norm" in stage else "",
        "waiting": "" if stage["data_wait_fraction"] is None else f"{stage['data_wait_fraction']:.0%}",
    }


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH)


def main(arguments: list[str]):
    own = make_parser().parse_args(arguments)
    try:
        health = judge_run(own.run)
        if own.output_dir is not None:
            check_output(own.output_dir, [PICTURE])
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(NOT_JUDGED) from None
    if own.output_dir is not None:
        plot_health(*read_run(own.run), own.output_dir / PICTURE)
    if own.json:
        print(json_text(health.to_json(), indent=1))
    else:
        print_health(health)
    if not health.is_healthy:
        raise SystemExit(TROUBLED)


if __name__ == "__main__":
    main(sys.argv[1:])
