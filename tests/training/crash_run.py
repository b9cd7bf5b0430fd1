"""A run of four stages that saves after every step, for the tests that kill it."""

import functools
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from toy_methods import TINY, MaskedClips
from transformers import PrinterCallback, TrainerCallback, set_seed

from layerlock_hf.models import LayerLockViTConfig, LayerLockViTForPretraining
from layerlock_hf.training import FreezeSchedule, LayerLockTrainer, LayerLockTrainingArguments, locked, mae
from layerlock_hf.training.checkpoints import CheckpointNotWritten
from layerlock_hf.utils.processes import run_and_exit


STAGES = locked(mae(6), FreezeSchedule(8, 8, 2, num_freezes=3), patch_fraction=0.5)
NUM_STEPS = 32
PREEMPTED = 143
NOT_WRITTEN = 3


class Progress(TrainerCallback):
    """Tells the test which step is done."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args, state, control, **kwargs):
        self.on_step_end(args, state, control)

    def on_step_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.path.write_text(str(state.global_step))


class At(TrainerCallback):
    """Does something at the end of a step, on one process."""

    def __init__(self, step: int, rank: int, action):
        self.step, self.rank, self.action = step, rank, action

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step and args.process_index == self.rank:
            self.action()


def make(output_dir, **settings) -> LayerLockTrainer:
    defaults = {
        "max_steps": NUM_STEPS,
        "per_device_train_batch_size": 1,
        "global_batch_size": 4,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 3,
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "learning_rate": 1e-2,
        "switch_warmup_steps": 1,
        "max_grad_norm": 1.0,
        "disable_tqdm": True,
        "diagnostics_steps": 0,
        "dataloader_pin_memory": False,
        "ddp_timeout": 60,
    }
    set_seed(0)
    model = LayerLockViTForPretraining(LayerLockViTConfig.from_preset("tiny", **TINY))
    args = LayerLockTrainingArguments(output_dir=str(output_dir), **{**defaults, **settings})
    trainer = LayerLockTrainer(model, args, STAGES, MaskedClips())
    trainer.remove_callback(PrinterCallback)
    return trainer


def run(output_dir, settings: dict, *callbacks: TrainerCallback, prepare=None):
    """Train, or go on training. Leaves the final state of every process in `output_dir/final-RANK.pt`."""
    trainer = make(output_dir, **settings)
    for callback in (Progress(Path(output_dir) / "progress"), *callbacks):
        trainer.add_callback(callback)
    if prepare is not None:
        prepare(trainer)
    try:
        trainer.train("auto")
    except CheckpointNotWritten as error:
        if trainer.args.process_index == 0:
            (Path(output_dir) / "error").write_text(str(error))
        sys.exit(NOT_WRITTEN)
    if trainer.was_preempted:
        sys.exit(PREEMPTED)
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    final = {
        "model": trainer.model.state_dict(),
        "optimizer": optimizer.state_dict() if trainer.optimizer is not None else None,
        "log": [
            {name: row[name] for name in ("step", "loss", "grad_norm", "learning_rate", "num_frozen")}
            for row in trainer.state.log_history
            if "grad_norm" in row
        ],
    }
    torch.save(final, Path(output_dir) / f"final-{trainer.args.process_index}.pt")


def kill_in_save(trainer: LayerLockTrainer, step: int, rank: int, method: str, after: bool):
    """Make SIGKILL hit one process before or after a method of the trainer, in the save of this step."""
    original = getattr(trainer, method)

    def killed(*arguments, **kwargs):
        is_it = trainer.state.global_step == step and trainer.args.process_index == rank
        if is_it and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        original(*arguments, **kwargs)
        if is_it:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(trainer, method, killed)


def wait_for_step(output_dir, step: int, processes, timeout_s: float = 60):
    """Wait until this step is done, or a process has ended."""
    path, end = Path(output_dir) / "progress", time.monotonic() + timeout_s
    while time.monotonic() < end and all(process.is_alive() for process in processes):
        text = path.read_text() if path.is_file() else ""
        if text and int(text) >= step:
            return
        time.sleep(0.005)
    if time.monotonic() >= end:
        raise TimeoutError(f"step {step} is not done after {timeout_s} s")


def assert_undisturbed(output_dir, undisturbed: dict):
    """Weights, optimizer and every logged loss of both processes are those of the undisturbed run, bit by bit."""
    for rank in range(2):
        final = torch.load(Path(output_dir) / f"final-{rank}.pt")
        assert_equal(final["model"], undisturbed["model"])
        for name, state in undisturbed["optimizer"]["state"].items():
            assert_equal(final["optimizer"]["state"][name], state)
        assert final["optimizer"]["param_groups"] == undisturbed["optimizer"]["param_groups"]
        assert final["log"] == undisturbed["log"]


def assert_equal(tensors: dict[str, torch.Tensor], others: dict[str, torch.Tensor]):
    assert tensors.keys() == others.keys()
    assert [name for name, tensor in tensors.items() if not torch.equal(tensor, others[name])] == []


def saved_log(output_dir) -> list[dict]:
    """What the last checkpoint holds of the log."""
    newest = max(Path(output_dir).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return json.loads((newest / "trainer_state.json").read_text())["log_history"]


def run_with_workers(*arguments):
    """`run` as the leader of a process group, which holds its data workers too."""
    os.setpgrp()
    run(*arguments)


def main(output_dir: str, timeout_s: str = "60", step: str = "-1", rank: str = "-1", signal_name: str = "SIGKILL"):
    """As a program: the signal hits one process after one step, in the first attempt of the launch alone."""
    torch.set_num_threads(1)
    is_first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    hit = functools.partial(os.kill, os.getpid(), getattr(signal, signal_name))
    run(output_dir, {"ddp_timeout": int(timeout_s)}, *([At(int(step), int(rank), hit)] if is_first else []))


if __name__ == "__main__":
    run_and_exit(lambda: main(*sys.argv[1:]))
