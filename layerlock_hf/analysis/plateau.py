"""When the layers of a run have settled, and the freeze schedule that follows (LayerLock, sec. 3.4).

The rule is that of `schedule: auto`, see `training.settling`; here it looks back at the checkpoints of a run.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from ..training.freezing import INTERVAL_SHARE, MAX_FROZEN_SHARE, least_last_stage
from ..training.schedules import MIN_HEAD_STEPS
from ..training.settling import Observation, SettlingRule, movements, remaining_pace


MIN_CHECKPOINTS = 3  # two intervals


def spaced(steps: Sequence[int], max_steps: int) -> list[int]:
    """Those of the steps that lie about `INTERVAL_SHARE` of the run apart, or as close to it as there are: over a
    shorter interval, little drift would say little about the rest of the run."""
    chosen = []
    for step in sorted(steps):
        if not chosen or step - chosen[-1] >= 0.9 * INTERVAL_SHARE * max_steps:
            chosen.append(step)
    return chosen


def summarise_plateau(
    observations: Mapping[int, Observation],
    learning_rates: Sequence[float],
    rule: SettlingRule | None = None,
    max_frozen: int | None = None,
) -> dict:
    """Movements of all layers, when each has settled, and what schedule that suggests.

    Args:
        observations: of the encoder by step, at least `MIN_CHECKPOINTS`.
        learning_rates: of every step of the run, to its end; their scale does not count.
        rule: when a layer has settled.
        max_frozen: layers that freeze at most (default: three quarters).

    Returns:
        `rows` ({"step", "layer", "norm", "projected_drift", "projected_growth"}); `settled` (per layer {"layer",
        "step", "waits"}: the step by which it has settled, or why it had not at the last checkpoint); `schedule`,
        settings of a recipe, or None while the first layer has not settled in time.

    Raises:
        ValueError: if there are too few observations.
    """
    if len(observations) < MIN_CHECKPOINTS:
        raise ValueError(
            f"RUN must hold at least {MIN_CHECKPOINTS} checkpoints, got {len(observations)}: train with a save_steps "
            f"of at most {INTERVAL_SHARE:.0%} of max_steps, and a save_total_limit that keeps them"
        )
    rule, steps, max_steps = rule or SettlingRule(), sorted(observations), len(learning_rates)
    num_layers = len(observations[steps[0]].norms)
    histories = [[] for _ in range(num_layers)]
    rows = []
    for before, after in pairwise(steps):
        factor = remaining_pace(learning_rates, before, after)
        moved = movements(observations[before], observations[after], factor)
        for layer, (history, movement) in enumerate(zip(histories, moved, strict=True), start=1):
            history.append(movement)
            rows.append(
                {
                    "step": after,
                    "layer": layer,
                    "norm": observations[after].norms[layer - 1].item(),
                    "projected_drift": movement.drift,
                    "projected_growth": movement.growth,
                }
            )
    settled = []
    for layer, history in enumerate(histories, start=1):
        index = rule.settled_at(layer, history)
        waits = rule.reason_to_wait(layer, history) if index is None else None
        settled.append({"layer": layer, "step": None if index is None else steps[index + 1], "waits": waits})
    if max_frozen is None:
        max_frozen = max(1, math.floor(MAX_FROZEN_SHARE * num_layers))
    schedule = propose_schedule([one["step"] for one in settled[:max_frozen]], max_steps)
    limits = {"drift": rule.max_drift, "growth": rule.max_growth}
    return {"max_steps": max_steps, "limits": limits, "rows": rows, "settled": settled, "schedule": schedule}


def propose_schedule(settled: Sequence[int | None], max_steps: int) -> dict | None:
    """`freeze_start`, `freeze_interval` and `num_freezes` by which no layer freezes before it, and all below it, have
    settled, nor so late that its stage could not learn; None if not even the first can.

    Args:
        settled: the step by which each layer has settled, the first layer first; None: not yet.
    """
    least, steps = max(MIN_HEAD_STEPS, round(INTERVAL_SHARE * max_steps)), []
    last_step = max_steps - least_last_stage(max_steps)
    for step in settled:
        step = None if step is None else max([step, *steps])
        if step is None or step > last_step:
            break
        steps.append(step)
    while steps:
        start, *later = steps
        needed = (math.ceil((step - start) / number) for number, step in enumerate(later, start=1))
        interval = max([least, *needed])
        if start + len(later) * interval <= last_step:
            return {"freeze_start": start, "freeze_interval": interval, "num_freezes": len(steps)}
        steps.pop()
    return None
