"""What the log of a run says of each of its stages."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise


FIRST_STEPS, LAST_STEPS = 10, 30  # steps over which a stage's first and last losses are averaged
RECOVERED = 0.9  # share of its last explained variance at which a stage has recovered from its switch
# What is logged of the features, of each depth that is read if there are several
FEATURE_STD, EFFECTIVE_RANK, CONTENT = "feature_std", "effective_rank", "content_fraction"
FEATURES = (FEATURE_STD, EFFECTIVE_RANK, CONTENT)
WEIGHT_NORM = "weight_norm_layer_"
EXPLAINED_VARIANCE = "explained_variance"


@dataclass(frozen=True)
class StageLog:
    """A stage and what was logged in it.

    Attributes:
        index: of the stage, from 0.
        start, end: its first step, and that of the next one or of the end of the run.
        num_frozen: leading layers that do not learn.
        target: what is predicted, as `stages.json` has it.
        rows: lines of the log that hold losses.
        new_labels: of the objectives that the stage before did not have.
    """

    index: int
    start: int
    end: int
    num_frozen: int
    target: str
    rows: list[dict]
    new_labels: list[str]

    @property
    def labels(self) -> list[str]:
        """Names of the objectives in the log."""
        return labels_of(self.rows[-1])

    @property
    def is_over(self) -> bool:
        return self.rows[-1]["step"] >= self.end

    def series(self, name: str) -> dict[int, float]:
        """Step -> value, of those that are finite."""
        found = {row["step"]: row[name] for row in self.rows if isinstance(row.get(name), int | float)}
        return {step: value for step, value in found.items() if math.isfinite(value)}

    def names(self, last: str) -> list[str]:
        """What the log has by this name, of whatever depth: "effective_rank", "depth_6/effective_rank"."""
        found = dict.fromkeys(name for row in self.rows for name in row)
        return [name for name in found if name == last or name.endswith(f"/{last}")]


def loss_rows(rows: list[dict]) -> list[dict]:
    """The lines of a log that hold losses."""
    return [row for row in rows if "learning_rate" in row]


def median_speed(rows: list[dict]) -> float | None:
    """Clips per second, the median of the lines of a log that tell it; None if none does."""
    speeds = [row["clips_per_second"] for row in rows if row.get("clips_per_second")]
    return statistics.median(speeds) if speeds else None


def labels_of(row: dict) -> list[str]:
    """The objectives whose explained variance a line of the log holds."""
    ending = f"/{EXPLAINED_VARIANCE}"
    return [name.removesuffix(ending) for name in row if name.endswith(ending)]


def stage_logs(rows: list[dict], stages: list[dict], max_steps: int) -> list[StageLog]:
    """The stages that the log has reached.

    Args:
        rows: lines of the log that hold losses.
        stages: rows of `stages.json`.
        max_steps: of the run.

    Raises:
        ValueError: if the log is of other stages.
    """
    unknown = {row["stage"] for row in rows} - set(range(len(stages)))
    if unknown:
        raise ValueError(
            f"metrics.jsonl must be of the {len(stages)} stages of stages.json, got stage {min(unknown)}: were files "
            "of two runs mixed?"
        )
    found, before = [], []
    ends = [*(stage["start"] for stage in stages), max_steps]
    for index, (stage, (start, end)) in enumerate(zip(stages, pairwise(ends), strict=True)):
        own = [row for row in rows if row["stage"] == index]
        stray = next((row["step"] for row in own if not start < row["step"] <= end), None)
        if stray is not None:
            raise ValueError(
                f"metrics.jsonl must be of the stages of stages.json and the {max_steps:,} steps of settings.json, "
                f"got step {stray:,} in stage {index}, which is that of steps {start + 1:,} to {end:,}: were files of "
                "two runs mixed?"
            )
        if own:
            labels = labels_of(own[-1])
            new = [label for label in labels if label not in before]
            found.append(StageLog(index, start, end, stage["num_frozen"], stage["target"], own, new))
            before = labels
    return found


def summarise_objective(rows: list[dict], label: str, start: int, end: int) -> dict:
    """First and last loss, explained variance and variance of the target, as means over a few steps, the best
    explained variance of a line, and the steps until the explained variance has recovered from the switch.

    Args:
        rows: of the stage.
        label: of the objective.
        start, end: of the stage.
    """
    first = [row for row in rows if row["step"] <= start + FIRST_STEPS] or rows[:1]
    last = [row for row in rows if row["step"] > end - LAST_STEPS] or rows[-1:]
    summary = {}
    for name in ("loss", EXPLAINED_VARIANCE, "target_variance"):
        for place, chosen in (("first", first), ("last", last)):
            summary[f"{place}_{name}"] = statistics.fmean(row[f"{label}/{name}"] for row in chosen)
    explained = {row["step"]: row[f"{label}/{EXPLAINED_VARIANCE}"] for row in rows}
    enough = RECOVERED * summary[f"last_{EXPLAINED_VARIANCE}"]
    recovered = [step for step, value in explained.items() if value >= enough]
    summary[f"best_{EXPLAINED_VARIANCE}"] = max(explained.values())
    summary["steps_to_recover"] = min(recovered, default=end) - start
    return summary


def summarise_stage(stage: StageLog) -> dict:
    """One object for people and programs: objectives, features, gradients, weights and data of a stage."""

    def ranges(name: str) -> dict:
        values = list(stage.series(name).values())
        return {"first": values[0], "last": values[-1], "lowest": min(values), "highest": max(values)}

    def over_rows(name: str, mean: Callable) -> float | None:
        values = stage.series(name).values()
        return mean(values) if values else None

    weight_norms = [name for row in stage.rows for name in row if name.startswith(WEIGHT_NORM)]
    measured = [name for last in (*FEATURES, "teacher_distance", "grad_norm") for name in stage.names(last)]
    return {
        "stage": stage.index,
        "start": stage.start,
        "end": stage.end,
        "last_step": stage.rows[-1]["step"],
        "num_frozen": stage.num_frozen,
        "target": stage.target,
        "objectives": {
            label: summarise_objective(stage.rows, label, stage.start, stage.end) for label in stage.labels
        },
        **{name: ranges(name) for name in [*measured, *dict.fromkeys(weight_norms)] if stage.series(name)},
        "clipped_fraction": over_rows("clipped_fraction", statistics.fmean),
        "data_wait_fraction": over_rows("data_wait_fraction", statistics.median),
    }
