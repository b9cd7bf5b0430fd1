"""What the trainer does around each step."""

import time

import torch
from transformers import TrainerCallback

from .memory import peak_memory_gib, reset_peak_memory


class StageCallback(TrainerCallback):
    """Enters a new stage at the beginning of its first optimizer step; lets the teacher follow after each."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_step_begin(self, args, state, control, **kwargs):
        self.trainer.begin_step(state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        # No row of the log mixes two stages, and none is lost at the end
        if state.global_step == state.max_steps or self.trainer.is_border(state.global_step):
            control.should_log = True

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.move_teacher(state.global_step)


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
