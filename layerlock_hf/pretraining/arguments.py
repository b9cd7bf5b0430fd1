"""The settings of a pretraining run: their names, defaults and help, and how recipes and flags are read."""

import argparse
import os
import re
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path

from transformers import TrainingArguments
from transformers.integrations import is_tensorboard_available

from ..data import DECODE_TIMEOUT, MaskArguments, load_videos
from ..evaluation import OnlineReadout, center_clips, labelled_videos
from ..models import LayerLockReadoutConfig, LayerLockViTConfig
from ..models.configuration_layerlock import architecture_fields
from ..recipes.settings import SettingsParser, parse_with_recipe
from ..training import LayerLockTrainer, LayerLockTrainingArguments, StageArguments
from ..utils.cores import count_cores
from .health_check import HealthCheck


# By default: each holds two batches that are ready, and decodes in a process of its own
MAX_DATA_WORKERS = 16


@dataclass
class DataArguments:
    """Where the clips and the latents to predict come from, and how the clips are cut."""

    train_data: list[str] = field(
        metadata={"help": "Folder of videos, CSV/JSONL list, parquet file or `datasets` Hub id, or several of these."}
    )
    train_weights: list[float] | None = field(
        default=None,
        metadata={
            "help": "Share of the clips from each source of train_data (default: all videos are shown equally often)."
        },
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read videos over the network as they are needed, instead of downloading the dataset first."
        },
    )
    train_split: str = field(default="train", metadata={"help": "Split of a `datasets` source."})
    video_column: str | None = field(default=None, metadata={"help": "Column with the videos."})
    video_root: str | None = field(default=None, metadata={"help": "Folder that all videos must lie in."})
    frame_stride: int = field(default=2, metadata={"help": "Distance between sampled frames, in frames."})
    frame_rate: float | None = field(
        default=None, metadata={"help": "Frames per second at which frame_stride counts (default: each video's own)."}
    )
    clips_per_video: int = field(
        default=1, metadata={"help": "Clips made from each decoded window: the same frames, augmented independently."}
    )
    resize_factor: float | None = field(
        default=None, metadata={"help": "Shortest side before cropping, as a multiple of image_size (default 1.15)."}
    )
    crop_scale: list[float] | None = field(
        default=None,
        metadata={
            "help": "Instead of resize_factor: bounds of the crop's area, as fractions of the frame, such as 0.3 1."
        },
    )
    jitter_strength: float = field(default=0.0, metadata={"help": "Strength of colour jitter (0: none)."})
    teacher: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of the video model whose latents are predicted (SALT)."}
    )
    max_bad_fraction: float = field(
        default=0.5, metadata={"help": "Stop when a larger fraction of the videos is unreadable."}
    )
    decode_device: str = field(default="cpu", metadata={"help": "cpu, or cuda to decode on the GPU (NVDEC)."})
    augment_on_device: bool = field(
        default=False, metadata={"help": "Resize, flip and recolour clips on the model's device instead of the CPU."}
    )
    decode_timeout: float = field(
        default=DECODE_TIMEOUT, metadata={"help": "Seconds before giving up on a video that hangs."}
    )
    rehearse: bool = field(
        default=False, metadata={"help": "Run one step of every stage, print what each costs, and exit."}
    )


@dataclass
class ReadoutArguments:
    """A readout during pretraining: how well the features classify labelled videos."""

    readout_data: str | None = field(default=None, metadata={"help": "Labelled videos, as for train_data."})
    readout_steps: int | None = field(default=None, metadata={"help": "Steps between readouts."})
    readout_split: str | None = field(default=None, metadata={"help": "Split of a `datasets` source (default test)."})
    readout_max_videos: int | None = field(default=None, metadata={"help": "Number of videos to use (default 512)."})
    readout_linear: bool | None = field(
        default=None, metadata={"help": "Also fit a linear classifier (default: nearest neighbours only)."}
    )

    def load(self):
        """The labelled videos and their classes, or None if no readout was asked for.

        Raises:
            ValueError: naming the field.
        """
        if self.readout_data is None:
            for name, value in vars(self).items():
                if value is not None:
                    raise ValueError(
                        f"{name} is set but readout_data is not: set readout_data too, or leave {name} out"
                    )
            return None
        if self.readout_steps is None:
            raise ValueError(
                "readout_data is set but readout_steps is not: set readout_steps, the steps between readouts"
            )
        if self.readout_steps < 1:
            raise ValueError(f"readout_steps must be at least 1, got {self.readout_steps}")
        limit = {} if self.readout_max_videos is None else {"max_videos": self.readout_max_videos}
        try:
            return labelled_videos(load_videos(self.readout_data, self.readout_split or "test"), **limit)
        except ValueError as error:
            raise ValueError(f"readout_data: {error}") from error

    def add_to(self, trainer: LayerLockTrainer, videos, labels):
        """Add the readout to a trainer; the main process decodes the videos as `PretrainingClips` would."""
        clips = None
        if trainer.args.process_index == 0:
            cut = trainer.train_dataset
            transform = cut.transform
            scale = (cut.num_frames, cut.frame_stride, transform.image_size, transform.central_factor, cut.frame_rate)
            try:
                clips, labels = center_clips(videos, labels, *scale)
            except ValueError as error:
                raise ValueError(f"readout_data: {error}") from error
        linear = bool(self.readout_linear)
        trainer.add_callback(OnlineReadout(trainer, clips, labels, self.readout_steps, linear=linear))


