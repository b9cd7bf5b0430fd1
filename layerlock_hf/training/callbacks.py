"""What the trainer does around each step."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise

import torch
import torch.distributed as dist
from transformers import TrainerCallback
from transformers.utils import logging

from ..models.objectives import Stage
from ..utils.memory import peak_memory_gib, reset_peak_memory
from .run_file import announce


logger = logging.get_logger(__name__)

ECHO_S = 2.0  # within which a launcher passes on the Ctrl-C that the terminal has sent to all
MAX_WAIT_S = 10  # for data, after a signal. Schedulers kill after 30 or more


class StageCallback(TrainerCallback):
    """Enters a new stage at the beginning of its first optimizer step; updates the teacher after each."""

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
        self.trainer.update_teacher(state.global_step)


class ScheduleCallback(TrainerCallback):
    """Tells of every new stage, and what is doubtful about the schedules: before the first step and again after the
    last, with the number of stages that ran.

    Args:
        stages: of the run.
        doubts: a line each.
    """

    def __init__(self, stages: list[Stage], doubts: list[str]):
        self.stages, self.doubts = stages, doubts

    def on_train_begin(self, args, state, control, **kwargs):
        self._tell(state)

    def on_step_begin(self, args, state, control, **kwargs):
        for before, stage in pairwise(self.stages):
            if stage.start == state.global_step and state.is_world_process_zero:
                logger.warning(announce(before, stage))

    def on_train_end(self, args, state, control, **kwargs):
        num_run = sum(stage.start < state.global_step for stage in self.stages)
        if self.doubts and state.is_world_process_zero:
            logger.warning(f"{num_run} of {len(self.stages)} stages ran")
        self._tell(state)

    def _tell(self, state):
        if state.is_world_process_zero:
            for doubt in self.doubts:
                logger.warning(doubt)


class NoDataCame(RuntimeError):
    """A run that waits for data was told to end; the message is for the user."""


class PreemptionCallback(TrainerCallback):
    """SIGTERM, by which schedulers announce the end, and SIGINT (Ctrl-C): all processes save after the same step, and
    training stops. A second SIGINT ends it at once.

    A signal may reach only some of the processes, or each at another moment, so they agree after every step.

    Attributes:
        was_preempted: whether a signal ended the training.
        stop_signal: the signal, once the processes agree on it; None before.
    """

    def __init__(self):
        self.was_preempted, self.stop_signal = False, None
        self._asked, self._asked_at, self._is_waiting = 0, 0.0, False
        self._group, self._previous = None, {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.was_preempted, self.stop_signal, self._asked = False, None, 0
        # Only the main thread may handle signals. After a preemption the handler of SIGTERM is still there
        if threading.current_thread() is threading.main_thread():
            for number, handler in ((signal.SIGTERM, self._ask), (signal.SIGINT, self._ask)):
                if number not in self._previous:
                    self._previous[number] = signal.signal(number, handler)
        if args.world_size > 1:
            # Of its own and on the CPU: it neither waits for the accelerator nor mixes with other communication
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=args.ddp_timeout))

    def _ask(self, signum, frame):
        now = time.monotonic()
        if self._asked and signum == signal.SIGINT and now > self._asked_at + ECHO_S:
            raise KeyboardInterrupt
        if not self._asked:
            self._asked, self._asked_at = signum, now
            # Not by the logger, which the signal may have interrupted
            os.write(2, f"{_name(signum)}: saving after this step; Ctrl-C once more ends at once\n".encode())
            if self._is_waiting:
                self._limit_the_wait()

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """While the next batch is waited for, which may never come.

        Raises:
            NoDataCame: some seconds after a signal.
        """
        self._is_waiting = True
        if self._asked:
            self._limit_the_wait()
        try:
            yield
        finally:
            self._is_waiting = False
            if signal.SIGALRM in self._previous:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, self._previous.pop(signal.SIGALRM))

    def _limit_the_wait(self):
        if signal.SIGTERM in self._previous:  # handled here, hence in the main thread
            self._previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._give_up)
            signal.setitimer(signal.ITIMER_REAL, MAX_WAIT_S)

    def _give_up(self, signum, frame):
        raise NoDataCame(
            f"{_name(self._asked)}, but no batch came within {MAX_WAIT_S} s: nothing has been saved since the last "
            "checkpoint"
        )

    def on_step_end(self, args, state, control, **kwargs):
        asked = torch.tensor(self._asked)
        if self._group is not None:
            dist.all_reduce(asked, op=dist.ReduceOp.MAX, group=self._group)
        if asked and state.global_step < state.max_steps:
            self.stop_signal = self._asked = asked.item()
            logger.warning(f"{_name(self.stop_signal)}: saving at step {state.global_step} and stopping")
            self.was_preempted = control.should_save = control.should_training_stop = True

    def release(self):
        """Give the signals back, however the training ended. SIGTERM not once it has been answered, though: it reaches
        one process after another, and would end those that have saved before they can say so by their exit status."""
        for number in [number for number in self._previous if number != signal.SIGTERM or not self.was_preempted]:
            signal.signal(number, self._previous.pop(number))
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None


def _name(signum: int) -> str:
    return signal.Signals(signum).name


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
