"""Pretrain a video ViT from a recipe.

layerlock pretrain --config demo --train_data VIDEOS --output_dir OUT [--num_processes 8 | --accelerate_config fsdp2]

Every setting of a recipe is also a flag, and flags override the recipe: `--max_steps 100 --mask_ratio 0.9`.
`--rehearse true` runs one step of every stage, prints what each costs, and exits. The options of `accelerate launch`
(`--num_processes`, `--num_machines`, ...) and `--accelerate_config` start several processes; `accelerate launch -m
layerlock_hf.cli.pretrain ...` and `accelerate launch scripts/pretrain.py ...` do the same. OUT receives the model
(loadable with `AutoModel.from_pretrained`), its video processor, checkpoints, `stages.json`, `metrics.jsonl` and
`bad_videos.jsonl`.
"""

import sys

from ..pretraining.arguments import RunSettings, parse
from ..pretraining.build import build, clips_per_step, describe_stages
from ..pretraining.run import rehearse_run, run
from ..training import LayerLockTrainer
from ..utils.outputs import print_table
from ..utils.processes import run_and_exit
from . import programs  # noqa: F401  (how programs end)
from .launching import launch, launch_options
from .run_errors import run_errors_told, settings_errors_told


AFTERWARDS = """
{out} holds the model and its video processor (AutoModel.from_pretrained), the log (metrics.jsonl), what was frozen and
predicted when (stages.json), and the names of bad videos (bad_videos.jsonl). To see what the encoder knows:
  layerlock readout --model {out} --task classification --data LABELLED --output_dir {out}/readout"""
GO_ON = ". Resume with --resume_from_checkpoint auto"


def print_run(trainer: LayerLockTrainer, settings: RunSettings):
    """What is about to be trained."""
    model = trainer.model
    parts = ", ".join(f"{name} {count / 1e6:.2f}M" for name, count in model.parameter_breakdown().items() if count)
    print(f"{model.num_parameters() / 1e6:.1f}M parameters: {parts}")
    num_workers = settings.training.dataloader_num_workers
    workers = f"{num_workers} data worker{'s' * (num_workers != 1)} per process"
    print(f"{len(trainer.train_dataset.videos)} videos, decoded by {workers}")
    print(f"{clips_per_step(settings.training)} clips a step")
    print_table(describe_stages(model, trainer.stages))
    if trainer.freezing is not None:
        print(trainer.freezing.describe())


def print_rehearsal(settings: RunSettings):
    with settings_errors_told(), run_errors_told("dataloader_num_workers"):
        rows, bad_videos = rehearse_run(settings)
    if settings.training.process_index == 0:
        print(f"the run would take {sum(row.pop('hours') for row in rows):.3g} hours at the pace of these steps:")
        print_table(rows)
        if bad_videos:
            print(bad_videos)


def print_end(trainer: LayerLockTrainer):
    if trainer.was_preempted:
        print(f"saved checkpoint-{trainer.state.global_step}; the same command with --resume auto goes on")
        return
    print(AFTERWARDS.format(out=trainer.args.output_dir))
    bad_videos = trainer.train_dataset.bad_videos
    if bad_videos.count():
        print(f"{bad_videos.summary()}; see {bad_videos.path}")


def pretrain(arguments: list[str]):
    with settings_errors_told():
        options = launch_options()
        launch("layerlock_hf.cli.pretrain", arguments, options)
        settings = parse(arguments, also=[option.removeprefix("--") for option in options])
    if settings.data.rehearse:
        return print_rehearsal(settings)
    with settings_errors_told():
        trainer = build(settings)
    if trainer.is_world_process_zero():
        print_run(trainer, settings)
    with run_errors_told("dataloader_num_workers", GO_ON):
        run(trainer)
    if trainer.is_world_process_zero():
        print_end(trainer)
    if trainer.was_preempted:
        raise SystemExit(128 + trainer.stop_signal)


def main(arguments: list[str]):
    run_and_exit(lambda: pretrain(arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
