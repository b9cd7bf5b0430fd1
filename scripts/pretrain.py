"""Pretrain a video ViT by a recipe.

accelerate launch scripts/pretrain.py --config scripts/recipes/demo.yaml --train_data VIDEOS --output_dir OUT

Every setting of a recipe is also a flag, and a flag wins over the recipe: `--max_steps 100 --mask_ratio 0.9`.
`--rehearse true` runs one step of every stage, prints what each costs, and exits. OUT receives the model (loadable
with `AutoModel.from_pretrained`), its video processor, checkpoints, `stages.json`, `metrics.jsonl` and
`bad_videos.jsonl`.
"""

import programs  # noqa: F401  # isort: skip
import layerlock_hf  # noqa: F401  # isort: skip  # before what takes long to import, see layerlock_hf.utils.parents
import atexit
import json
import multiprocessing
import shutil
import sys
import tempfile
from pathlib import Path

from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError
from transformers import TrainerCallback, set_seed
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from layerlock_hf import LayerLockVideoProcessor, LayerLockViTConfig, LayerLockViTForPretraining
from layerlock_hf.data import (
    BadData,
    BadVideos,
    BatchAugmentation,
    ClipTransform,
    PretrainingClips,
    PretrainingCollator,
    check_present,
    load_videos,
)
from layerlock_hf.training import LayerLockTrainer, LayerLockTrainingArguments, load_teacher
from layerlock_hf.training.callbacks import NoDataCame
from layerlock_hf.training.checkpoints import CheckpointNotWritten
from layerlock_hf.training.fitting import DoesNotFit
from layerlock_hf.training.run_file import CheckpointRefused, read_run_file, target_label
from layerlock_hf.training.trainer import LossNotFinite
from layerlock_hf.utils.files import write_aside
from layerlock_hf.utils.processes import run_and_exit
from outputs import (
    check_output,
    is_lost_worker,
    message_of,
    message_of_lost_worker,
    print_table,
    read_lines,
)
from pretrain_arguments import DataArguments, ModelArguments, parse


logger = logging.get_logger(__name__)

AFTERWARDS = """
{out} holds the model and its video processor (AutoModel.from_pretrained), the log (metrics.jsonl), what was frozen and
predicted when (stages.json), and the names of bad videos (bad_videos.jsonl). What the encoder knows is read by
  python scripts/train_readout.py --model {out} --task classification --data LABELLED --output_dir {out}/readout"""
STAGES, METRICS, BAD_VIDEOS = REPORTS = ("stages.json", "metrics.jsonl", "bad_videos.jsonl")


class Reports(TrainerCallback):
    """Writes `stages.json`, and every log to `metrics.jsonl` with the number of bad videos so far.

    A fresh run empties what an earlier one left in OUT, but not before training begins: until then the user may have
    to be told of an error.
    """

    def __init__(self, folder: Path, stages: list[dict], bad_videos: BadVideos):
        self.folder, self.stages, self.bad_videos = folder, stages, bad_videos
        self.num_told = 0

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            (self.folder / STAGES).write_text(json.dumps(self.stages, indent=1) + "\n")
            if state.global_step == 0:
                for name in (METRICS, BAD_VIDEOS):
                    (self.folder / name).write_text("")
            elif (self.folder / METRICS).is_file():
                # What a run logged after the checkpoint that it resumes from is logged again
                kept = [line for line in read_lines(self.folder / METRICS) if line["step"] <= state.global_step]
                with write_aside(self.folder / METRICS) as aside:
                    aside.write_text("".join(json.dumps(line) + "\n" for line in kept))
        # The others read videos from here on: what they report must not be emptied
        PartialState().wait_for_everyone()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            logs["bad_videos"] = self.bad_videos.count()
            if logs["bad_videos"] > self.num_told:
                logger.warning(self.bad_videos.summary())
                self.num_told = logs["bad_videos"]
            with (self.folder / METRICS).open("a") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


def model_config(model_args: ModelArguments) -> LayerLockViTConfig:
    """The configuration of a preset with what was set beside it.

    Raises:
        ValueError: naming what is wrong.
    """
    given = {name: value for name, value in vars(model_args).items() if value is not None and name != "preset"}
    if given.get("num_channels", 3) != 3:
        raise ValueError(f"num_channels must be 3, as videos are decoded to RGB, got {given['num_channels']}")
    return LayerLockViTConfig.from_preset(model_args.preset, **given)


