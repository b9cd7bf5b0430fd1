"""A Trainer whose runs survive: crashes, full disks, preemption, hung processes and restarts."""

import functools
import shutil
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from torch.distributed.checkpoint.api import CheckpointException
from transformers import Trainer
from transformers.utils import logging

from ..utils.handing_over import HandOver, received
from .callbacks import PreemptionCallback
from .checkpoints import ASIDE, CheckpointNotWritten, fault, keep_newest, newest_complete, publish
from .processes import check_shared_folder, init_worker
from .run_file import CheckpointRefused


logger = logging.get_logger(__name__)


class SurvivingTrainer(Trainer):
    """`transformers.Trainer` with checkpoints that are complete or do not exist, which stops in good order on SIGTERM
    and SIGINT (Ctrl-C), and does nothing when a finished run is started again."""

    def __init__(self, *, args, **kwargs):
        super().__init__(args=args, **kwargs)
        self.is_finished = False
        self._run_dir = args.output_dir
        self._preemption = PreemptionCallback()
        self.add_callback(self._preemption)

    @property
    def was_preempted(self) -> bool:
        """Whether a signal ended the training: a checkpoint has been written, and the run is not finished."""
        return self._preemption.was_preempted

    @property
    def stop_signal(self) -> int | None:
        """The signal (SIGTERM or SIGINT) that this process was asked to stop by, None if it was not."""
        return self._preemption.stop_signal

    def train(self, resume_from_checkpoint: str | bool | None = None):
        """As `Trainer.train`. A checkpoint is resumed from only if it is complete.

        Args:
            resume_from_checkpoint: a folder; True for the newest complete checkpoint in `output_dir`; `"auto"` for the
                same, and a fresh start where there is none.

        Raises:
            CheckpointRefused: if the checkpoint is not complete, or was written by another run.
            CheckpointNotWritten: if one could not be written, for instance because the disk is full.
        """
        check_shared_folder(self.args.output_dir)
        try:
            return super().train(self._checkpoint_to_resume(resume_from_checkpoint))
        finally:
            self._preemption.release()

    def get_train_dataloader(self):
        loader = super().get_train_dataloader()
        inner = getattr(loader, "base_dataloader", loader)  # what Accelerate has prepared passes attributes on to read
        inner.worker_init_fn = functools.partial(init_worker, inner.worker_init_fn)
        inner.collate_fn = HandOver(inner.collate_fn)
        return loader

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        with self._preemption.waiting_for_data():
            batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        return [received(batch) for batch in batches], num_items

    def _init_training_state(self, max_steps, num_update_steps_per_epoch, num_train_epochs, *args, **kwargs):
        """As in `Trainer`, which however trains one more step when a finished run is resumed: leave it no epoch."""
        done = super()._init_training_state(max_steps, num_update_steps_per_epoch, num_train_epochs, *args, **kwargs)
        self.is_finished = self.state.global_step >= max_steps
        if self.is_finished:
            logger.warning(f"nothing is left to train: step {self.state.global_step} of max_steps={max_steps} is done")
            return num_train_epochs, 0
        return done

    def _checkpoint_to_resume(self, wanted: str | bool | None) -> str | None:
        if not wanted:
            return None
        # Read by one process, because every byte is compared
        found = [None, None]
        if self.args.process_index == 0:
            if wanted in (True, "auto"):
                checkpoint, reason = newest_complete(self.args.output_dir), None
            else:
                checkpoint, reason = wanted, fault(Path(wanted))
            found = [checkpoint and str(checkpoint), reason]
        broadcast_object_list(found)
        checkpoint, reason = found
        if reason is not None:
            raise CheckpointRefused(f"{checkpoint} is not complete: {reason}")
        if wanted is True and checkpoint is None:
            raise ValueError(f"resume_from_checkpoint: there is no complete checkpoint in {self.args.output_dir}")
        if checkpoint is not None:
            logger.warning(f"going on from {checkpoint}")
        return checkpoint

    def _get_output_dir(self, trial) -> str:
        return self._run_dir

    def _save_checkpoint(self, model, trial):
        """Written aside by all processes, and published once all of it is there."""
        output_dir = Path(self.args.output_dir)
        aside = output_dir / ASIDE
        name = f"checkpoint-{self.state.global_step}"
        error = None
        if self.args.should_save:
            shutil.rmtree(aside, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._run_dir = str(aside)
        try:
            super()._save_checkpoint(model, trial)
        except (Exception, CheckpointException) as caught:  # on any process; the others must hear of it
            error = caught
        finally:
            self._run_dir = self.args.output_dir
        self._agree_on_save(error, name)
        if self.args.should_save:
            try:
                publish(aside / name, output_dir / name)
            except OSError as caught:
                error = caught
        self._agree_on_save(error, name)
        if self.args.should_save:
            keep_newest(output_dir, self.args.save_total_limit)
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(output_dir / name))

    def _agree_on_save(self, error: Exception | None, name: str):
        """Raise `CheckpointNotWritten` on all processes if there was an error on one."""
        num_failed = self.accelerator.reduce(torch.tensor(int(error is not None), device=self.args.device), "sum")
        if num_failed:
            output_dir = self.args.output_dir
            room = shutil.disk_usage(output_dir).free / 2**20  # PyTorch does not say that the disk is full
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                shutil.rmtree(Path(output_dir) / ASIDE, ignore_errors=True)
            reason = error if error is not None else "another process failed to write its part"
            raise CheckpointNotWritten(
                f"{name} could not be written, with {room:.1f} MiB left on the disk: {reason}. Earlier checkpoints in "
                f"{output_dir} are as they were: make room, and go on with --resume_from_checkpoint auto"
            ) from error

    def _push_from_checkpoint(self, checkpoint_folder: str):
        """Not from where it is written: `_save_checkpoint` does it once the checkpoint is published."""
