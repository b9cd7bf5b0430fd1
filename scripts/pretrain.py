"""Pretrain a video ViT by a recipe.

accelerate launch scripts/pretrain.py --config scripts/recipes/demo.yaml --train_data VIDEOS --output_dir OUT

Every setting of a recipe is also a flag, and a flag wins over the recipe: `--max_steps 100 --mask_ratio 0.9`.
`--rehearse true` runs one step of every stage, prints what each costs, and exits. OUT receives the model (loadable
with `AutoModel.from_pretrained`), its video processor, checkpoints, `stages.json`, `metrics.jsonl` and
`bad_videos.jsonl`.
"""

import json
import os
import signal
import sys
import tempfile
import types
import typing
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path

from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser, TrainerCallback, set_seed
from transformers.integrations import is_tensorboard_available
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from layerlock_hf import LayerLockVideoProcessor, LayerLockViTConfig, LayerLockViTForPretraining
from layerlock_hf.data import (
    BadData,
    BadVideos,
    MaskArguments,
    PretrainingClips,
    PretrainingCollator,
    load_videos,
)
from layerlock_hf.evaluation import OnlineReadout, center_clips, labelled_videos
from layerlock_hf.models.configuration_layerlock import architecture_fields
from layerlock_hf.training import (
    LayerLockTrainer,
    LayerLockTrainingArguments,
    StageArguments,
    load_recipe,
    load_teacher,
)
from layerlock_hf.training.checkpoints import CheckpointNotWritten
from layerlock_hf.training.processes import run_and_exit
from layerlock_hf.training.run_file import CheckpointRefused, target_label
from layerlock_hf.training.trainer import LossNotFinite


logger = logging.get_logger(__name__)

PREEMPTED = 128 + signal.SIGTERM  # exit status: a checkpoint was written, start again to go on
STAGES, METRICS, BAD_VIDEOS = REPORTS = ("stages.json", "metrics.jsonl", "bad_videos.jsonl")


@dataclass
class DataArguments:
    """Where clips, and the latents to predict, come from, and how the clips are cut."""

    train_data: str = field(metadata={"help": "Folder of videos, CSV/JSONL list, parquet, or a `datasets` Hub id."})
    train_split: str = field(default="train", metadata={"help": "Split of a `datasets` source."})
    video_column: str | None = field(default=None, metadata={"help": "Column that holds the videos."})
    video_root: str | None = field(default=None, metadata={"help": "Folder that all videos must lie in."})
    frame_stride: int = field(default=2, metadata={"help": "Frames from one sampled frame to the next."})
    resize_factor: float | None = field(
        default=None, metadata={"help": "Shortest side before cropping, over image_size (default 1.15)."}
    )
    crop_scale: list[float] | None = field(
        default=None,
        metadata={"help": "Instead: bounds of the area of a crop of random shape, as fractions of the frame: 0.3 1."},
    )
    jitter_strength: float = field(default=0.0, metadata={"help": "Strength of the changes of colour (0: none)."})
    teacher: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of a video model whose latents are predicted (SALT)."}
    )
    max_bad_fraction: float = field(default=0.5, metadata={"help": "Stop when more of the videos are unreadable."})
    decode_timeout: float = field(default=60.0, metadata={"help": "Seconds until a video that hangs is given up."})
    rehearse: bool = field(default=False, metadata={"help": "Run one step of every stage, print its cost, exit."})


@dataclass
class ReadoutArguments:
    """A readout during pretraining: what the features tell of labelled videos."""

    readout_data: str | None = field(default=None, metadata={"help": "Labelled videos, as for train_data."})
    readout_steps: int | None = field(default=None, metadata={"help": "Steps between readouts."})
    readout_split: str | None = field(default=None, metadata={"help": "Split of a `datasets` source (default test)."})
    readout_max_videos: int | None = field(default=None, metadata={"help": "Videos that are used (default 512)."})
    readout_linear: bool | None = field(
        default=None, metadata={"help": "Also fit a linear classifier (default: nearest neighbours alone)."}
    )

    def load(self):
        """The labelled videos and their classes, or None where none are asked for.

        Raises:
            ValueError: naming the field.
        """
        if self.readout_data is None:
            for name, value in vars(self).items():
                if value is not None:
                    raise ValueError(f"{name} is set but readout_data is not: without it there is no readout")
            return None
        if self.readout_steps is None:
            raise ValueError("readout_data is set but readout_steps is not")
        if self.readout_steps < 1:
            raise ValueError(f"readout_steps must be at least 1, got {self.readout_steps}")
        limit = {} if self.readout_max_videos is None else {"max_videos": self.readout_max_videos}
        try:
            return labelled_videos(load_videos(self.readout_data, self.readout_split or "test"), **limit)
        except ValueError as error:
            raise ValueError(f"readout_data: {error}") from error

    def add_to(self, trainer: LayerLockTrainer, videos, labels):
        """Make the trainer read out; the main process decodes the videos, as `PretrainingClips` would."""
        clips = None
        if trainer.args.process_index == 0:
            cut = trainer.train_dataset
            scale = (cut.num_frames, cut.frame_stride, cut.image_size, cut.resize_factor)
            try:
                clips, labels = center_clips(videos, labels, *scale)
            except ValueError as error:
                raise ValueError(f"readout_data: {error}") from error
        linear = bool(self.readout_linear)
        trainer.add_callback(OnlineReadout(trainer, clips, labels, self.readout_steps, linear=linear))