def processor_of(config: LayerLockViTConfig, clips: PretrainingClips) -> LayerLockVideoProcessor:
    """What turns videos into clips of the scale and pace that the model is trained on."""
    size = clips.transform.image_size * clips.transform.central_factor
    pace = {"frame_stride": clips.frame_stride, "frame_rate": clips.frame_rate}
    return LayerLockVideoProcessor.from_config(config, size=size, **pace)


def describe_stages(model: LayerLockViTForPretraining, stages) -> list[dict]:
    """One row per stage, for `stages.json`."""
    rows = []
    for stage in stages:
        model.freeze_for(stage)
        rows.append(
            {
                "start": stage.start,
                "num_frozen": stage.num_frozen,
                "target": target_label(stage),
                "trainable_parameters": model.num_parameters(only_trainable=True),
            }
        )
    return rows


def clips_per_step(training_args: LayerLockTrainingArguments) -> int:
    """The clips of an optimizer step over all processes."""
    per_process = training_args.per_device_train_batch_size * training_args.gradient_accumulation_steps
    return per_process * training_args.world_size


def build_clips(
    data_args: DataArguments,
    training_args: LayerLockTrainingArguments,
    config: LayerLockViTConfig,
    num_samples: int,
    report: Path,
) -> PretrainingClips:
    """As many clips as these, as the settings ask; bad videos go to the report."""
    try:
        videos = load_videos(
            data_args.train_data,
            data_args.train_split,
            data_args.video_column,
            data_args.video_root,
            streaming=data_args.streaming,
        )
        check_present(videos, ", ".join(data_args.train_data))
    except ValueError as error:
        raise ValueError(f"train_data: {error}") from error
    bad_videos = BadVideos(str(report), len(videos), data_args.max_bad_fraction)
    transform = ClipTransform(
        config.image_size,
        data_args.resize_factor,
        crop_scale=None if data_args.crop_scale is None else tuple(data_args.crop_scale),
        jitter_strength=data_args.jitter_strength,
    )
    clips = PretrainingClips(
        videos,
        num_samples=num_samples,
        num_frames=config.num_frames,
        frame_stride=data_args.frame_stride,
        transform=transform,
        seed=training_args.seed,
        clips_per_video=data_args.clips_per_video,
        source_weights=data_args.train_weights,
        frame_rate=data_args.frame_rate,
        bad_videos=bad_videos,
        decode_timeout=data_args.decode_timeout,
        device=data_args.decode_device,
        augment_on_device=data_args.augment_on_device,
    )
    if training_args.per_device_train_batch_size % data_args.clips_per_video:
        raise ValueError(
            f"per_device_train_batch_size={training_args.per_device_train_batch_size} is not a multiple of "
            f"clips_per_video={data_args.clips_per_video}"
        )
    if clips.device != "cpu":
        if training_args.dataloader_num_workers == 0:
            raise ValueError("decode_device: decoding on the GPU needs dataloader_num_workers of at least 1")
        # What is forked from a process that uses the GPU cannot use it
        multiprocessing.set_start_method("forkserver", force=True)
    return clips


