"""The settings of a sweep of readouts, from recipes and flags."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from ..data import DECODE_TIMEOUT, ClipTransform
from ..data.files import is_url
from ..evaluation import SweepArguments
from ..recipes.settings import SettingsParser, parse_with_recipe
from ..utils.bounds import check_bounds
from ..utils.cores import count_cores
from .adapters import DEPTH, LABELLED
from .adapters.roots import parse_root
from .readouts import READOUTS
from .tasks import TASK_CLASSES


# Readouts with a size of their own
SIZED = {
    "readout_hidden_size": ("attention",),
    "readout_num_attention_heads": ("attention", "attentive_probe_v2"),
}
# Settings of one task
ONE_TASK = {
    "max_test_clips": "depth",
    "is_still": "classification",
    "frame_rate": "classification",
    "probes": "classification",
}

CLIP_BOUNDS = {
    **dict.fromkeys(("frame_stride", "num_test_clips", "max_test_clips"), (1, math.inf)),
    "max_bad_fraction": (0, 1),
    "frame_rate": (0.001, 1000),
    "decode_timeout": (0, 1e6),
}


@dataclass
class EncoderArguments:
    """What is read."""

    model: str = field(metadata={"help": "Folder or Hub id of an encoder: ours, or any ViT of Transformers."})
    random_weights: bool = field(default=False, metadata={"help": "Draw the encoder's weights at random: a control."})
    image_size: int | None = field(
        default=None,
        metadata={"help": "Height and width of clips, in pixels; by default what the encoder is made for."},
    )
    num_frames: int | None = field(
        default=None, metadata={"help": "Frames of a clip; by default what the encoder is made for."}
    )
    readout: str = field(
        default="attention",
        metadata={"help": "What is trained on the features; depth needs attention.", "choices": list(READOUTS)},
    )
    readout_hidden_size: int | None = field(default=None, metadata={"help": "Width of the readouts (attention)."})
    readout_num_attention_heads: int | None = field(
        default=None, metadata={"help": "Attention heads of the readouts (attention, attentive_probe_v2)."}
    )

    def __post_init__(self):
        check_bounds(self, dict.fromkeys(("image_size", "num_frames", *SIZED), (1, math.inf)))
        for name, readouts in SIZED.items():
            if getattr(self, name) is not None and self.readout not in readouts:
                raise ValueError(f"{name} is not for readout={self.readout}, which takes it from the encoder")


@dataclass
class ClipArguments:
    """Which videos are shown, and how."""

    task: str = field(metadata={"help": "What to learn.", "choices": list(TASK_CLASSES)})
    data: str = field(
        metadata={"help": "Where the data set lies; layouts: docs/evaluation_data.md of the repository."}
    )
    output_dir: str = field(metadata={"help": "Folder for the results."})
    dataset: str = field(
        default="table",
        metadata={
            "help": f"What the data set is: {', '.join(LABELLED)} (classification), {', '.join(DEPTH)} (depth)."
        },
    )
    dataset_name: str | None = field(
        default=None,
        metadata={"help": "What results call the data set; by default the dataset, or the file of a table."},
    )
    test_data: str | None = field(default=None, metadata={"help": "As data, if the test videos lie elsewhere."})
    frame_stride: int = field(default=2, metadata={"help": "Frames from one frame of a clip to the next."})
    frame_rate: float | None = field(
        default=None, metadata={"help": "Frames per second that frame_stride counts; by default those of each video."}
    )
    augment: bool = field(
        default=True, metadata={"help": "Crop and flip at random; otherwise every video has one clip, in its middle."}
    )
    resize_factor: float = field(
        default=1.15, metadata={"help": "The shortest side is resized to this, times image_size, before the crop."}
    )
    flip_probability: float = field(default=0.5, metadata={"help": "Share of the clips that are mirrored."})
    jitter_strength: float = field(default=0.0, metadata={"help": "Strength of the colour jitter; 1: Table 12."})
    jitter_probability: float = field(default=0.8, metadata={"help": "Share of the clips whose colours are jittered."})
    gray_probability: float = field(default=0.0, metadata={"help": "Share of the clips that lose their colours."})
    ignores_aspect: bool = field(
        default=False, metadata={"help": "Squeeze all frames to squares, so that their shape gives nothing away."}
    )
    is_still: bool = field(
        default=False, metadata={"help": "Show only the middle frame of every clip: a control without motion."}
    )
    num_test_clips: int = field(default=1, metadata={"help": "Clips of a test video whose answers are averaged."})
    max_test_clips: int | None = field(default=None, metadata={"help": "Depth: clips that are tested, evenly spread."})
    feature_cache: str | None = field(
        default=None,
        metadata={"help": "Folder to keep features in, bfloat16, so that each clip is encoded once (no augment)."},
    )
    probes: bool = field(
        default=False,
        metadata={"help": "Also try k-NN and ridge regression on mean features of clips without augmentation."},
    )
    decode_timeout: float = field(
        default=DECODE_TIMEOUT, metadata={"help": "Seconds after which a video that hangs is given up on."}
    )
    max_bad_fraction: float = field(
        default=0.5, metadata={"help": "Fraction of unusable training videos above which the run stops."}
    )

    def __post_init__(self):
        known = LABELLED if self.task == "classification" else DEPTH
        if self.dataset not in known:
            raise ValueError(f"dataset must be one of {', '.join(known)} for {self.task}, got {self.dataset}")
        if self.feature_cache is not None and self.augment:
            raise ValueError("feature_cache keeps one clip of every video: it needs --augment false")
        if self.task == "depth" and self.num_test_clips != 1:
            raise ValueError("num_test_clips: depth is tested clip by clip; leave it at 1")
        for name, task in ONE_TASK.items():
            is_set = getattr(self, name) is not None and getattr(self, name) is not False
            if is_set and self.task != task:
                raise ValueError(f"{name} is not for {self.task}")
        check_bounds(self, CLIP_BOUNDS)
        self.transform(image_size=1)  # which checks its own, before an encoder tells the size

    def check_paths(self):
        """Raise a `ValueError` if there is nothing where the data set shall lie: before an encoder is loaded."""
        for name in ("data", "test_data"):
            root = getattr(self, name)
            if root is not None and not (is_url(root) or root and parse_root(root)[0].exists()):
                raise ValueError(f"{name}: there is no {root!r}")

    def transform(self, image_size: int) -> ClipTransform:
        """How clips are cropped and changed."""
        return ClipTransform(
            image_size,
            self.resize_factor,
            jitter_strength=self.jitter_strength,
            jitter_probability=self.jitter_probability,
            gray_probability=self.gray_probability,
            flip_probability=self.flip_probability,
            ignores_aspect=self.ignores_aspect,
        )


class ReadoutSettings(NamedTuple):
    """All settings of a sweep of readouts."""

    encoder: EncoderArguments
    clips: ClipArguments
    sweep: SweepArguments


def parse(arguments: list[str]) -> ReadoutSettings:
    """The settings of the recipe, if there is one, overridden by flags.

    Raises:
        ValueError: naming what is unknown or out of its bounds.
    """
    parser = SettingsParser(
        (EncoderArguments, ClipArguments, SweepArguments),
        allow_abbrev=False,
        usage="%(prog)s --model MODEL --task TASK --data DATA --output_dir OUT [--config RECIPE] [--SETTING VALUE]",
    )
    parser.add_argument("--config", help="Recipe: a name that `layerlock recipes` lists, or a YAML file.")
    parser.set_defaults(num_workers=max(1, count_cores() - 1))
    return ReadoutSettings(*parse_with_recipe(parser, arguments)[:3])
