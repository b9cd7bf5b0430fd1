"""Learning rate as a pure function of the step, so that nothing about it needs to be saved."""

import math
from itertools import pairwise

from ..models.objectives import Stage


def learning_rate_factor(
    step: int, max_steps: int, warmup_steps: int, stages: list[Stage], switch_warmup_steps: int
) -> float:
    """Share of the peak learning rate: linear warm-up, cosine to zero, and a small warm-up after every switch.

    The small warm-ups multiply the schedule by a ramp from 1 / (n + 1) to 1 over n steps (LayerLock, Table 6; where
    the ramp starts is not stated).
    """
    if step < warmup_steps:
        factor = (step + 1) / (warmup_steps + 1)
    else:
        progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
        factor = 0.5 * (1 + math.cos(math.pi * progress))
    switch = last_switch(stages, step)
    if switch > 0 and step - switch < switch_warmup_steps:
        factor *= (step - switch + 1) / (switch_warmup_steps + 1)
    return factor


def last_switch(stages: list[Stage], step: int) -> int:
    """The last step up to `step` at which the objectives changed, 0 if they never did."""
    passed = [stage for stage in stages if stage.start <= step]
    switches = [after.start for before, after in pairwise(passed) if after.objectives != before.objectives]
    return max(switches, default=0)