def build(arguments: list[str]):
    """Everything a run needs. All of the user's errors surface here, as `ValueError`."""
    model_args, stage_args, data_args, mask_args, readout_args, training_args = parse(arguments)
    config = model_config(model_args)
    teacher, teacher_depth, teacher_width = (None, None, None)
    if data_args.teacher is not None:
        teacher, teacher_depth, teacher_width = load_teacher(data_args.teacher)
        if config.teacher_hidden_size not in (None, teacher_width):
            raise ValueError(f"teacher_hidden_size={config.teacher_hidden_size}, but the teacher's is {teacher_width}")
        config.teacher_hidden_size = teacher_width
    stages = stage_args.build(config, teacher_depth, training_args.max_steps)
    masks = mask_args.build()
    group_size = getattr(masks, "group_size", training_args.per_device_train_batch_size)
    if group_size % training_args.per_device_train_batch_size:
        raise ValueError(
            f"mask_group_size={group_size} is not a multiple of per_device_train_batch_size="
            f"{training_args.per_device_train_batch_size}"
        )
    num_mask_types = len(masks(config.grid_size, [0], training_args.seed))
    if config.decoder == "predictor" and num_mask_types != config.num_mask_tokens:
        raise ValueError(
            f"num_mask_tokens={config.num_mask_tokens}, but mask_blocks has {num_mask_types} types of mask"
        )

    output = Path(training_args.output_dir)
    checkpoint = training_args.resume_from_checkpoint
    if checkpoint not in (None, "auto"):
        if not Path(checkpoint).is_dir():
            raise ValueError(f"resume_from_checkpoint: there is no checkpoint {checkpoint}")
        read_run_file(checkpoint)  # before anything is loaded; all of it is checked later
    for source in map(Path, data_args.train_data):
        if source.is_dir() and output.resolve().is_relative_to(source.resolve()):
            raise ValueError(f"output_dir: {output} lies within train_data, whose files are taken for videos")
    if training_args.process_index == 0:
        check_output(output, REPORTS)
    PartialState().wait_for_everyone()
    readout = readout_args.load()

    report = output / BAD_VIDEOS
    if data_args.rehearse:  # which leaves nothing behind, but whose data workers report to it too
        report = Path(tempfile.mkdtemp()) / BAD_VIDEOS
        atexit.register(shutil.rmtree, report.parent)
    num_samples = training_args.max_steps * clips_per_step(training_args)
    clips = build_clips(data_args, training_args, config, num_samples, report)
    batch_transform = BatchAugmentation(config.image_size, config.num_frames) if clips.augment_on_device else None
    collator = PretrainingCollator(config.grid_size, masks, training_args.seed)
    # The data set is the whole run in order: shuffled once per epoch by itself
    training_args.train_sampling_strategy = "sequential"

    set_seed(training_args.seed)
    model = LayerLockViTForPretraining(config)
    rows = describe_stages(model, stages)
    reports = Reports(output, rows, clips.bad_videos)
    trainer = LayerLockTrainer(
        model,
        training_args,
        stages,
        clips,
        collator,
        [reports],
        teacher,
        batch_transform,
        processor_of(config, clips),
    )
    if readout is not None and not data_args.rehearse:
        readout_args.add_to(trainer, *readout)
    if checkpoint is None and not data_args.rehearse and output.is_dir() and get_last_checkpoint(output):
        raise ValueError(
            f"output_dir: {output} holds checkpoints; go on from the newest by --resume_from_checkpoint auto, "
            "or choose another folder"
        )
    if training_args.process_index == 0:
        parts = ", ".join(f"{name} {count / 1e6:.2f}M" for name, count in model.parameter_breakdown().items() if count)
        print(f"{model.num_parameters() / 1e6:.1f}M parameters: {parts}")
        workers = f"{training_args.dataloader_num_workers} data workers per process"
        print(f"{len(clips.videos)} videos, decoded by {workers}")
        print(f"{clips_per_step(training_args)} clips a step")
        print_table(rows)
    return trainer, checkpoint, data_args.rehearse


def main(arguments: list[str]):
    try:
        trainer, checkpoint, rehearse = build(arguments)
    except (ValueError, StrictDataclassError) as error:
        raise SystemExit(f"error: {error}") from None
    try:
        if rehearse:
            rows = trainer.rehearse()
        else:
            trainer.train(resume_from_checkpoint=checkpoint)
            if not trainer.was_preempted:
                trainer.save_model()
                trainer.save_state()
    except (CheckpointRefused, CheckpointNotWritten, DoesNotFit) as error:
        raise SystemExit(f"error: {error}") from None
    except NoDataCame as error:
        raise SystemExit(f"error: {error}. Go on with --resume auto") from None
    except (BadData, LossNotFinite) as error:
        raise SystemExit(f"error: {message_of(error)}") from None
    except RuntimeError as error:
        if not is_lost_worker(error):
            raise
        raise SystemExit(
            f"error: {message_of_lost_worker(error)}: fewer dataloader_num_workers need less. Go on with "
            "--resume_from_checkpoint auto"
        ) from None
    if trainer.was_preempted:
        if trainer.is_world_process_zero():
            print(f"saved checkpoint-{trainer.state.global_step}; the same command with --resume auto goes on")
        raise SystemExit(128 + trainer.stop_signal)
    if trainer.is_world_process_zero():
        if rehearse:
            print(f"the run would take {sum(row.pop('hours') for row in rows):.3g} hours at the pace of these steps:")
            print_table(rows)
        else:
            print(AFTERWARDS.format(out=trainer.args.output_dir))
        bad_videos = trainer.train_dataset.bad_videos
        if bad_videos.count():
            print(bad_videos.summary() + ("" if rehearse else f"; see {bad_videos.path}"))


if __name__ == "__main__":
    run_and_exit(lambda: main(sys.argv[1:]))
