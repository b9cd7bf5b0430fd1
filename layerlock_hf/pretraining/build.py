"""A run of pretraining from its settings: the data, the model, and a trainer that is ready to train."""

import multiprocessing
from pathlib import Path

from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError
from transformers import set_seed

from ..data import (
    BadVideos,
    BatchAugmentation,
    ClipTransform,
    PretrainingClips,
    PretrainingCollator,
    check_present,
    load_videos,
)
from ..models import LayerLockVideoProcessor, LayerLockViTConfig, LayerLockViTForPretraining
from ..recipes.settings import flags_of
from ..training import LayerLockTrainer, LayerLockTrainingArguments, load_teacher
from ..training.checks import check_masks
from ..training.run_file import read_run_file, target_label
from ..utils.outputs import check_output
from .arguments import DataArguments, ModelArguments, RunSettings, parse
from .record import settings_record
from .reports import BAD_VIDEOS, REPORTS, Reports


def build_trainer(
    config: str | Path, train_data: str | Path | list[str], output_dir: str | Path, **settings
) -> LayerLockTrainer:
    """The trainer of a run as `layerlock pretrain` makes it, ready to train or to add callbacks to.

    Examples:
        >>> trainer = build_trainer("demo", "videos", "runs/mine", max_steps=100)  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP

    Args:
        config: a recipe, by name (`layerlock recipes` lists them) or path.
        train_data: folder of videos, CSV/JSONL list, parquet file or `datasets` Hub id, or several of these.
        output_dir: folder for checkpoints, logs, reports and the model.
        settings: overrides of the recipe, by the names of the flags of `layerlock pretrain`.

    Raises:
        ValueError: naming the setting that is unknown, wrong, or contradicts another.
    """
    given = {"config": config, "train_data": train_data, "output_dir": output_dir}
    return build(parse(flags_of({**given, **settings})))


def build(settings: RunSettings) -> LayerLockTrainer:
    """The trainer of a run with these settings.

    Raises:
        ValueError: saying what the user has to fix.
    """
    readout = settings.readout.load()
    parts = build_parts(settings)
    output, clips = Path(settings.training.output_dir), parts["train_dataset"]
    num_clips = clips_per_step(settings.training)
    record = settings_record(settings.arguments, settings[:-1], len(clips.videos), num_clips)
    trainer = LayerLockTrainer(**parts, processing_class=processor_of(parts["model"].config, clips))
    rows = describe_stages(parts["model"], trainer.possible_stages)
    trainer.add_callback(Reports(output, trainer.stages, rows, record, clips.bad_videos))
    for callback in settings.health.callbacks(output):
        trainer.add_callback(callback)
    if readout is not None:
        settings.readout.add_to(trainer, *readout)
    return trainer


def build_parts(settings: RunSettings) -> dict:
    """What `LayerLockTrainer` and `rehearse` need for a run, by the names of their arguments.

    Raises:
        ValueError: as `build`.
    """
    data_args, training_args = settings.data, settings.training
    config = model_config(settings.model)
    teacher, teacher_depth, teacher_width = (None, None, None)
    if data_args.teacher is not None:
        teacher, teacher_depth, teacher_width = load_teacher(data_args.teacher)
        if config.teacher_hidden_size not in (None, teacher_width):
            raise ValueError(
                f"teacher_hidden_size must be {teacher_width}, the teacher's, got {config.teacher_hidden_size}"
            )
        config.teacher_hidden_size = teacher_width
    stages = settings.stages.build(config, teacher_depth, training_args.max_steps)
    collator = PretrainingCollator(config.grid_size, settings.masks.build(), training_args.seed)
    check_masks(collator, config, training_args)  # which the trainer does, too, but only once the videos are listed
    check_folders(data_args, training_args)
    num_samples = training_args.max_steps * clips_per_step(training_args)
    report = Path(training_args.output_dir) / BAD_VIDEOS
    clips = build_clips(data_args, training_args, config, num_samples, report)
    set_seed(training_args.seed)
    return {
        "model": LayerLockViTForPretraining(config),
        "args": training_args,
        "stages": stages,
        "freezing": settings.stages.freezing(config, training_args.max_steps, training_args.switch_warmup_steps),
        "train_dataset": clips,
        "data_collator": collator,
        "teacher": teacher,
        "batch_transform": (
            BatchAugmentation(config.image_size, config.num_frames) if clips.augment_on_device else None
        ),
    }


def check_folders(data_args: DataArguments, training_args: LayerLockTrainingArguments):
    """Raise a `ValueError` unless the run can write to its folder and resume from the checkpoint that it names."""
    output, checkpoint = Path(training_args.output_dir), training_args.resume_from_checkpoint
    if checkpoint not in (None, "auto"):
        if not Path(checkpoint).is_dir():
            raise ValueError(f"resume_from_checkpoint: there is no checkpoint {checkpoint}")
        read_run_file(checkpoint)  # before anything is loaded; all of it is checked later
    if data_args.train_data is None:
        raise ValueError("train_data must be set: it is where the videos are")
    for source in map(Path, data_args.train_data):
        if source.is_dir() and output.resolve().is_relative_to(source.resolve()):
            raise ValueError(
                f"output_dir must lie outside of train_data, whose files are taken for videos, got {output}"
            )
    if training_args.process_index == 0:
        check_output(output, REPORTS)
    PartialState().wait_for_everyone()


def model_config(model_args: ModelArguments) -> LayerLockViTConfig:
    """The configuration of a preset with what was set beside it.

    Raises:
        ValueError: naming what is wrong.
    """
    given = {name: value for name, value in vars(model_args).items() if value is not None and name != "preset"}
    if given.get("num_channels", 3) != 3:
        raise ValueError(f"num_channels must be 3, as videos are decoded to RGB, got {given['num_channels']}")
    try:
        return LayerLockViTConfig.from_preset(model_args.preset, **given)
    except StrictDataclassError as error:  # which is no ValueError
        raise ValueError(str(error)) from error


def processor_of(config: LayerLockViTConfig, clips: PretrainingClips) -> LayerLockVideoProcessor:
    """What turns videos into clips of the scale and pace that the model is trained on."""
    size = clips.transform.image_size * clips.transform.central_factor
    pace = {"frame_stride": clips.frame_stride, "frame_rate": clips.frame_rate}
    return LayerLockVideoProcessor.from_config(config, size=size, **pace)


def describe_stages(model: LayerLockViTForPretraining, stages) -> list[dict]:
    """One row per stage, for `stages.json`: `start`, `num_frozen`, `target`, `trainable_parameters`."""
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
            f"per_device_train_batch_size must be a multiple of clips_per_video={data_args.clips_per_video}, got "
            f"{training_args.per_device_train_batch_size}"
        )
    if clips.device != "cpu":
        if training_args.dataloader_num_workers == 0:
            raise ValueError("dataloader_num_workers must be at least 1 to decode on the GPU (decode_device), got 0")
        # What is forked from a process that uses the GPU cannot use it
        multiprocessing.set_start_method("forkserver", force=True)
    return clips
