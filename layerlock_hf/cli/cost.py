"""What a run will cost, before it starts: operations, memory, communication, hours and money, stage by stage. Or, of a
run that has been started, what was planned beside what its log says.

layerlock cost --config RECIPE [--gpu h200 --gpus 8] [--SETTING VALUE ...]
layerlock cost RUN

Takes the settings of `layerlock pretrain`, of which videos and OUT may be left out. Everything is counted and nothing
is measured. With OUT, draws `cost.png`: operations so far over the steps, beside the same recipe without freezing and
MAE on all patches. RUN is the OUT of `layerlock pretrain`.
"""

import argparse
import sys
import textwrap
from pathlib import Path

from ..analysis.cost import plan_cost
from ..analysis.cost_check import deviations
from ..analysis.cost_plot import plot_cost
from ..analysis.gpus import GPUS, find_gpu
from ..analysis.memory import GIGA, what_fits
from ..analysis.runs import Machine, PlannedRun
from ..hub.words import counted
from ..pretraining.planning import given_settings, plan_beside_log, planned_run
from ..utils.outputs import check_output, print_table
from ..utils.records import json_text
from . import programs
from .run_errors import settings_errors_told


PICTURE = "cost.png"
CARDS, SHARED_BY = [80, 141], [8, 64]  # GB of a GPU, and GPUs that share a model, in the table of --memory
# The first unit of which the largest number has one
UNITS = {"TF": 1e12, "GF": 1e9, "MF": 1e6}
HEEDED_BESIDE_RUN = ("json", "fsdp2")
WIDTH = 100  # characters of a line of text


def parser_of_this_program() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="%(prog)s --config RECIPE [--SETTING VALUE ...] | RUN",
    )
    parser.add_argument("--gpu", default="h100", help=f"Kind of GPU (default h100): {', '.join(GPUS)}.")
    parser.add_argument("--gpus", type=programs.whole(1), default=1, help="Number of GPUs (default 1).")
    parser.add_argument(
        "--batch_size",
        type=programs.whole(1),
        help="Clips per GPU at a time (default: per_device_train_batch_size of the recipe, or as many as fit).",
    )
    parser.add_argument(
        "--fsdp2", action="store_true", help="The GPUs share the model instead of each holding a copy."
    )
    parser.add_argument(
        "--utilisation",
        type=float,
        default=0.35,
        help="Share of the GPU's peak rate at which it computes (default 0.35).",
    )
    parser.add_argument("--price", type=float, help="Of an hour of one GPU, in any currency.")
    parser.add_argument(
        "--memory", action="store_true", help="Instead: what a GPU holds of what, and how many clips fit."
    )
    parser.add_argument("--json", action="store_true", help="Print one JSON object instead of text.")
    parser.add_argument("--output_dir", type=programs.folder, metavar="OUT", help=f"Folder for {PICTURE}.")
    return parser


def print_plan(plan: dict):
    unit = next((name for name in UNITS if _most_flops(plan) >= UNITS[name]), "MF")
    print(
        f"{plan['recipe']}: {counted(plan['max_steps'], 'step')} of {counted(plan['clips_per_step'], 'clip')} on "
        f"{plan['num_gpus']} x {plan['gpu']}, {plan['batch_size']:,} at a time on each"
    )
    rows = []
    for number, stage in enumerate(plan["stages"]):
        row = {
            "stage": number,
            "from step": f"{stage['start']:,}",
            "frozen": stage["num_frozen"],
            f"forward, {unit}/clip": short(stage["forward_flops_per_clip"] / UNITS[unit]),
            f"step, {unit}/clip": short(stage["step_flops_per_clip"] / UNITS[unit]),
            "memory, GB/GPU": short(stage["memory_bytes"] / GIGA),
            "all-reduce, GB/step": short(stage["allreduce_bytes"] / GIGA),
            "share of run": f"{stage['share']:.1%}",
            "hours": short(stage["hours"]),
            "target": stage["target"],
        }
        rows.append(row)
    print_table(rows)
    total = plan["total_flops"]
    money = "" if plan["price"] is None else f", which cost {plan['price']:,.0f}"
    print(
        f"\nthe run                           {total:.3g} FLOP; {short(plan['hours'])} hours, "
        f"{short(plan['gpu_hours'])} hours of a GPU{money}"
    )
    for name, key in (
        ("the same recipe without freezing", "total_flops_unfrozen"),
        ("the same targets, none frozen", "total_flops_targets_unfrozen"),
        ("MAE on all patches", "total_flops_mae"),
    ):
        print(f"{name:33} {plan[key]:.3g} FLOP; the run takes {total / plan[key]:.3g} of that")
    told = f"{_memory_verdict(plan)} {sentence(plan['accounting'])}"
    print("\n" + textwrap.fill(told, WIDTH))