@dataclass
class HealthArguments:
    """A look at the health of the run while it trains."""

    health_steps: int = field(
        default=1000,
        metadata={
            "help": "Steps between looks at the log for a collapse and other trouble, which is told (0: never)."
        },
    )
    health_stop: bool = field(
        default=False, metadata={"help": "Save and stop the run when it collapses or diverges, with exit status 1."}
    )

    def __post_init__(self):
        if self.health_steps < 0:
            raise ValueError(f"health_steps must be at least 0, got {self.health_steps}")
        if self.health_stop and not self.health_steps:
            raise ValueError("health_stop is set but health_steps is 0: set the steps between looks at the log")

    def callbacks(self, folder: Path, stages: list[dict]) -> list[HealthCheck]:
        """What looks, for a run with this OUT and these rows of `stages.json`."""
        return [HealthCheck(folder, stages, self.health_steps, self.health_stop)] if self.health_steps else []


def flag_type(kind):
    """A type the argument parser understands: of a union its first member."""
    return typing.get_args(kind)[0] if isinstance(kind, types.UnionType) else kind


def described(name: str) -> str:
    """What the docstrings of the configurations say about a field."""
    docs = "".join(kind.__doc__ for kind in (LayerLockViTConfig, LayerLockReadoutConfig))
    entries = re.findall(r"^ {8}([a-z_, ]+): (.*(?:\n {12}.*)*)", docs, re.MULTILINE)
    found = {key.strip(): " ".join(text.split()) for keys, text in entries for key in keys.split(",")}
    return found.get(name, "See LayerLockViTConfig.").replace("%", "%%")


ModelArguments = make_dataclass(
    "ModelArguments",
    [("preset", str, field(default="4ds-b", metadata={"help": "Named model size, such as 4ds-b."}))]
    + [
        (name, flag_type(kind) | None, field(default=None, metadata={"help": described(name)}))
        for name, kind in architecture_fields().items()
        if name != "num_frozen_layers"
    ],
)


def default_data_workers() -> int:
    """One data worker per core that this process may use, minus one for the process itself."""
    per_process = count_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, min(per_process - 1, MAX_DATA_WORKERS))


class RunSettings(typing.NamedTuple):
    """All settings of a run."""

    model: ModelArguments
    stages: StageArguments
    data: DataArguments
    masks: MaskArguments
    readout: ReadoutArguments
    health: HealthArguments
    training: LayerLockTrainingArguments
    arguments: list[str]  # that these were parsed from


# How --help groups the settings
GROUPS = {
    ModelArguments: "model",
    StageArguments: "stages",
    DataArguments: "data",
    MaskArguments: "masks",
    ReadoutArguments: "readout during pretraining",
    HealthArguments: "health during pretraining",
    LayerLockTrainingArguments: "training",
}
# Of the settings that come from Transformers those that --help shows, too
COMMON = {
    *("per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "warmup_steps", "adam_beta1"),
    *("bf16", "gradient_checkpointing", "torch_compile", "seed", "use_cpu", "logging_steps", "save_strategy"),
    *("save_steps", "save_total_limit", "dataloader_num_workers", "dataloader_prefetch_factor", "ddp_timeout", "fsdp"),
    *("disable_tqdm", "push_to_hub", "hub_model_id"),
}


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """One spelling of each setting, and defaults where there are any and the text does not tell them."""

    def _format_action_invocation(self, action):
        names = [name for name in action.option_strings if "-" not in name.lstrip("-")]
        return " ".join([", ".join(names or action.option_strings), self._format_args(action, "VALUE")]).strip()

    def _get_help_string(self, action):
        is_told = action.default in (None, argparse.SUPPRESS) or "default" in action.help
        return action.help if is_told else super()._get_help_string(action)


def make_parser() -> SettingsParser:
    """Of all settings of a run."""
    for kind, group in GROUPS.items():
        kind._argument_group_name = group
    parser = SettingsParser(
        tuple(GROUPS),
        allow_abbrev=False,
        usage="%(prog)s --config RECIPE --train_data VIDEOS --output_dir OUT [--SETTING VALUE ...]",
        formatter_class=Help,
    )
    parser.add_argument(
        "--config", required=True, help="Recipe: a name that `layerlock recipes` lists, or a YAML file."
    )
    parser.add_argument("--help_all", action="help", help="Also show the rarely needed settings of Transformers.")
    if is_tensorboard_available():
        parser.set_defaults(report_to=["tensorboard"])
    parser.set_defaults(dataloader_num_workers=default_data_workers())
    return parser


def _hide_all_but_ours(parser: SettingsParser):
    """Leave the rarely needed settings of Transformers to --help_all."""
    ours = {*LayerLockTrainingArguments.__annotations__, *COMMON}
    theirs = TrainingArguments.__dataclass_fields__.keys() - ours
    for action in parser._actions:
        if action.dest in theirs:
            action.help = argparse.SUPPRESS


def parse(arguments: list[str], also: Iterable[str] = ()) -> RunSettings:
    """The settings of the recipe, overridden by flags. Unknown settings of either are refused by name.

    Args:
        also: further settings of the program, to suggest when one is misspelt.

    Raises:
        ValueError: naming the setting.
    """
    parser = make_parser()
    if "--help_all" not in arguments:
        _hide_all_but_ours(parser)
    return RunSettings(*parse_with_recipe(parser, arguments, also)[:7], arguments=list(arguments))
