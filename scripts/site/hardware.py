"""Writes the tables of docs/hardware.md anew: time and memory of the recipes, as `layerlock cost --json` counts them.

python scripts/site/hardware.py
"""

from pathlib import Path

from layerlock_hf.analysis import Machine, find_gpu, plan_cost
from layerlock_hf.analysis.memory import GIGA
from layerlock_hf.cli.cost import short
from layerlock_hf.pretraining.planning import given_settings, planned_run


PAGE = Path(__file__).resolve().parents[2] / "docs" / "hardware.md"
BEGIN, END = "<!-- counted: {} -->", "<!-- end -->"
RECIPES = (
    *("fig1", "table7-base", "table10-4ds-h-100m-mae", "4ds-g-mae", "4ds-g-layerlock", "4ds-g-layerlock-5pct"),
    *("4ds-e-layerlock", "vjepa-l", "vjepa-l-layerlock", "salt-l-teacher", "salt-l", "ucf101-small-4-blocks"),
)
FSDP2 = ("4ds-e-layerlock",)  # leaves no room for clips on 80 GB otherwise
GPUS = ("h100", "h200")
NUM_GPUS = 8
SMALL = ("small-mae", "small-layerlock")
SMALL_GPUS = ("l4", "rtx4090")  # one of 24 GB
TERA = 1e12
SECONDS = 3600  # of an hour


def plans_of(recipe: str) -> dict[str, dict]:
    """GPU -> what a run costs on a machine with eight of them, a small one with one."""
    run = planned_run(given_settings(["--config", recipe]), recipe)
    gpus, num_gpus = (SMALL_GPUS, 1) if recipe in SMALL else (GPUS, NUM_GPUS)
    return {gpu: plan_cost(run, Machine(find_gpu(gpu), num_gpus, recipe in FSDP2)) for gpu in gpus}


def run_row(plans: dict[str, dict]) -> str:
    """A whole run."""
    plan = plans[GPUS[0]]
    cells = [f"`{plan['recipe']}`", f"{plan['max_steps']:,}", f"{plan['clips_per_step']:,}"]
    cells += ["FSDP2" if plan["fsdp2"] else "DDP", f"{plan['total_flops']:.3g}"]
    for one in plans.values():
        cells += [f"{one['batch_size']}", f"{one['peak_memory_bytes'] / GIGA:.1f}", short(one["hours"])]
    return f"| {' | '.join(cells)} |"


def small_row(plans: dict[str, dict]) -> str:
    """A whole run of a small recipe, with the clips that must be read for a GPU never to wait."""
    plan = plans[SMALL_GPUS[0]]
    cells = [f"`{plan['recipe']}`", f"{plan['max_steps']:,}", f"{plan['clips_per_step']:,}"]
    cells += [f"{plan['total_flops']:.3g}", f"{plan['peak_memory_bytes'] / GIGA:.1f}"]
    for one in plans.values():
        clips = one["max_steps"] * one["clips_per_step"]
        cells += [short(one["hours"]), f"{clips / one['hours'] / SECONDS:,.0f}"]
    return f"| {' | '.join(cells)} |"


def stage_rows(plans: dict[str, dict]) -> list[str]:
    """The first, the middle and the last stage, or as many as there are."""
    stages = list(zip(*(plan["stages"] for plan in plans.values()), strict=True))
    rows = []
    for number in sorted({0, len(stages) // 2, len(stages) - 1}):
        first = stages[number][0]
        cells = [f"`{plans[GPUS[0]]['recipe']}`", f"{first['start']:,}", f"{first['num_frozen']}", first["target"]]
        cells += [f"{first['step_flops_per_clip'] / TERA:.3g}"]
        for stage in stages[number]:
            cells += [f"{stage['memory_bytes'] / GIGA:.1f}", short(stage["hours"])]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def tables_of(plans: list[dict[str, dict]]) -> dict[str, list[str]]:
    """The rows of all tables, by their names on the page."""
    small = [one for one in plans if one.keys() == set(SMALL_GPUS)]
    large = [one for one in plans if one not in small]
    return {
        "small": [small_row(one) for one in small],
        "runs": [run_row(one) for one in large],
        "stages": [row for one in large for row in stage_rows(one)],
    }


def counted(name: str, text: str) -> tuple[str, list[str], str]:
    """What stands on a page before the rows of a table, these rows, and what follows."""
    before, _, rest = text.partition(BEGIN.format(name) + "\n")
    table, _, after = rest.partition(END)
    *head, rows = table.partition("---: |\n")
    return before + BEGIN.format(name) + "\n" + "".join(head), rows.splitlines(), END + after


def main():
    tables = tables_of([plans_of(recipe) for recipe in (*SMALL, *RECIPES)])
    text = PAGE.read_text(encoding="utf-8")
    for name, rows in tables.items():
        before, _, after = counted(name, text)
        text = before + "".join(f"{row}\n" for row in rows) + after
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
