"""Runs of pretraining from Python: as `layerlock pretrain`, without its command line."""

import copy
import shutil
from pathlib import Path

from accelerate import PartialState

from ..training import LayerLockTrainer
from ..training.rehearsal import rehearse
from .arguments import RunSettings
from .build import build_parts, build_trainer


REHEARSAL = ".rehearsal"  # within the folder of the run, so that all processes see it; gone afterwards


def pretrain(
    config: str | Path, train_data: str | Path | list[str], output_dir: str | Path, **settings
) -> LayerLockTrainer:
    """Pretrain a video ViT from a recipe, as `layerlock pretrain` does; returns the trainer, with model and log.

    Examples:
        >>> trainer = pretrain("demo", "videos", "runs/mine", max_steps=100)  # doctest: +SKIP

    A run stopped by SIGTERM or Ctrl-C has saved a checkpoint (`trainer.was_preempted`), and the same call with
    `resume_from_checkpoint="auto"` resumes it. To use several GPUs, start the program with `accelerate launch`.

    Args:
        config: a recipe, by name (`layerlock recipes` lists them) or path.
        train_data: folder of videos, CSV/JSONL list, parquet file or `datasets` Hub id, or several of these.
        output_dir: folder for checkpoints, logs, reports and the model.
        settings: overrides of the recipe, by the names of the flags of `layerlock pretrain`.

    Raises:
        ValueError: naming the setting that is unknown, wrong, or contradicts another.
        CheckpointRefused, CheckpointNotWritten, BadData, LossNotFinite, NoDataCame, DoesNotFit, RunUnhealthy: what
            ends a run.
    """
    trainer = build_trainer(config, train_data, output_dir, **settings)
    run(trainer)
    return trainer


def run(trainer: LayerLockTrainer):
    """Train, from the checkpoint that its settings name, and save the model unless a signal stopped the run."""
    trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    if not trainer.was_preempted:
        trainer.save_model()
        trainer.save_state()


def rehearse_run(settings: RunSettings) -> tuple[list[dict], str]:
    """One step of every stage of a run (`training.rehearsal.rehearse`), and what is wrong with the videos it met.

    Nothing is left in the folder of the run.
    """
    training_args = copy.copy(settings.training)
    training_args.output_dir = str(Path(training_args.output_dir) / REHEARSAL)
    settings.readout.load()  # which is not rehearsed, but may be wrong
    try:
        parts = build_parts(settings._replace(training=training_args))
        rows = rehearse(**parts)
        PartialState().wait_for_everyone()
        bad_videos = parts["train_dataset"].bad_videos
        return rows, bad_videos.summary() if bad_videos.count() else ""
    finally:
        if training_args.process_index == 0:
            shutil.rmtree(training_args.output_dir, ignore_errors=True)
