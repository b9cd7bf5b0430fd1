"""Whether a run is healthy, judged by its log: what is wrong, in which stage, by which numbers, and what to do."""

from dataclasses import asdict, dataclass

from .health_rules import HEALTHY, MIN_ROWS, RULES, TOO_EARLY, Verdict, is_warming_up
from .stage_logs import EFFECTIVE_RANK, EXPLAINED_VARIANCE, StageLog, loss_rows, stage_logs, summarise_stage


@dataclass(frozen=True)
class Health:
    """What a log says about a run.

    Attributes:
        verdicts: at least one; several may hold.
        stages: a summary of each stage that was reached, see `summarise_stage`.
        readouts: accuracies by step, where the run was read out.
        step: up to which was logged.
        max_steps: of the run.
        best_checkpoint: folder of the one that was read best; None if that is not known.
        checkpoint_text: which that is, or why it is not known.
    """

    verdicts: list[Verdict]
    stages: list[dict]
    readouts: list[dict]
    step: int
    max_steps: int
    best_checkpoint: str | None = None
    checkpoint_text: str = ""

    @property
    def is_healthy(self) -> bool:
        """Whether nothing is wrong, as far as can be told by now."""
        return not any(verdict.is_trouble for verdict in self.verdicts)

    def to_json(self) -> dict:
        return {"is_healthy": self.is_healthy, **asdict(self)}


def judge(rows: list[dict], stages: list[dict], max_steps: int) -> Health:
    """Judge a run, finished or not, by the lines of its log so far.

    Args:
        rows: all lines of the log.
        stages: rows of `stages.json`.
        max_steps: of the run.

    Raises:
        ValueError: if the log has no losses yet, or is of other stages.
    """
    losses = loss_rows(rows)
    if not losses:
        raise ValueError("metrics.jsonl must hold losses, got no line with any: let the run log some steps first")
    logs = stage_logs(losses, stages, max_steps)
    verdicts = [verdict for stage in logs for rule in RULES for verdict in [rule(stage)] if verdict is not None]
    return Health(
        verdicts=verdicts or [_untroubled(losses, logs[-1])],
        stages=[summarise_stage(stage) for stage in logs],
        readouts=[
            {"step": row["step"]} | {name: row[name] for name in row if name.startswith("readout/")}
            for row in rows
            if any(name.startswith("readout/") for name in row)
        ],
        step=losses[-1]["step"],
        max_steps=max_steps,
    )


def _untroubled(losses: list[dict], stage: StageLog) -> Verdict:
    if len(losses) < MIN_ROWS:
        text = f"the log has {len(losses)} lines with losses, fewer than {MIN_ROWS}"
    elif is_warming_up(losses):
        last = losses[-1]
        text = f"the learning rate is still rising in step {last['step']:,}, to {last['learning_rate']:.3g} so far"
    else:
        label = stage.labels[-1]
        told = f"explained variance of {label} {stage.rows[-1][f'{label}/{EXPLAINED_VARIANCE}']:.2f}"
        features = [f"{name} {list(stage.series(name).values())[-1]:.3g}" for name in stage.names(EFFECTIVE_RANK)[-1:]]
        waits = [f"{wait:.0%} of the time waiting" for wait in list(stage.series("data_wait_fraction").values())[-1:]]
        return Verdict(HEALTHY, f"in step {losses[-1]['step']:,}, {', '.join([told, *features, *waits])}")
    return Verdict(TOO_EARLY, text, "Ask again later")
