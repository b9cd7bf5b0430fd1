"""How the stages of LayerLock runs begin and end, for heads that start at the mean of their target and at zero.

python benchmarks/heads.py runs/methods/layerlock runs/methods/layerlock_zero_heads

Each folder is what benchmarks/methods.py leaves of one method: a run per seed. Prints a row per folder and stage,
means over the seeds: the explained variance at first and at last, the steps until it has reached 90% of its last
value, and the largest norm of the gradients before they are clipped.
"""

import argparse
import json
import statistics
from pathlib import Path

from layerlock_hf.analysis.stage_logs import RECOVERED
from layerlock_hf.pretraining.logs import read_metrics, summarise_stages


COLUMNS = ("first_explained_variance", "last_explained_variance", "steps_to_recover", "largest_grad_norm")
TITLES = ("run", "frozen", "predicts", "explained at first", "at last", f"steps to {RECOVERED:.0%}", "largest norm")


def stages_of(folder: Path) -> list[dict]:
    """The stages of the one run in the folder of a seed."""
    settings, *_ = json.loads((folder / "result.json").read_text())["settings"]
    (run,) = (path.parent for path in folder.glob("*/metrics.jsonl"))
    stages = summarise_stages(run, settings["global_batch_size"], settings["max_steps"])
    for index, stage in enumerate(stages):
        stage["largest_grad_norm"] = max(row["grad_norm"] for row in read_metrics(run) if row["stage"] == index)
    return stages


def table(folders: list[Path]) -> str:
    """In Markdown."""
    lines = [f"| {' | '.join(TITLES)} |", f"| {' | '.join(['---'] * len(TITLES))} |"]
    for folder in folders:
        seeds = [stages_of(path.parent) for path in sorted(folder.glob("seed_*/result.json"))]
        for stages in zip(*seeds, strict=True):
            means = [statistics.fmean(stage[name] for stage in stages) for name in COLUMNS]
            cells = [folder.name, str(stages[0]["num_frozen"]), stages[0]["target"]]
            cells += [f"{means[0]:.2f}", f"{means[1]:.2f}", f"{means[2]:.0f}", f"{means[3]:.3g}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="Folders of methods.")
    print(table(parser.parse_args().folders))
