"""The settings of `layerlock embed`."""

from dataclasses import dataclass, field

from ..data import DECODE_TIMEOUT
from ..utils.bounds import check_bounds
from .encoding import POOLS
from .shards import FORMATS


@dataclass(frozen=True)
class EmbedArguments:
    """What is read of videos. The help texts say what each setting does."""

    window: str = field(
        default="2s", metadata={"help": "Length of a window, in seconds (2s, 0.5s) or in frames of the file (16f)."}
    )
    stride: str | None = field(
        default=None,
        metadata={"help": "From the beginning of one window to that of the next, likewise (default: the window)."},
    )
    frame_rate: float | None = field(
        default=None,
        metadata={
            "help": "Frames per second that frames of window and stride count, whatever the rate of the video; and "
            "the rate of folders of pictures."
        },
    )
    pool: str = field(
        default="window",
        metadata={
            "help": "What becomes of the tokens of a window: their mean, the mean of each time step (frame), or all "
            "of them (grid).",
            "choices": list(POOLS),
        },
    )
    depths: list[str] | None = field(
        default=None,
        metadata={
            "help": "Where the encoder is read: layers passed, such as 12, or fractions as readouts count them, such "
            "as 0.95, which is 44 of 48 (1.0 is the last layer but one; default: after the last layer)."
        },
    )
    num_frames: int | None = field(
        default=None, metadata={"help": "Frames of a window that the encoder sees (default: what it was made for)."}
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Side of the frames that it sees, in pixels (default: what it was made for)."}
    )
    bf16: bool = field(default=False, metadata={"help": "Compute in bfloat16."})
    batch_size: int = field(default=8, metadata={"help": "Windows per pass through the encoder."})
    videos_at_once: int = field(
        default=8, metadata={"help": "Videos that are read by turns, to fill batches: at least --num_workers."}
    )
    windows_per_shard: int = field(
        default=1024,
        metadata={
            "help": "Windows after which a file is finished, and kept if the program is killed; fewer where they "
            "would take more than 256 MiB."
        },
    )
    format: str = field(
        default="parquet",
        metadata={"help": "Of the files: parquet, which datasets reads, or safetensors.", "choices": list(FORMATS)},
    )
    decode_timeout: float = field(
        default=DECODE_TIMEOUT, metadata={"help": "Seconds before giving up on a video that hangs."}
    )

    def __post_init__(self):
        most = float("inf")
        for name in ("num_frames", "image_size", "batch_size", "videos_at_once", "windows_per_shard"):
            check_bounds(self, {name: (1, most)})
        check_bounds(self, {"decode_timeout": (0.1, 1e6), "frame_rate": (1e-3, 1000)})
        for name, choices in (("pool", POOLS), ("format", FORMATS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
