"""Freezing that a run decides itself: `schedule: auto`.

At every interval of the run all layers are observed (see `settling`). Once the next layers have settled, they freeze
from the next step on, within limits that the user sets. The stages of such a run are those of its method and what
follows from the freezings so far, (step, number of frozen layers) each: the stage of a step is a function of them.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback
from transformers.utils import logging

from ..models.objectives import Stage
from ..utils.similarity import MIN_CLIPS
from .run_file import CheckpointRefused, read_run_file
from .schedules import MIN_HEAD_STEPS, scheduled_factors
from .settling import NUM_CLIPS, NUM_INTERVALS, Movement, Observation, SettlingRule, movements, remaining_pace
from .stages import FreezeSchedule, Freezings, locked


logger = logging.get_logger(__name__)

INTERVAL_SHARE = 0.05  # of the run, between two observations
LAST_SHARE = 0.1  # of the run, of the last stage at least: while the learning rate ends, a fresh head learns slowly
MAX_FROZEN_SHARE = 0.75  # of the layers (LayerLock, sec. 3.4)
FILE = "freezing.safetensors"  # of a checkpoint


@dataclass(frozen=True)
class AutoFreezing:
    """The limits within which a run decides when to freeze.

    Args:
        counts: how many layers are frozen after each freezing, ascending.
        first_step: before which nothing freezes.
        last_step: after which nothing more freezes, as a stage takes steps to learn its target.
        min_interval: steps between two freezings, at least.
        every: steps between two observations.
        rule: when a layer has settled.
        locking: further arguments of `locked`.

    Raises:
        ValueError: if nothing can freeze within the limits.
    """

    counts: tuple[int, ...]
    first_step: int
    last_step: int
    min_interval: int
    every: int
    rule: SettlingRule = SettlingRule()
    locking: dict = field(default_factory=dict)

    def __post_init__(self):
        if not self.counts or list(self.counts) != sorted(set(self.counts)) or self.counts[0] < 1:
            raise ValueError(f"counts must ascend from at least 1, got {list(self.counts)}")
        if self.first_step > self.last_step:
            raise ValueError(
                f"freeze_start must be at most {self.last_step}, as the last stage needs steps to learn, got "
                f"{self.first_step}: freeze earlier, train longer, or lower freeze_interval or switch_warmup_steps"
            )

    @classmethod
    def of_run(
        cls,
        num_layers: int,
        max_steps: int,
        switch_warmup_steps: int,
        first_step: int = 1,
        min_interval: int = 1,
        layers_per_freeze: int = 1,
        num_freezes: int | None = None,
        max_frozen: int | None = None,
        rule: SettlingRule | None = None,
        **locking,
    ) -> "AutoFreezing":
        """The limits for a run, where the user has not set them: at most three quarters of the layers freeze.

        Args:
            num_layers: of the encoder.
            max_steps, switch_warmup_steps: of the run.
            locking: `predict_latents`, `patch_fraction` and `keep_targets`, as of `locked`.

        Raises:
            ValueError: naming the setting that does not fit the run.
        """
        if max_frozen is None and num_freezes is None:
            max_frozen = max(1, math.floor(MAX_FROZEN_SHARE * num_layers))
        limits = FreezeSchedule(1, 1, layers_per_freeze, num_freezes, max_frozen)
        counts = tuple(dict.fromkeys(count for _, count in limits.freezings()))
        if counts[-1] > num_layers:
            raise ValueError(
                f"max_frozen must be at most {num_layers}, the layers of the ViT, got {counts[-1]} at the last "
                "freezing: lower num_freezes or layers_per_freeze, or set max_frozen"
            )
        every = max(1, round(INTERVAL_SHARE * max_steps))
        last_step = max_steps - max(least_last_stage(max_steps), min_interval, 2 * switch_warmup_steps)
        if last_step < 1:
            raise ValueError(
                f"max_steps must be above {max_steps - last_step} with schedule=auto, the least steps of its last "
                f"stage, got {max_steps}: train longer, or lower freeze_interval or switch_warmup_steps"
            )
        return cls(counts, first_step, last_step, min_interval, every, rule or SettlingRule(), locking)

    def stages(self, base: Sequence[Stage], freezings: Sequence[tuple[int, int]]) -> list[Stage]:
        """Those of a method with these freezings, (step, number of frozen layers) each."""
        return locked(list(base), Freezings(tuple(freezings)), **self.locking)

    def earliest(self, base: Sequence[Stage]) -> list[Stage]:
        """All stages that there may be, as early as they may begin if layers settled at once."""
        begin = max(self.first_step, base[-1].start + 1, (1 + NUM_INTERVALS) * self.every)
        first, apart = (-(-steps // self.every) * self.every for steps in (begin, self.min_interval))
        return self.stages(base, [(first + index * apart, count) for index, count in enumerate(self.counts)])

    def describe(self) -> str:
        """The limits in words."""
        return (
            f"layers 1 to {self.counts[-1]} freeze when they have settled, as is looked at every {self.every} steps: "
            f"between steps {self.first_step} and {self.last_step}, at least {self.min_interval} steps apart"
        )

    @property
    def identity(self) -> str:
        """All of it in words: what a resumed run must share with the one that wrote the checkpoint."""
        locking = "".join(f", {name} {value}" for name, value in sorted(self.locking.items()))
        return (
            f"schedule=auto ({self.describe()}; {len(self.counts)} freezings, settled_drift {self.rule.max_drift:g}, "
            f"settled_growth {self.rule.max_growth:g}{locking})"
        )

    def next_count(self, step: int, freezings: Sequence[tuple[int, int]]) -> int | None:
        """How many layers may be frozen from this step on; None if none more may be now."""
        since = step - freezings[-1][0] if freezings else self.min_interval
        if not self.first_step <= step <= self.last_step or since < self.min_interval:
            return None
        return self.counts[len(freezings)] if len(freezings) < len(self.counts) else None


def least_last_stage(max_steps: int) -> int:
    """Steps that the last stage of a run must have for its head to learn."""
    return max(MIN_HEAD_STEPS, round(LAST_SHARE * max_steps))


def possible_stages(stages: list[Stage], freezing: AutoFreezing | None) -> list[Stage]:
    """All that a run may have whose method has these: the same, unless it decides itself when to freeze."""
    return stages if freezing is None else freezing.earliest(stages)


class Freezer(TrainerCallback):
    """Observes the layers of a run, and appends a stage to `trainer.stages` when the next ones have settled.

    All processes observe the same clips, the first of the run; one of them decides. A checkpoint holds the clips, the
    last observation and the movements of the last intervals, so that a resumed run decides as if it had never ended.

    Args:
        trainer: whose stages are those of the method so far.
        plan: the limits.

    Raises:
        ValueError: if the run's learning rate depends on stages that are not known yet, or a step has too few clips.
    """

    def __init__(self, trainer, plan: AutoFreezing):
        if trainer.args.schedule_restarts:
            raise ValueError(
                "schedule_restarts must be left out with schedule=auto: the learning rate would depend on when the "
                "next stage begins, which is not known"
            )
        args = trainer.args
        num_clips = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        if num_clips < MIN_CLIPS:
            raise ValueError(
                f"global_batch_size must be at least {MIN_CLIPS} with schedule=auto, which compares the clips of the "
                f"first step, got {num_clips}: take more"
            )
        self.trainer, self.plan = trainer, plan
        self.base = list(trainer.stages)
        self.freezings: list[tuple[int, int]] = []
        self.reason = "nothing was observed"
        self._clips = None
        self._last: Observation | None = None
        self._history: list[list[Movement]] = []  # per interval, of every layer
        self._row = {}

    def on_optimizer_step(self, args, state, control, **kwargs):
        # The weights are those of the next step, whose learning rate has not been set yet
        step = state.global_step + 1
        if step % self.plan.every == 0 and step < state.max_steps:
            self._observe(step)
            self._decide(step)

    def on_step_end(self, args, state, control, **kwargs):
        if self._row:
            row, self._row = self._row, {}
            should_log = control.should_log  # to log clears it, and the line of losses would be left out
            self.trainer.log(row)
            control.should_log = should_log

    def on_train_end(self, args, state, control, **kwargs):
        if not self.freezings and state.is_world_process_zero:
            logger.warning(f"no layer has frozen: {self.reason}")

    def take_clips(self, batches: Sequence[dict]):
        """Keep the first clips of the run, in the order that one process would see them in."""
        accelerator = self.trainer.accelerator
        found = []
        for index, batch in enumerate(batches):
            videos = batch["pixel_values_videos"]
            first = (index * accelerator.num_processes + accelerator.process_index) * len(videos)
            found += [
                (first + number, video.cpu()) for number, video in enumerate(videos) if first + number < NUM_CLIPS
            ]
        clips = sorted(gather_object(found), key=lambda one: one[0])
        self._clips = torch.stack([video for _, video in clips])

    def _observe(self, step: int):
        observed = self.trainer.observe_layers(self._clips)
        if self._last is not None:
            factor = remaining_pace(self._rates, step - self.plan.every, step)
            self._history.append(movements(self._last, observed, factor))
            for layer, movement in enumerate(self._history[-1], start=1):
                self._row[f"projected_drift/layer_{layer}"] = movement.drift
                self._row[f"projected_growth/layer_{layer}"] = movement.growth
        self._last = observed

    @functools.cached_property
    def _rates(self) -> list[float]:
        return scheduled_factors(self.base, self.trainer.args)

    def _decide(self, step: int):
        count = self.plan.next_count(step, self.freezings)
        if count is None:
            return
        reasons = [
            self.plan.rule.reason_to_wait(layer, [interval[layer - 1] for interval in self._history])
            for layer in range((self.freezings[-1][1] if self.freezings else 0) + 1, count + 1)
        ]
        # Processes may round differently
        decision = [next((reason for reason in reasons if reason is not None), None)]
        broadcast_object_list(decision)
        (self.reason,) = decision
        if self.reason is None:
            self.set_freezings([*self.freezings, (step, count)])
        elif self.trainer.is_world_process_zero():
            logger.info(f"step {step}: {self.reason}")

    def set_freezings(self, freezings: Sequence[tuple[int, int]]):
        """In place, as the schedule of the learning rate and others hold the list."""
        self.freezings = list(freezings)
        self.trainer.stages[:] = self.plan.stages(self.base, self.freezings)

    # ---- checkpoints

    def save(self, folder: str):
        """Write what a resumed run needs, by the main process."""
        history = [[[one.drift, one.growth] for one in interval] for interval in self._history]
        state = {"clips": self._clips, "history": torch.tensor(history, dtype=torch.float64)}
        if self._last is not None:
            state |= {"norms": self._last.norms, "tokens": self._last.tokens, "changes": self._last.changes}
        save_file(state, Path(folder) / FILE)

    def load(self, checkpoint: str):
        """The inverse of `save`, and the freezings so far.

        Raises:
            CheckpointRefused: if the run that wrote it did not decide when to freeze.
        """
        path, record = Path(checkpoint) / FILE, read_run_file(checkpoint)
        if not path.is_file():
            raise CheckpointRefused(
                f"{checkpoint} was written without schedule=auto, as it has no {FILE}: leave schedule out, or start "
                "anew"
            )
        state = load_file(path)
        self._clips = state["clips"]
        self._history = [[Movement(*values) for values in interval] for interval in state["history"].tolist()]
        if "norms" in state:
            self._last = Observation(state["norms"], state["tokens"], state["changes"])
        later = record["stages"][len(self.base) :]
        self.set_freezings([(row["start"], row["num_frozen"]) for row in later])
