"""Fault tolerance: a Trainer whose runs survive crashes, full disks, preemption, hung processes and restarts."""

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from torch.distributed.checkpoint.api import CheckpointException
from transformers import Trainer
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_utils import HubStrategy, get_last_checkpoint
from transformers.utils import logging

from ..hub.client import check_repo_id
from ..hub.repository import CARD, PushFolder, repository_of_run
from ..utils.handing_over import HandOver, received
from ..utils.processes import check_shared_folder, init_worker, raised_together, shielded
from .callbacks import PreemptionCallback
from .checkpoints import ASIDE, CheckpointNotWritten, fault, keep_newest, newest_complete, publish, take_the_place_of
from .publishing import Publisher
from .run_file import CheckpointRefused
from .sharding import check_weights, load_whole_weights, save_whole_optimizer, saves_shards, saves_whole
from .weight_index import check_weight_names


logger = logging.get_logger(__name__)


class FaultTolerantTrainer(Trainer):
    """`transformers.Trainer` with checkpoints that are complete or do not exist, which stops in good order on SIGTERM
    and SIGINT (Ctrl-C), and does nothing when a finished run is started again."""

    def __init__(self, *, args, **kwargs):
        self._publisher = None  # until the Trainer calls `init_hf_repo`, and but for the main process
        super().__init__(args=args, **kwargs)
        self.is_finished = False
        self._run_dir, self._failure = args.output_dir, None
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
            CheckpointRefused: if the checkpoint is not complete, or was written by another run; if none is to be
                resumed from, and `output_dir` holds some.
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
        if inner.num_workers:
            inner.multiprocessing_context = shielded(inner.multiprocessing_context)
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
            return self._check_folder()
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
            logger.warning(f"resuming from {checkpoint}")
        return checkpoint

    def _check_folder(self):
        """A fresh run does not mix its checkpoints with those of another."""
        folder = Path(self.args.output_dir)
        found = [self.args.process_index == 0 and folder.is_dir() and get_last_checkpoint(folder) is not None]
        broadcast_object_list(found)
        if found[0]:
            raise CheckpointRefused(
                f"output_dir: {folder} already holds checkpoints: resume from the newest with "
                "--resume_from_checkpoint auto, or choose another folder"
            )

    def _get_output_dir(self, trial) -> str:
        return self._run_dir

    # ---- what is written

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """As in `Trainer`, but the model that the folder may hold stays whole until the new one is.

        Raises:
            CheckpointNotWritten: on all processes, if one of them could not write its part.
        """
        folder = Path(output_dir or self.args.output_dir)
        if self._run_dir != self.args.output_dir:  # a part of a checkpoint, which is written aside as a whole
            self.write_model(str(folder), is_final=False)
            return
        aside = folder / ASIDE / "model"
        with self._agreeing("the model", aside, functools.partial(take_the_place_of, aside, folder)):
            self.write_model(str(aside), is_final=True)
        if self._publisher is not None and not _internal_call:
            self._publish_end()

    def write_model(self, folder: str, is_final: bool):
        """Write the model, and all that belongs to it, into a new folder. Every process calls it.

        Args:
            is_final: whether it is to be used, and not a part of a checkpoint.
        """
        if is_final and saves_shards(self.accelerator):  # the Trainer would write none; checkpoints hold its parts
            self._save(folder, self.accelerator.get_state_dict(self.model))
        else:
            super().save_model(folder, _internal_call=True)

    def _save_optimizer_and_scheduler(self, output_dir: str):
        if saves_whole(self.accelerator):  # where the Trainer would write the model once more
            save_whole_optimizer(self.optimizer, self.model, self.accelerator, output_dir)
            if self.args.should_save:
                torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)
        else:
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None):
        check_weight_names(resume_from_checkpoint)
        check_weights(resume_from_checkpoint, self.accelerator)
        if saves_whole(self.accelerator):
            load_whole_weights(self.model if model is None else model, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None):
        with self._failure_noted():
            super()._save(output_dir, state_dict)

    def _save_checkpoint(self, model, trial):
        """Written aside by all processes, and published once all of it is there."""
        name = f"checkpoint-{self.state.global_step}"
        folder = Path(self.args.output_dir) / name
        aside = folder.parent / ASIDE / name
        with self._agreeing(name, aside, functools.partial(publish, aside, folder)):
            self._run_dir = str(aside.parent)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._run_dir = self.args.output_dir
        if self.args.should_save:
            keep_newest(self.args.output_dir, self.args.save_total_limit)
        if self._publisher is not None and self.args.hub_strategy == HubStrategy.EVERY_SAVE:
            # Not of a run that saves its parts, whose whole model is there at the end
            if not (self._publisher.is_busy or saves_shards(self.accelerator)):
                self._publisher.send(folder, self.state.global_step)

    @contextlib.contextmanager
    def _agreeing(self, name: str, aside: Path, publish: Callable[[], None]) -> Iterator[None]:
        """All processes write into a folder; once all have, the main one publishes it.

        Args:
            name: of what is written, in messages.
            aside: the folder, which is emptied before.

        Raises:
            CheckpointNotWritten: on all processes, if one of them failed.
        """
        if self.args.should_save:
            shutil.rmtree(aside.parent, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._failure = None
        with self._failure_noted():
            yield
        self._agree_on_save(name, aside)
        if self.args.should_save:
            with self._failure_noted():
                publish()
        self._agree_on_save(name, aside)

    @contextlib.contextmanager
    def _failure_noted(self) -> Iterator[None]:
        """What goes wrong within is told by `_agree_on_save`, so that a process that could not write goes on to the
        calls that all must make together: without it, the others would wait there."""
        try:
            yield
        except (Exception, CheckpointException) as error:
            self._failure = self._failure or error

    def _agree_on_save(self, name: str, aside: Path):
        """Raise `CheckpointNotWritten` on all processes if one has failed."""
        error = self._failure
        num_failed = self.accelerator.reduce(torch.tensor(int(error is not None), device=self.args.device), "sum")
        if num_failed:
            output_dir = self.args.output_dir
            room = shutil.disk_usage(output_dir).free / 2**20  # PyTorch does not say that the disk is full
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                shutil.rmtree(aside.parent, ignore_errors=True)
            reason = error if error is not None else "another process failed to write its part"
            raise CheckpointNotWritten(
                f"{name} could not be written, with {room:.1f} MiB left on the disk: {reason}. Earlier checkpoints "
                f"in {output_dir} are intact: free some space, and resume with --resume_from_checkpoint auto"
            ) from error

    def _push_from_checkpoint(self, checkpoint_folder: str):
        """Not from where it is written: `_save_checkpoint` does it once the checkpoint is published."""

    # ---- the Hub

    def init_hf_repo(self, token: str | None = None):
        """Make ready to push. As in `Trainer`, called by it with `push_to_hub`.

        Raises:
            ValueError: on all processes, if there is no token or it is not valid.
        """
        with raised_together():
            if self.args.process_index == 0:
                name, setting = self.args.hub_model_id, "hub_model_id"
                if name is None:
                    name, setting = Path(self.args.output_dir).resolve().name, "hub_model_id, by default the folder,"
                check_repo_id(name, setting)
                private = self.args.hub_private_repo
                Path(self.args.output_dir).mkdir(parents=True, exist_ok=True)
                self._publisher = Publisher(Path(self.args.output_dir), name, private, token or self.args.hub_token)
                self.hub_model_id = self._publisher.repo_id

    def create_model_card(self):
        """Write the card that the saved model has on the Hub into `output_dir`. That of `Trainer` would call it a
        fine-tuned model."""
        output = Path(self.args.output_dir)
        if self.args.process_index == 0:
            with PushFolder(output) as place:
                repository_of_run(output, output, None, Path(place), self.hub_model_id)
                shutil.copyfile(Path(place) / CARD, output / CARD)

    def push_to_hub(self, commit_message: str | None = None, blocking: bool = True):
        """Save the model and push it as `layerlock push` does. What fails is told, and can be done later.

        Args:
            commit_message: by default what of the run it is.
            blocking: whether to wait until everything has been sent.
        """
        self.save_model(_internal_call=True)
        if self._publisher is not None:
            self._publish_end(commit_message, blocking)

    def _publish_end(self, commit_message: str | None = None, blocking: bool = True):
        self._publisher.send(Path(self.args.output_dir), None, commit_message)
        if not blocking:
            return
        logger.warning(f"pushing to {self._publisher.repo_id}")
        self._publisher.wait()
        if self._publisher.failures:
            stages = " --stages" * self.args.save_stages
            logger.warning(
                f"not all of the run is on the Hub ({'; '.join(self._publisher.failures)}). The training is complete, "
                f"and this pushes what is left: layerlock push {self.args.output_dir} --repo_id "
                f"{self._publisher.repo_id}{stages}"
            )
