"""Learning rate, weight decay and teacher momentum as pure functions of the step, so that nothing of them is saved."""

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from ..models.objectives import Stage


if TYPE_CHECKING:
    from .arguments import LayerLockTrainingArguments


# A fresh head has taken 52 to 73 steps until it explained 90% of what it explained at last (benchmarks/README.md)
MIN_HEAD_STEPS = 50


def whole_steps(name: str, value: float, max_steps: int | None, least: int = 0) -> int:
    """The steps that a setting means: a number of steps, at least `least`, or a share of the run below 1.

    Raises:
        ValueError: naming the setting, if it is neither.
    """
    if 0 < value < 1:
        if max_steps is None:
            raise ValueError(f"max_steps must be set, as {name}={value} is a share of the run")
        return max(1, round(value * max_steps))
    if math.isfinite(value) and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value:g}")
    if not math.isfinite(value) or value != int(value):
        raise ValueError(f"{name} must be a whole number of steps, or a share of the run below 1, got {value}")
    return int(value)


def cosine(start: float, end: float, progress: float) -> float:
    """From `start` to `end` along half a cosine, as `progress` goes from 0 to 1."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def linear(start: float, end: float, progress: float) -> float:
    """From `start` to `end` along a line, as `progress` goes from 0 to 1."""
    return start + (end - start) * min(1.0, progress)


def constant(start: float, end: float, progress: float) -> float:
    """`start`, whatever the progress."""
    return start


LEARNING_RATE_DECAYS = {"cosine": cosine, "linear": linear, "constant": constant}


def learning_rate_factor(
    step: int,
    max_steps: int,
    warmup_steps: int,
    stages: list[Stage],
    switch_warmup_steps: int,
    decay: str = "cosine",
    first: float = 0.0,
    last: float = 0.0,
) -> float:
    """Share of the peak learning rate: linear warm-up, decay, and a small warm-up after every switch.

    The small warm-ups multiply the schedule by a ramp from 1 / (n + 1) to 1 over n steps (LayerLock, Table 6; where
    the ramp starts is not stated).

    Args:
        decay: a key of `LEARNING_RATE_DECAYS`.
        first: share of the peak that the warm-up starts from, and `last`, that the decay ends at.
    """
    if step < warmup_steps:
        factor = linear(first, 1.0, (step + 1) / (warmup_steps + 1))
    else:
        factor = LEARNING_RATE_DECAYS[decay](1.0, last, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    switch = last_switch(stages, step)
    if switch > 0 and step - switch < switch_warmup_steps:
        factor *= (step - switch + 1) / (switch_warmup_steps + 1)
    return factor


def scheduled_factor(step: int, num_steps: int, stages: list[Stage], args: "LayerLockTrainingArguments") -> float:
    """The factor of a run of `num_steps`, as its arguments have it."""
    warmup_steps = args.get_warmup_steps(num_steps)
    begin, end = 0, num_steps
    if args.schedule_restarts:  # at every stage, as if each were a run of its own
        begin = max(stage.start for stage in stages if stage.start <= step)
        end = min((stage.start for stage in stages if stage.start > begin), default=end)
    peak = args.learning_rate or 1.0
    return learning_rate_factor(
        step - begin,
        (end - begin) * args.schedule_stretch,
        warmup_steps,
        [] if args.schedule_restarts else stages,
        args.switch_warmup_steps,
        args.learning_rate_decay,
        args.first_learning_rate / peak,
        args.last_learning_rate / peak,
    )


def scheduled_factors(stages: list[Stage], args: "LayerLockTrainingArguments") -> list[float]:
    """The factors of all steps of a run that has these stages."""
    return [scheduled_factor(step, args.max_steps, stages, args) for step in range(args.max_steps)]


def check_schedule(stages: list[Stage], args: "LayerLockTrainingArguments") -> list[str]:
    """Doubts about the schedules of a run, one line each.

    Raises:
        ValueError: if they cannot work: a learning rate that begins to rise at a switch never gets there.
    """
    doubts = []
    starts = [stage.start for stage in stages]
    late = [start for start in starts if start >= args.max_steps]
    if late:
        frozen = ", so that nothing is ever frozen" if late == starts[1:] and stages[-1].num_frozen else ""
        doubts.append(
            f"max_steps={args.max_steps} ends the run before {len(late)} of its {len(stages)} stages begin, the first "
            f"of them at step {late[0]}{frozen}"
        )
    if args.get_warmup_steps(args.max_steps) >= args.max_steps:
        doubts.append(
            f"warmup_steps={args.warmup_steps:g} is not less than max_steps={args.max_steps}: the run ends before the "
            "learning rate has risen"
        )
    rise = 0 if args.schedule_restarts else args.switch_warmup_steps
    short = []
    for (before, after), end in zip(pairwise(stages), [*starts, args.max_steps][2:], strict=True):
        if after.objectives == before.objectives or after.start >= args.max_steps:
            continue
        length = min(end, args.max_steps) - after.start
        if 1 < rise and length <= rise and end < args.max_steps:
            raise ValueError(
                f"switch_warmup_steps must be less than the {length} steps of the stage that starts at step "
                f"{after.start}, got {rise}: its learning rate would never rise again. Give fewer, or a share of the "
                "run such as 0.02"
            )
        if length < max(MIN_HEAD_STEPS, 2 * rise):
            short.append((after, length))
    if short:
        stage, length = short[0]
        doubts.append(
            f"{len(short)} of {len(stages)} stages are too short for a fresh head, which takes some {MIN_HEAD_STEPS} "
            f"steps to learn its target: the first has {length}, from step {stage.start} on, and for {rise} of them "
            "the learning rate rises (switch_warmup_steps)"
        )
    return doubts


def last_switch(stages: list[Stage], step: int) -> int:
    """The last step up to `step` at which the objectives changed, 0 if they never did."""
    passed = [stage for stage in stages if stage.start <= step]
    switches = [after.start for before, after in pairwise(passed) if after.objectives != before.objectives]
    return max(switches, default=0)
