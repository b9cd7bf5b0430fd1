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
    """The encoder, and the readouts on it."""

    model: str = field(metadata={"help": "Folder or Hub id of an encoder: ours, or any ViT of Transformers."})
    random_weights: bool = field(
        default=False, metadata={"help": "Use randomly initialised weights for the encoder, as a control."}
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Height and width of clips in pixels (default: the encoder's)."}
    )
    num_frames: int | None = field(default=None, metadata={"help": "Frames per clip (default: the encoder's)."})
    readout: str = field(
        default="attention",
        metadata={"help": "Kind of readout; depth needs attention.", "choices": list(READOUTS)},
    )
    readout_hidden_size: int | None = field(default=None, metadata={"help": "Width of the readouts (only attention)."})
    readout_num_attention_heads: int | None = field(
        default=None, metadata={"help": "Attention heads of the readouts (only attention and attentive_probe_v2)."}
    )

    def __post_init__(self):
        check_bounds(self, dict.fromkeys(("image_size", "num_frames", *SIZED), (1, math.inf)))
        for name, readouts in SIZED.items():
            if getattr(self, name) is not None and self.readout not in readouts:
                raise ValueError(
                    f"{name} has no effect with readout={self.readout}, which takes it from the encoder: leave it out"
                )


@dataclass
class ClipArguments:
    """Which videos to show, and how."""

    task: str = field(metadata={"help": "What the readouts learn.", "choices": list(TASK_CLASSES)})
    data: str = field(metadata={"help": "Where the dataset is; layouts: docs/evaluation_data.md of the repository."})
    output_dir: str = field(metadata={"help": "Folder to write to."})
    dataset: str = field(
        default="table",
        metadata={"help": f"Kind of dataset: {', '.join(LABELLED)} (classification), {', '.join(DEPTH)} (depth)."},
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Name of the dataset in the results (default: the kind of dataset, or the file name of a table)."
        },
    )
    test_data: str | None = field(default=None, metadata={"help": "Where the test data is, if not in data."})
    frame_stride: int = field(
        default=2, metadata={"help": "Distance between the frames of a clip, in frames of the video."}
    )
    frame_rate: float | None = field(
        default=None, metadata={"help": "Frames per second at which frame_stride counts (default: each video's own)."}
    )
    augment: bool = field(
        default=True,
        metadata={"help": "Crop and flip at random; otherwise every video gives one clip, from its middle."},
    )
    resize_factor: float = field(
        default=1.15, metadata={"help": "Shortest side before cropping, as a multiple of image_size."}
    )
    flip_probability: float = field(
        default=0.5, metadata={"help": "Share of the clips that are flipped left to right."}
    )
    jitter_strength: float = field(
        default=0.0, metadata={"help": "Strength of colour jitter (0: none, 1: LayerLock, Table 12)."}
    )
    jitter_probability: float = field(default=0.8, metadata={"help": "Share of the clips with colour jitter."})
    gray_probability: float = field(default=0.0, metadata={"help": "Share of the clips that are turned to grey."})
    ignores_aspect: bool = field(
        default=False, metadata={"help": "Squeeze all frames to squares, so that their shape gives nothing away."}
    )
    is_still: bool = field(
        default=False, metadata={"help": "Show only the middle frame of every clip: a control without motion."}
    )
    num_test_clips: int = field(default=1, metadata={"help": "Clips per test video, whose predictions are averaged."})
    max_test_clips: int | None = field(
        default=None, metadata={"help": "For depth: number of clips to test, evenly spread over the test set."}
    )
    feature_cache: str | None = field(
        default=None,
        metadata={
            "help": "Folder for features in bfloat16, so that each clip is encoded only once (needs --augment false)."
        },
    )
    probes: bool = field(
        default=False,
        metadata={"help": "Also try k-NN and ridge regression on the mean features of clips without augmentation."},
    )
    decode_timeout: float = field(
        default=DECODE_TIMEOUT, metadata={"help": "Seconds before giving up on a video that hangs."}
    )
    max_bad_fraction: float = field(
        default=0.5, metadata={"help": "Stop when a larger fraction of the training videos is unusable."}
    )

    def __post_init__(self):
        known = LABELLED if self.task == "classification" else DEPTH
        if self.dataset not in known:
            raise ValueError(f"dataset must be one of {', '.join(known)} for {self.task}, got {self.dataset}")
        if self.feature_cache is not None and self.augment:
            raise ValueError(
                "feature_cache is set but augment is true, and features of random clips cannot be kept: set augment "
                "to false"
            )
        if self.task == "depth" and self.num_test_clips != 1:
            raise ValueError(
                f"num_test_clips must be 1 for depth, got {self.num_test_clips}: depth is tested clip by clip"
            )
        for name, task in ONE_TASK.items():
            is_set = getattr(self, name) is not None and getattr(self, name) is not False
            if is_set and self.task != task:
                raise ValueError(f"{name} has no effect on {self.task}: leave it out")
        check_bounds(self, CLIP_BOUNDS)
        self.transform(image_size=1)  # which checks its own, before an encoder tells the size

    def check_paths(self):
        """Raise a `ValueError` if the dataset does not exist, before an encoder is loaded."""
        for name in ("data", "test_data"):
            root = getattr(self, name)
            if root is not None and not (is_url(root) or root and parse_root(root)[0].exists()):
                raise ValueError(f"{name}: {root!r} does not exist")

    def transform(self, image_size: int) -> ClipTransform:
        """How clips are cropped and augmented."""
        return ClipTransform(
            image_size,
            self.resize_factor,
            jitter_strength=self.jitter_strength,
            jitter_probability=self.jitter_probability,
            gray_probability=self.gray_probability,
            flip_probability=self.flip_probability,
            ignores_aspect=self.ignores_aspect,
        )


@dataclass
class SharingArguments:
    """Where results go when they are there."""

    push_results: str | None = field(
        default=None,
        metadata={"help": "Model on the Hub (ORG/NAME) whose page is to show the best result; needs the next two."},
    )
    results_dataset: str | None = field(
        default=None,
        metadata={"help": "For push_results: the benchmark, a dataset of the Hub that is one (ORG/NAME)."},
    )
    results_task: str | None = field(
        default=None, metadata={"help": "For push_results: which task of the benchmark, an id in its eval.yaml."}
    )

    def __post_init__(self):
        given = [name for name, value in vars(self).items() if value is not None]
        missing = [name for name in vars(self) if name not in given]
        if given and missing:
            raise ValueError(
                f"{missing[0]} must be set with {given[0]}: the Hub shows a result only with the benchmark and the "
                "task that it belongs to. Without them, results.json alone is written, and `layerlock push` puts it "
                "into the card of the readout"
            )


class ReadoutSettings(NamedTuple):
    """All settings of a sweep of readouts."""

    encoder: EncoderArguments
    clips: ClipArguments
    sweep: SweepArguments
    sharing: SharingArguments


def parse(arguments: list[str]) -> ReadoutSettings:
    """The settings of the recipe, if there is one, overridden by flags.

    Raises:
        ValueError: naming what is unknown or out of its bounds.
    """
    parser = SettingsParser(
        (EncoderArguments, ClipArguments, SweepArguments, SharingArguments),
        allow_abbrev=False,
        usage="%(prog)s --model MODEL --task TASK --data DATA --output_dir OUT [--config RECIPE] [--SETTING VALUE]",
    )
    parser.add_argument("--config", help="Recipe: a name that `layerlock recipes` lists, or a YAML file.")
    parser.set_defaults(num_workers=max(1, count_cores() - 1))
    return ReadoutSettings(*parse_with_recipe(parser, arguments)[:4])
