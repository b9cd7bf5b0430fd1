"""Pretrain a video ViT by a recipe.

accelerate launch scripts/pretrain.py --config scripts/recipes/demo.yaml --train_data VIDEOS --output_dir OUT

Every setting of a recipe is also a flag, and a flag wins over the recipe: `--max_steps 100 --mask_ratio 0.9`.
`--rehearse true` runs one step of every stage, prints what each costs, and exits. OUT receives the model (loadable
with `AutoModel.from_pretrained`), its video processor, checkpoints, `stages.json`, `metrics.jsonl` and
`bad_videos.jsonl`.
"""

import json
import sys
import types
import typing
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path

from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser, TrainerCallback, set_seed
from transformers.integrations import is_tensorboard_available
from transformers.trainer_utils import get_last_checkpoint

from layerlock_hf import LayerLockVideoProcessor, LayerLockViTConfig, LayerLockViTForPretraining
from layerlock_hf.data import BadVideos, PretrainingClips, PretrainingCollator, decoder_name, load_videos
from layerlock_hf.models.configuration_layerlock import architecture_fields
from layerlock_hf.training import (
    LayerLockTrainer,
    LayerLockTrainingArguments,
    StageArguments,
    load_recipe,
)
from layerlock_hf.training.trainer import label


@dataclass
class DataArguments:
    """Where the clips come from and how they are cut and masked."""

    train_data: str = field(metadata={"help": "Folder of videos, CSV/JSONL list, parquet, or a `datasets` Hub id."})
    train_split: str = field(default="train", metadata={"help": "Split of a `datasets` source."})
    video_column: str | None = field(default=None, metadata={"help": "Column that holds the videos."})
    frame_stride: int = field(default=2, metadata={"help": "Frames from one sampled frame to the next."})
    resize_factor: float = field(default=1.15, metadata={"help": "Shortest side before cropping, over image_size."})
    mask_ratio: float = field(default=0.95, metadata={"help": "Share of the tokens that the encoder does not see."})
    max_bad_fraction: float = field(default=0.5, metadata={"help": "Stop when more of the videos are unreadable."})
    rehearse: bool = field(default=False, metadata={"help": "Run one step of every stage, print its cost, exit."})


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
        (ModelArguments, StageArguments, DataArguments, LayerLockTrainingArguments), allow_abbrev=False
    )
    parser.add_argument("--config", required=True, help="Recipe (YAML).")
    if is_tensorboard_available():
        parser.set_defaults(report_to=["tensorboard"])
    config = HfArgumentParser(allow_abbrev=False)
    config.add_argument("--config")
    recipe = config.parse_known_args(arguments)[0].config
    flags = []
    if recipe is not None:
        known = {name for kind in parser.dataclass_types for name in kind.__dataclass_fields__}
        for name, value in load_recipe(recipe).items():
            if name not in known:
                raise ValueError(f"{name}: unknown setting in {recipe}")
            values = value if isinstance(value, list) else [value]
            flags += [f"--{name}", *(json.dumps(v) if isinstance(v, dict) else str(v) for v in values)]
    return parser.parse_args_into_dataclasses(flags + arguments)[:4]


def prepare_output(folder: Path, is_fresh: bool):
    """Make sure that OUT can be written, and start its reports anew unless the run goes on."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("metrics.jsonl", "bad_videos.jsonl"):
            (folder / name).open("w" if is_fresh else "a").close()
    except OSError as error:
        raise ValueError(f"output_dir: cannot write to {folder}: {error}") from error


class MetricsFile(TrainerCallback):
    """Writes every log to `metrics.jsonl`, with the number of bad videos so far."""

    def __init__(self, path: Path, bad_videos: BadVideos):
        self.path, self.bad_videos = path, bad_videos

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            logs["bad_videos"] = self.bad_videos.count()
            with self.path.open("a") as file:
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
                "target": " + ".join(label(objective) for objective in stage.objectives),
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
    model_args, stage_args, data_args, training_args = parse(arguments)
    overrides = {name: value for name, value in vars(model_args).items() if value is not None and name != "preset"}
    config = LayerLockViTConfig.from_preset(model_args.preset, **overrides)
    stages = stage_args.build(config)

    output = Path(training_args.output_dir)
    checkpoint = training_args.resume_from_checkpoint
    if checkpoint == "auto":
        checkpoint = get_last_checkpoint(output) if output.is_dir() else None
    elif checkpoint is not None and not Path(checkpoint).is_dir():
        raise ValueError(f"resume_from_checkpoint: there is no checkpoint {checkpoint}")
    if training_args.process_index == 0:
        prepare_output(output, is_fresh=checkpoint is None)
    PartialState().wait_for_everyone()

    videos = load_videos(data_args.train_data, data_args.train_split, data_args.video_column)
    bad_videos = BadVideos(str(output / "bad_videos.jsonl"), len(videos), data_args.max_bad_fraction)
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
        seed=training_args.seed,
        bad_videos=bad_videos,
    )
    collator = PretrainingCollator(config.num_tokens, data_args.mask_ratio, training_args.seed)
    # The data set is the whole run in order: shuffled once per epoch by itself
    training_args.train_sampling_strategy = "sequential"

    set_seed(training_args.seed)
    model = LayerLockViTForPretraining(config)
    rows = describe_stages(model, stages)
    trainer = LayerLockTrainer(
        model, training_args, stages, clips, collator, callbacks=[MetricsFile(output / "metrics.jsonl", bad_videos)]
    )
    if training_args.process_index == 0:
        (output / "stages.json").write_text(json.dumps(rows, indent=1) + "\n")
        parts = ", ".join(f"{name} {count / 1e6:.2f}M" for name, count in model.parameter_breakdown().items() if count)
        print(f"{model.num_parameters() / 1e6:.1f}M parameters: {parts}")
        print(f"{len(videos)} videos, decoded by {decoder_name()}; {clips_per_step} clips a step")
        print_table(rows)
    return trainer, bad_videos, checkpoint, data_args.rehearse


def main(arguments: list[str]):
    try:
        trainer, bad_videos, checkpoint, rehearse = build(arguments)
    except (ValueError, StrictDataclassError) as error:
        raise SystemExit(f"error: {error}") from None
    if rehearse:
        rows = trainer.rehearse()
        if trainer.args.process_index == 0:
            print_table(rows)
        return
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    trainer.save_model()
    if trainer.is_world_process_zero():
        save_processor(trainer.model.config, trainer.train_dataset, trainer.args.output_dir)
    trainer.save_state()
    if trainer.is_world_process_zero() and bad_videos.count():
        print(f"{bad_videos.count()} videos could not be read, or only in part: see {bad_videos.path}")


if __name__ == "__main__":
    main(sys.argv[1:])
