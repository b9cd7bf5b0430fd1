"""What the trainer does around each step."""

import signal
import threading
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from transformers import TrainerCallback
from transformers.utils import logging

from ..models.objectives import Stage
from .memory import peak_memory_gib, reset_peak_memory


logger = logging.get_logger(__name__)


class StageCallback(TrainerCallback):
    """Enters a new stage at the beginning of its first optimizer step; lets the teacher follow after each."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.begin_run()

    def on_step_begin(self, args, state, control, **kwargs):
        self.trainer.begin_step(state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        # No row of the log mixes two stages, and none is lost at the end
        if state.global_step == state.max_steps or self.trainer.is_border(state.global_step):
            control.should_log = True

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.move_teacher(state.global_step)


class ScheduleCallback(TrainerCallback):
    """Tells what is doubtful about the schedules, before the first step and again after the last, with the number of
    stages that ran.

    Args:
        stages: of the run.
        doubts: a line each.
    """

    def __init__(self, stages: list[Stage], doubts: list[str]):
        self.stages, self.doubts = stages, doubts

    def on_train_begin(self, args, state, control, **kwargs):
        self._tell(state)

    def on_train_end(self, args, state, control, **kwargs):
        num_run = sum(stage.start < state.global_step for stage in self.stages)
        if self.doubts and state.is_world_process_zero:
            logger.warning(f"{num_run} of {len(self.stages)} stages ran")
        self._tell(state)

    def _tell(self, state):
        if state.is_world_process_zero:
            for doubt in self.doubts:
                logger.warning(doubt)


class PreemptionCallback(TrainerCallback):
    """SIGTERM, by which schedulers announce the end: all processes save after the same step, and training stops.

    The signal may reach only some of the processes, or each at another moment, so they agree after every step.
    """

    def __init__(self):
        self.was_preempted = False
        self._is_asked, self._group, self._previous = False, None, None

    def on_train_begin(self, args, state, control, **kwargs):
        self.was_preempted = self._is_asked = False
        # Only the main thread may handle signals. After a preemption the handler is still there
        if self._previous is None and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._ask)
        if args.world_size > 1:
            # Of its own and on the CPU: it neither waits for the accelerator nor mixes with other communication
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=args.ddp_timeout))

    def _ask(self, signum, frame):
        self._is_asked = True

    def on_step_end(self, args, state, control, **kwargs):
        is_asked = torch.tensor(int(self._is_asked))
        if self._group is not None:
            dist.all_reduce(is_asked, op=dist.ReduceOp.MAX, group=self._group)
        if is_asked and state.global_step < state.max_steps:
            logger.warning(f"SIGTERM: saving at step {state.global_step} and stopping")
            self.was_preempted = control.should_save = control.should_training_stop = True

    def release(self):
        """Give SIGTERM back, however the training ended. Not once it has been answered, though: it reaches one process
        after another, and would end those that have saved before they can say so by their exit status."""
        if self._previous is not None and not self.was_preempted:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None


class StopwatchCallback(TrainerCallback):
    """Measures every step of a rehearsal. It comes after `StageCallback`, whose work is not measured."""

    def __init__(self):
        self.rows, self._start = [], 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        reset_peak_memory(args.device)
        self._start = time.perf_counter()

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if args.device.type == "cuda":
            torch.cuda.synchronize(args.device)
        learning = (parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        self.rows.append(
            {
                "seconds": time.perf_counter() - self._start,
                "trainable_parameters": sum(learning),
                "peak_memory_gib": peak_memory_gib(args.device),
            }
        )
        control.should_training_stop = state.global_step >= state.max_steps