def flag_type(kind):
    """A type the argument parser understands: of a union its first member."""
    return typing.get_args(kind)[0] if isinstance(kind, types.UnionType) else kind


ModelArguments = make_dataclass(
    "ModelArguments",
    [("preset", str, field(default="4ds-b", metadata={"help": "Named size."}))]
    + [
        (name, flag_type(kind) | None, field(default=None, metadata={"help": "See LayerLockViTConfig."}))
        for name, kind in architecture_fields().items()
        if name != "num_frozen_layers"
    ],
)


def parse(arguments: list[str]):
    """The settings of the recipe, overridden by flags; unknown ones of either are refused by name."""
    parser = HfArgumentParser(
        (ModelArguments, StageArguments, DataArguments, MaskArguments, ReadoutArguments, LayerLockTrainingArguments),
        allow_abbrev=False,
        usage="%(prog)s --config RECIPE --train_data VIDEOS --output_dir OUT [--SETTING VALUE ...]",
    )
    parser.add_argument("--config", required=True, help="Recipe (YAML).")
    if is_tensorboard_available():
        parser.set_defaults(report_to=["tensorboard"])
    config = HfArgumentParser(allow_abbrev=False, add_help=False)
    config.add_argument("--config")
    recipe = config.parse_known_args(arguments)[0].config
    flags = []
    if recipe is not None:
        known = {name for kind in parser.dataclass_types for name in kind.__dataclass_fields__}
        for name, value in load_recipe(recipe).items():
            if name not in known:
                raise ValueError(f"{name}: unknown setting in {recipe}")
            if value is None:
                continue  # not set
            values = value if isinstance(value, list) else [value]
            flags += [f"--{name}", *(json.dumps(v) if isinstance(v, dict) else str(v) for v in values)]
    *parsed, unknown = parser.parse_args_into_dataclasses(flags + arguments, return_remaining_strings=True)
    if unknown:
        raise ValueError(f"{unknown[0]}: unknown setting, or more values than the setting before it takes")
    return parsed[:6]


