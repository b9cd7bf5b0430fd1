"""The rules by which a stage of a run is judged: what is wrong, by which numbers, and what to do."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, groupby
from statistics import fmean, median

from ..training.schedules import MIN_HEAD_STEPS
from .stage_logs import CONTENT, EFFECTIVE_RANK, EXPLAINED_VARIANCE, FEATURE_STD, StageLog


HEALTHY, TOO_EARLY = "healthy", "too early to tell"
COLLAPSING, DIVERGING = "collapsing", "diverging"
NOT_LEARNING, FORGETTING = "not learning", "lost what it had learnt"
TOO_SHORT, STARVED = "stage too short", "starved of data"

# Beside each threshold, what healthy runs of the demo's recipes kept (docs/health.md has the table)
MIN_ROWS = 10  # lines of the log, below which nothing but trouble is told
MIN_TROUBLED_ROWS = 2  # one line may be a bad batch
# Diverging: loss over variance of the target, where the best constant prediction has 1. Healthy: 3.0 at most, of fresh
# heads, and then at most 1.3 times the lowest so far
MAX_RELATIVE_LOSS, MAX_RISE = 2.0, 3.0
# Collapsing: the share of clips in the variance of features (healthy: 0.53 or more), their effective rank (9.4 or more
# at width 128), and feature_std and the variance of targets as shares of their highest in the stage (0.52 or more)
MIN_CONTENT, MIN_RANK, MIN_SPREAD = 0.2, 3.0, 0.1
MIN_SELF_EXPLAINED = 0.3  # of targets that move with the encoder, while nothing is of fixed ones
# Not learning: a target that hardly varies, or of whose variance no more than 0 is explained in the last third of the
# lines. Healthy runs come near 0, which is predicting the mean, in the first 50 steps, and leave it within 200. What
# is still far from it has to gain MIN_GAIN in as many steps as may be spent there
MIN_VARIANCE = 1e-8  # squared units of the target; a grey level of 255 is 1.5e-5, and rounding 1e-14
NEAR_MEAN, MAX_STEPS_AT_MEAN = -0.02, 500
# Lost: nothing is explained in the last third, as above, after more than MIN_GAIN was in some lines
# Too short: the share of a stage's gain in explained variance that it made between its second and its last third.
# Healthy: 0.13 at most. What rises in a straight line has some 0.4. Below MIN_GAIN, lines only scatter
MAX_LATE_GAIN, MIN_GAIN = 0.25, 0.05
MIN_STAGE_ROWS = 6  # below which three thirds say nothing
MAX_WAIT = 0.3  # share of the time that is spent waiting for data, as the median of a stage; healthy: 0.03 at most


@dataclass(frozen=True)
class Verdict:
    """One thing that is to be said about a run.

    Attributes:
        name: one of the constants above.
        text: a sentence, with numbers.
        advice: what to do about it.
        stage: that it is about; None for the whole run.
        first_step, last_step: of the log's lines that show it; None if no single lines do.
        holds: whether the last of what was measured still shows it.
    """

    name: str
    text: str
    advice: str = ""
    stage: int | None = None
    first_step: int | None = None
    last_step: int | None = None
    holds: bool = False

    @property
    def is_trouble(self) -> bool:
        return self.name not in (HEALTHY, TOO_EARLY)


def find_divergence(stage: StageLog) -> Verdict | None:
    """The loss rises from where it was to far above the variance of the target, where predicting its mean would do
    better. Of objectives that are read at the same depth all must, for one may be given up for another."""
    held, worst = [], (0.0, 0)
    for explained in _best_explained(stage):
        relative = [1 - value for value in explained.values()]
        troubled = [
            (value, step)
            for step, value, lowest in zip(explained, relative, accumulate(relative, min), strict=True)
            if value > max(MAX_RELATIVE_LOSS, MAX_RISE * lowest)
        ]
        if len(troubled) >= MIN_TROUBLED_ROWS:
            held += [step for _, step in troubled]
            worst = max(worst, *troubled)
    if not held:
        return None
    norms = stage.series("grad_norm").values()
    norm = f", with a gradient norm of up to {max(norms):.3g}" if norms else ""
    return _verdict(
        DIVERGING,
        stage,
        held,
        max(held) == stage.rows[-1]["step"],
        f"the loss rose to {worst[0]:.3g} times the variance of its target in step {worst[1]:,}{norm}",
        _calmer(min(held)),
    )


def _calmer(step: int) -> str:
    """What to do about a run that went wrong in a step."""
    return (
        "Lower learning_rate, lengthen warmup_steps or set max_grad_norm, and start anew or resume from a checkpoint "
        f"before step {step:,}"
    )


def _best_explained(stage: StageLog) -> Iterator[dict[int, float]]:
    """Of each depth that is read, what is explained of the objective that fares best: step -> explained variance."""
    for _, labels in groupby(stage.labels, key=lambda label: label.rpartition("/")[0]):
        explained = [stage.series(f"{label}/{EXPLAINED_VARIANCE}") for label in labels]
        steps = sorted(set.intersection(*map(set, explained)))
        yield {step: max(values[step] for values in explained) for step in steps}


def find_collapse(stage: StageLog) -> Verdict | None:
    """Features no longer tell clips apart, or the encoder predicts itself instead of the video."""
    if _unvarying(stage):
        return None  # there is nothing to tell apart
    told, held, holds = [], [], False
    for text, series, is_trouble in _signs_of_collapse(stage):
        troubled = [step for step, value in series.items() if is_trouble(value)]
        if len(troubled) >= MIN_TROUBLED_ROWS:
            told.append(f"{text.format(series[troubled[-1]])} in step {troubled[-1]:,}")
            held += troubled
            holds = holds or troubled[-1] == max(series)
    if not told:
        return None
    return _verdict(
        COLLAPSING,
        stage,
        held,
        holds,
        "; ".join(told),
        "Predict only layers that are frozen, or a teacher that moves more slowly (teacher_momentum nearer 1), or "
        "lower learning_rate. What has been learnt since is of little use",
    )


def _signs_of_collapse(stage: StageLog) -> Iterator[tuple[str, dict[int, float], Callable[[float], bool]]]:
    """What is said of each, with its last value; step -> value; which values are trouble."""
    for name in stage.names(CONTENT):
        text = f"clips make {{:.1%}} of the variance of features ({name})"
        yield text, stage.series(name), lambda share: share < MIN_CONTENT
    for name in stage.names(EFFECTIVE_RANK):
        yield f"the {name} of features is {{:.2f}}", stage.series(name), lambda rank: rank < MIN_RANK
    moving = [label for label in stage.labels if moves(label, stage.num_frozen)]
    for name in [*stage.names(FEATURE_STD), *(f"{label}/target_variance" for label in moving)]:
        text = f"{name} is {{:.1%}} of what it was"
        yield text, _shares_of_highest(stage.series(name)), lambda share: share < MIN_SPREAD
    text = "the encoder explains {:.0%} of its own moving latents, and of what is fixed less than nothing,"
    yield text, _self_explained(stage, moving), lambda share: share > MIN_SELF_EXPLAINED


def moves(label: str, num_frozen: int) -> bool:
    """Whether a target changes while the encoder learns: "layer_3", which is not frozen, and "teacher_layer_8"."""
    kind, _, depth = label.rpartition("/")[2].rpartition("layer_")
    return depth.isdigit() and (bool(kind) or int(depth) > num_frozen)


def _shares_of_highest(series: dict[int, float]) -> dict[int, float]:
    """Values as shares of the highest so far."""
    highest = accumulate(series.values(), max)
    return {step: value / most for (step, value), most in zip(series.items(), highest, strict=True) if most > 0}


def _self_explained(stage: StageLog, moving: list[str]) -> dict[int, float]:
    """What is explained of the moving targets, at best; 0 where something is of the fixed ones, too."""
    fixed = [label for label in stage.labels if label not in moving]
    if not fixed or not moving:
        return {}
    found = {}
    for row in stage.rows:
        own, others = (max(row[f"{label}/{EXPLAINED_VARIANCE}"] for label in labels) for labels in (moving, fixed))
        found[row["step"]] = own if others < 0 else 0.0
    return found


def find_no_learning(stage: StageLog) -> Verdict | None:
    """Nothing is explained, and that does not get better; or there is nothing to explain."""
    if not _is_tellable(stage):
        return None
    for label, variances in _unvarying(stage).items():
        text = f"the target {label} does not vary: its variance is {max(variances.values()):.2g} at most"
        advice = "Look at the clips (`layerlock inspect`): they may be empty, or all the same"
        return _verdict(NOT_LEARNING, stage, list(variances), True, text, advice)
    if is_warming_up(stage.rows):
        return None
    for explained in _best_explained(stage):
        first, last = _outer_thirds(explained)
        if _usual(last) <= 0 and not _learnt_steps(explained) and _is_stuck(stage, explained):
            text = (
                f"the target is predicted no better than by its mean: the explained variance is {fmean(first):.2f} in "
                f"the first third of the lines, {fmean(last):.2f} in the last"
            )
            rate = max(row["learning_rate"] for row in stage.rows)
            advice = f"Raise learning_rate, which was {rate:.3g} at most, or look at the clips (`layerlock inspect`)"
            return _verdict(NOT_LEARNING, stage, list(explained), True, text, advice)
    return None


def find_forgetting(stage: StageLog) -> Verdict | None:
    """Something was explained, and nothing is any more."""
    if not _is_tellable(stage):
        return None
    for explained in _best_explained(stage):
        learnt = _learnt_steps(explained)
        _, last = _outer_thirds(explained)
        if learnt and _usual(last) <= 0:
            text = (
                f"the explained variance was {max(explained.values()):.2f} at best and above {MIN_GAIN:g} until step "
                f"{learnt[-1]:,}; it is {fmean(last):.2f} in the last third of the lines"
            )
            lost = [step for step in explained if step >= learnt[-1]]
            return _verdict(FORGETTING, stage, lost, True, text, _calmer(learnt[-1]))
    return None


def _is_tellable(stage: StageLog) -> bool:
    """Whether there are enough lines to tell what is learnt. What diverges is told of as that."""
    return len(stage.rows) >= (MIN_STAGE_ROWS if stage.is_over else MIN_ROWS) and find_divergence(stage) is None


def _learnt_steps(explained: dict[int, float]) -> list[int]:
    """In which more was explained than scatter would explain; none if that was of a single line."""
    steps = [step for step, value in explained.items() if value > MIN_GAIN]
    return steps if len(steps) >= MIN_TROUBLED_ROWS else []


def _is_stuck(stage: StageLog, explained: dict[int, float]) -> bool:
    """Whether a stage that explains nothing has had its steps: all of them, or enough near the mean, or enough to come
    nearer to it. Those of a warm-up do not count while the stage goes on."""
    near = [step for step, value in explained.items() if value >= NEAR_MEAN]
    if stage.is_over:
        return not near or stage.end - stage.start >= MAX_STEPS_AT_MEAN
    rates = {row["step"]: row["learning_rate"] for row in stage.rows}
    start, last_step = max(rates, key=rates.get), max(explained)
    if near:
        return last_step - max(start, near[0]) >= MAX_STEPS_AT_MEAN
    first, last = _outer_thirds(explained)
    return _usual(last) - max(first) <= MIN_GAIN * (last_step - start) / MAX_STEPS_AT_MEAN


def _outer_thirds(explained: dict[int, float]) -> tuple[list[float], list[float]]:
    """The first and the last third of the values."""
    values, third = list(explained.values()), len(explained) // 3
    return values[:third], values[-third:]


def _usual(values: list[float]) -> float:
    """The mean without the lowest, which may be of a bad batch."""
    return fmean(sorted(values)[1:])


def _unvarying(stage: StageLog) -> dict[str, dict[int, float]]:
    """Fixed targets without variance, and that by step. Of moving ones it would be a collapse."""
    fixed = [label for label in stage.labels if not moves(label, stage.num_frozen)]
    found = {label: stage.series(f"{label}/target_variance") for label in fixed}
    return {label: values for label, values in found.items() if values and max(values.values()) < MIN_VARIANCE}


def is_warming_up(rows: list[dict]) -> bool:
    """Whether the learning rate has only risen."""
    rates = [row["learning_rate"] for row in rows]
    return rates == sorted(set(rates))


def find_short_stage(stage: StageLog) -> Verdict | None:
    """A target that was new had not been learnt when the stage ended. Of the first stage nothing is said: when to
    begin freezing is a question of its own (`layerlock analyze plateau`)."""
    if stage.index == 0 or not stage.new_labels or not stage.is_over:
        return None
    num_steps = stage.end - stage.start
    advice = (
        f"Give every stage more steps (freeze_interval), {MIN_HEAD_STEPS} or more, or freeze more layers at a time "
        "(layers_per_freeze)"
    )
    if len(stage.rows) < MIN_STAGE_ROWS:
        if num_steps >= MIN_HEAD_STEPS:
            return None
        text = f"the stage ended after {num_steps} steps; a fresh head takes {MIN_HEAD_STEPS} or more"
        return Verdict(TOO_SHORT, text, advice, stage.index)
    for label in stage.new_labels:
        values = list(stage.series(f"{label}/{EXPLAINED_VARIANCE}").values())
        third = len(values) // 3
        middle, last = (fmean(part) for part in (values[third:-third], values[-third:]))
        if last - middle > max(MIN_GAIN, MAX_LATE_GAIN * (last - values[0])):
            text = (
                f"after {num_steps} steps the explained variance of {label} was still rising, from {middle:.2f} in "
                f"the middle to {last:.2f} at the end"
            )
            return Verdict(TOO_SHORT, text, advice, stage.index)
    return None


def find_starvation(stage: StageLog) -> Verdict | None:
    """Training waits for data. The first line of a stage holds the start of the workers, or the switch."""
    waits = stage.series("data_wait_fraction")
    later = list(waits.values())[1:]
    if len(later) < MIN_TROUBLED_ROWS or median(later) <= MAX_WAIT:
        return None
    wait = median(later)
    return _verdict(
        STARVED,
        stage,
        [step for step, value in waits.items() if value > MAX_WAIT],
        later[-1] > MAX_WAIT,
        f"{wait:.0%} of the time was spent waiting for data",
        "More dataloader_num_workers, or smaller videos (`layerlock prepare`). `layerlock inspect` times each step of "
        "loading",
    )


def _verdict(name: str, stage: StageLog, held: list[int], holds: bool, text: str, advice: str) -> Verdict:
    """Of trouble that lines of the log show, with the steps from and until which they do."""
    end = "on" if holds else f"until step {max(held):,}"
    text = f"{text}; from step {min(held):,} {end}"
    return Verdict(name, text, advice, stage.index, min(held), max(held), holds)


RULES = (find_divergence, find_collapse, find_no_learning, find_forgetting, find_short_stage, find_starvation)
