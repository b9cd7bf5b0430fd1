"""What the log of a run of pretraining says, while it runs and afterwards."""

import json
from pathlib import Path

from ..analysis.stage_logs import loss_rows, median_speed, stage_logs, summarise_objective
from .reports import METRICS, STAGES


def read_log(folder: Path) -> list[dict]:
    """The lines of a run's log so far."""
    path = folder / METRICS
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def read_metrics(folder: Path) -> list[dict]:
    """The lines of a run's log so far that hold losses."""
    return loss_rows(read_log(folder))


def summarise_stages(folder: Path, global_batch_size: int, max_steps: int) -> list[dict]:
    """The stages of a run of one objective at a time, with what its log says of that objective."""
    stages = json.loads((folder / STAGES).read_text())
    for log in stage_logs(read_metrics(folder), stages, max_steps):
        summary = summarise_objective(log.rows, log.target, log.start, log.end)
        seconds = global_batch_size / median_speed(log.rows)
        stages[log.index] |= summary | {"seconds_per_step": seconds}
    return stages


def progress_line(row: dict) -> str:
    target = next(name.removesuffix("/loss") for name in row if name.endswith("/loss"))
    return (
        f"step {row['step']:4}  {row['num_frozen']} layers frozen  predicts {target:8}  loss {row['loss']:8.4f}  "
        f"explained variance {row[f'{target}/explained_variance']:6.2f}  {row['clips_per_second']:5.0f} clips/s"
    )