def check_output(folder: Path):
    """Make sure that OUT can be written, and leave what it holds as it is."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        for path in (folder / name for name in REPORTS):
            if path.exists():
                path.open("a").close()
    except OSError as error:
        raise ValueError(f"output_dir: cannot write to {folder}: {error}") from error


def read_lines(path: Path) -> list[dict]:
    """The lines of a file of JSON, but for one that a crash or a full disk cut short."""
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            logger.warning(f"left out a line of {path} that is not whole: {line[:40]}")
    return lines


class Reports(TrainerCallback):
    """Writes `stages.json`, and every log to `metrics.jsonl` with the number of bad videos so far.

    A fresh run empties what an earlier one left in OUT, but not before training begins: until then the user may have
    to be told of an error.
    """

    def __init__(self, folder: Path, stages: list[dict], bad_videos: BadVideos):
        self.folder, self.stages, self.bad_videos = folder, stages, bad_videos

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            (self.folder / STAGES).write_text(json.dumps(self.stages, indent=1) + "\n")
            if state.global_step == 0:
                for name in (METRICS, BAD_VIDEOS):
                    (self.folder / name).write_text("")
            elif (self.folder / METRICS).is_file():
                # What a run logged after the checkpoint that it resumes from is logged again
                kept = [line for line in read_lines(self.folder / METRICS) if line["step"] <= state.global_step]
                aside = self.folder / f"{METRICS}.new"
                aside.write_text("".join(json.dumps(line) + "\n" for line in kept))
                os.replace(aside, self.folder / METRICS)
        # The others read videos from here on: what they report must not be emptied
        PartialState().wait_for_everyone()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            logs["bad_videos"] = self.bad_videos.count()
            with (self.folder / METRICS).open("a") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


def save_processor(config: LayerLockViTConfig, clips: PretrainingClips, folder: str):
    """Save what turns videos into clips of the scale and pace that the model was trained on."""
    size = round(clips.image_size * clips.resize_factor)
    processor = LayerLockVideoProcessor.from_config(config, size=size, frame_stride=clips.frame_stride)
    processor.save_pretrained(folder)


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


def print_table(rows: list[dict]):
    columns = list(rows[0])
    cells = [
        [f"{row[name]:.3f}" if isinstance(row[name], float) else str(row[name]) for name in columns] for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for line in [columns, *cells]:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)), flush=True)


def build(arguments: list[str]):
    """Everything a run needs. All of the user's errors surface here, as `ValueError`."""
    model_args, stage_args, data_args, mask_args, readout_args, training_args = parse(arguments)
    overrides = {name: value for name, value in vars(model_args).items() if value is not None and name != "preset"}
    config = LayerLockViTConfig.from_preset(model_args.preset, **overrides)
    teacher, teacher_depth, teacher_width = (None, None, None)
    if data_args.teacher is not None:
        teacher, teacher_depth, teacher_width = load_teacher(data_args.teacher)
        if config.teacher_hidden_size not in (None, teacher_width):
            raise ValueError(f"teacher_hidden_size={config.teacher_hidden_size}, but the teacher's is {teacher_width}")
        config.teacher_hidden_size = teacher_width
    stages = stage_args.build(config, teacher_depth)
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
    if checkpoint not in (None, "auto") and not Path(checkpoint).is_dir():
        raise ValueError(f"resume_from_checkpoint: there is no checkpoint {checkpoint}")
    if Path(data_args.train_data).is_dir() and output.resolve().is_relative_to(Path(data_args.train_data).resolve()):
        raise ValueError(f"output_dir: {output} lies within train_data, whose files are taken for videos")
    if training_args.process_index == 0:
        check_output(output)
    PartialState().wait_for_everyone()

    try:
        videos = load_videos(data_args.train_data, data_args.train_split, data_args.video_column, data_args.video_root)
    except ValueError as error:
        raise ValueError(f"train_data: {error}") from error
    readout = readout_args.load()
    report = None if data_args.rehearse else str(output / BAD_VIDEOS)
    bad_videos = BadVideos(report, len(videos), data_args.max_bad_fraction)
    clips_per_step = (
        training_args.per_device_train_batch_size
        * training_args.gradient_accumulation_steps
        * training_args.world_size
    )
    clips = PretrainingClips(
        videos,
        num_samples=training_args.max_steps * clips_per_step,
        num_frames=config.num_frames,
        frame_stride=data_args.frame_stride,
        image_size=config.image_size,
        resize_factor=data_args.resize_factor,
        crop_scale=None if data_args.crop_scale is None else tuple(data_args.crop_scale),
        jitter_strength=data_args.jitter_strength,
        seed=training_args.seed,
        bad_videos=bad_videos,
        decode_timeout=data_args.decode_timeout,
    )
    collator = PretrainingCollator(config.grid_size, masks, training_args.seed)
    # The data set is the whole run in order: shuffled once per epoch by itself
    training_args.train_sampling_strategy = "sequential"

    set_seed(training_args.seed)
    model = LayerLockViTForPretraining(config)
    rows = describe_stages(model, stages)
    trainer = LayerLockTrainer(
        model, training_args, stages, clips, collator, [Reports(output, rows, bad_videos)], teacher
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
        print(f"{len(videos)} videos; {clips_per_step} clips a step")
        print_table(rows)
    return trainer, bad_videos, checkpoint, data_args.rehearse


def main(arguments: list[str]):
    try:
        trainer, bad_videos, checkpoint, rehearse = build(arguments)
    except (ValueError, StrictDataclassError) as error:
        raise SystemExit(f"error: {error}") from None
    try:
        if rehearse:
            rows = trainer.rehearse()
        else:
            trainer.train(resume_from_checkpoint=checkpoint)
    except (CheckpointRefused, CheckpointNotWritten) as error:
        raise SystemExit(f"error: {error}") from None
    except (BadData, LossNotFinite) as error:
        # From a data worker, the message comes last in its traceback
        message = str(error).splitlines()[-1].removeprefix(f"{BadData.__module__}.{BadData.__name__}: ")
        raise SystemExit(f"error: {message}") from None
    if trainer.was_preempted:
        raise SystemExit(PREEMPTED)
    if not rehearse:
        trainer.save_model()
        trainer.save_state()
    if trainer.is_world_process_zero():
        if rehearse:
            print_table(rows)
        else:
            save_processor(trainer.model.config, trainer.train_dataset, trainer.args.output_dir)
        if bad_videos.count():
            place = f": see {bad_videos.path}" if bad_videos.path else ""
            print(f"{bad_videos.count()} videos are unreadable, or readable in part or by PyAV alone{place}")


if __name__ == "__main__":
    run_and_exit(lambda: main(sys.argv[1:]))