def _most_flops(plan: dict) -> float:
    return max(stage["step_flops_per_clip"] for stage in plan["stages"])


def _memory_verdict(plan: dict) -> str:
    """Whether the batch fits, and which one would."""
    needed, usable = (short(plan[name] / GIGA) for name in ("peak_memory_bytes", "usable_memory_bytes"))
    most = f"{counted(plan['most_clips'], 'clip')} at a time would fit" if plan["most_clips"] else "not one clip fits"
    if plan["peak_memory_bytes"] <= plan["usable_memory_bytes"]:
        return f"Up to {needed} GB of the {usable} GB that can be planned with on this GPU are taken; {most}."
    return (
        f"IT DOES NOT FIT: {needed} GB are taken, of {usable} GB that can be planned with on this GPU; {most}. Use a "
        "smaller --batch_size, --activation_checkpointing true, or more GPUs with --fsdp2."
    )


def print_memory(run: PlannedRun):
    """A table in Markdown."""
    rows = what_fits(run, CARDS, SHARED_BY)
    for name in rows[0]:
        cells = [row[name] if isinstance(row[name], str) else f"{row[name] / GIGA:.2f}" for row in rows]
        print(f"| {' | '.join([name, *cells])} |")


def check_run(folder: Path, own: argparse.Namespace, rest: list[str]):
    """The plan of a run beside its log.

    Raises:
        ValueError: if other arguments are given, or the run has left too little.
    """
    parser = parser_of_this_program()
    given = {name: value for name, value in vars(own).items() if value != parser.get_default(name)}
    for name in [*rest, *(f"--{name}" for name in given if name not in HEEDED_BESIDE_RUN)]:
        raise ValueError(f"{name} has no effect beside RUN, whose settings are on record: leave it out")
    _, found, device = plan_beside_log(folder, find_gpu(own.gpu), own.fsdp2)
    if own.json:
        return print(json_text(found, indent=1))
    print_check(found, device)


def print_check(found: dict, device: str):
    rows = []
    for stage in found["stages"]:
        row = {
            "stage": stage["stage"],
            "from step": f"{stage['start']:,}",
            "frozen": stage["num_frozen"],
            "seconds per step": f"{stage['seconds_per_step']:.3g}",
            "TFLOP/s per GPU": f"{stage['flops_per_second'] / UNITS['TF']:.3g}",
            "of the first, logged": f"{stage['time_ratio']:.2f}",
            "planned": f"{stage['planned_time_ratio']:.2f}",
            "": "OFF" if stage["is_off"] else "",
            "target": stage["target"],
        }
        rows.append(row)
    print_table(rows)
    flops, memory = found["flops"], found["memory"]
    print(f"\nFLOP up to step {flops['step']:,}: {flops['logged']:.4g} logged, {flops['planned']:.4g} planned")
    peaks = f"peak memory: {short(memory['logged'] / GIGA)} GB logged, {short(memory['planned'] / GIGA)} GB planned"
    if memory["is_off"] is None:
        print(f"{peaks}; they do not compare, as on a {device} the log has the memory of the whole process")
    else:
        print(f"{peaks}{', OFF' if memory['is_off'] else ''}")
    for line in deviations(found):
        print(line)


def short(number: float) -> str:
    """In three digits, or more before the point."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def main(arguments: list[str]):
    own, rest = parser_of_this_program().parse_known_args(arguments)
    with settings_errors_told():
        if rest and not rest[0].startswith("-"):
            return check_run(Path(rest[0]).expanduser(), own, rest[1:])
        settings = given_settings(rest, also=vars(own))
        if own.batch_size is not None:
            settings["per_device_train_batch_size"] = own.batch_size
        run = planned_run(settings, settings["config"])
        if own.memory:
            return print_memory(run)
        if own.output_dir is not None:
            check_output(own.output_dir, [PICTURE])
        plan = plan_cost(run, Machine(find_gpu(own.gpu), own.gpus, own.fsdp2, own.utilisation, own.price))
    if own.output_dir is not None:
        plot_cost(plan, own.output_dir / PICTURE)
    if own.json:
        print(json_text(plan, indent=1))
    else:
        print_plan(plan)


if __name__ == "__main__":
    main(sys.argv[1:])
