"""What the log of a run of pretraining says, while it runs and afterwards."""

import json
import statistics
from itertools import pairwise
from pathlib import Path

from .reports import METRICS, STAGES


FIRST_STEPS, LAST_STEPS = 10, 30  # steps over which a stage's first and last losses are averaged
RECOVERED = 0.9  # share of its last explained variance at which a stage has recovered from its switch


def read_log(folder: Path) -> list[dict]:
    """The lines of a run's log so far."""
    path = folder / METRICS
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def read_metrics(folder: Path) -> list[dict]:
    """The lines of a run's log so far that hold losses."""
    return [row for row in read_log(folder) if "learning_rate" in row]


def summarise_stages(folder: Path, global_batch_size: int, max_steps: int) -> list[dict]:
    """The stages of a run with their first and last losses and explained variances, as means over a few steps, and the
    steps until the explained variance has recovered from the switch."""
    stages = json.loads((folder / STAGES).read_text())
    rows = read_metrics(folder)
    ends = [*(stage["start"] for stage in stages), max_steps]
    for index, (stage, (start, end)) in enumerate(zip(stages, pairwise(ends), strict=True)):
        own = [row for row in rows if row["stage"] == index]
        if not own:
            continue
        first = [row for row in own if row["step"] <= start + FIRST_STEPS] or own[:1]
        last = [row for row in own if row["step"] > end - LAST_STEPS] or own[-1:]
        for name in ("loss", "explained_variance"):
            stage[f"first_{name}"] = statistics.fmean(row[f"{stage['target']}/{name}"] for row in first)
            stage[f"last_{name}"] = statistics.fmean(row[f"{stage['target']}/{name}"] for row in last)
        enough = RECOVERED * stage["last_explained_variance"]
        recovered = [row["step"] for row in own if row[f"{stage['target']}/explained_variance"] >= enough]
        stage["steps_to_recover"] = min(recovered, default=end) - start
        stage["seconds_per_step"] = global_batch_size / statistics.median(row["clips_per_second"] for row in own)
    return stages


def progress_line(row: dict) -> str:
    target = next(name.removesuffix("/loss") for name in row if name.endswith("/loss"))
    return (
        f"step {row['step']:4}  {row['num_frozen']} layers frozen  predicts {target:8}  loss {row['loss']:8.4f}  "
        f"explained variance {row[f'{target}/explained_variance']:6.2f}  {row['clips_per_second']:5.0f} clips/s"
    )
