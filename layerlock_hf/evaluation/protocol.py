"""The protocol of a sweep of readouts: which ones, on how many clips, at what learning rates."""

import math
from dataclasses import dataclass, field

from ..models import readout_depth_from_fraction
from ..utils.bounds import MAX_SEED, check_bounds


BOUNDS = {
    **dict.fromkeys(("num_examples", "batch_size", "micro_batch_size", "max_parallel_readouts"), (1, math.inf)),
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps"), (1, math.inf)),
    **dict.fromkeys(("learning_rates", "final_learning_rate", "weight_decay", "num_workers"), (0, math.inf)),
    "depth_fractions": (0, 1),
    "seed": (0, MAX_SEED),
}


@dataclass
class SweepArguments:
    """The protocol of LayerLock, sec. A.4. Batch sizes count the clips of all processes together."""

    learning_rates: list[float] = field(
        default_factory=lambda: [1e-4, 3e-4, 1e-3], metadata={"help": "Peak learning rates to try."}
    )
    depth_fractions: list[float] = field(
        default_factory=lambda: [0.25, 0.5, 0.75, 0.85, 0.95, 1.0],
        metadata={"help": "Depths to try, as fractions of the layers, counted as in the 4DS code."},
    )
    num_examples: int = field(
        default=1_280_000, metadata={"help": "Number of clips that every readout is trained on."}
    )
    batch_size: int = field(default=32, metadata={"help": "Clips per optimizer step, across all processes."})
    micro_batch_size: int | None = field(
        default=None, metadata={"help": "Clips that a process encodes at once (default: its share of a batch)."}
    )
    warmup_steps: int = field(default=1000, metadata={"help": "Steps of linear warm-up."})
    final_learning_rate: float = field(
        default=1e-7, metadata={"help": "Learning rate at which the cosine schedule ends."}
    )
    weight_decay: float = field(
        default=1e-4,
        metadata={
            "help": "Weight decay of AdamW, on all parameters. The paper does not state it; this is optax's default."
        },
    )
    max_parallel_readouts: int | None = field(
        default=None,
        metadata={
            "help": "Readouts trained at once, to limit memory; the others follow in further passes (default: all)."
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of the readouts' weights and of the clips."})
    bf16: bool = field(default=False, metadata={"help": "Compute in bfloat16; weights stay float32."})
    logging_steps: int = field(default=50, metadata={"help": "Steps between lines of metrics.jsonl."})
    eval_steps: int | None = field(
        default=None, metadata={"help": "Steps between evaluations (default: only one, at the end)."}
    )
    save_steps: int = field(default=1000, metadata={"help": "Steps between checkpoints, from which a run can resume."})
    num_workers: int = field(default=0, metadata={"help": "Data workers per process."})

    def __post_init__(self):
        check_bounds(self, BOUNDS)
        for name in ("learning_rates", "depth_fractions"):
            values = getattr(self, name)
            if not values or min(values) <= 0 or len({f"{value:g}" for value in values}) < len(values):
                raise ValueError(f"{name} must be numbers above 0, each given once, got {values}")
        if self.final_learning_rate > min(self.learning_rates):
            raise ValueError(
                f"final_learning_rate must be at most the lowest of learning_rates={self.learning_rates}, got "
                f"{self.final_learning_rate}"
            )
        if self.num_examples % self.batch_size:
            raise ValueError(
                f"num_examples must be a multiple of batch_size={self.batch_size}, got {self.num_examples}"
            )
        if not 0 <= self.warmup_steps < self.num_steps:
            raise ValueError(
                f"warmup_steps must be at least 0 and less than the {self.num_steps} steps (num_examples / "
                f"batch_size), got {self.warmup_steps}"
            )

    @property
    def num_steps(self) -> int:
        return self.num_examples // self.batch_size

    def clips_at_once(self, num_processes: int) -> int:
        """How many clips each of so many processes encodes at a time."""
        return self.micro_batch_size or max(1, self.batch_size // num_processes)

    def learning_rate_at(self, step: int, highest: float) -> float:
        """Of step `step`, counted from 0."""
        if step < self.warmup_steps:
            return highest * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps)
        return self.final_learning_rate + (highest - self.final_learning_rate) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class SweepPoint:
    """A readout of the sweep: where it reads, and how fast it learns."""

    depth: int
    depth_fraction: float
    learning_rate: float

    @property
    def name(self) -> str:
        return f"depth-{self.depth:02d}_lr-{self.learning_rate:g}"


def sweep_points(args: SweepArguments, num_layers: int) -> list[SweepPoint]:
    """All pairs of depth and learning rate. In shallow encoders fractions share a depth, which is then read once.

    Raises:
        ValueError: if there is no such depth.
    """
    fractions = {readout_depth_from_fraction(num_layers, fraction): fraction for fraction in args.depth_fractions}
    return [SweepPoint(depth, fractions[depth], rate) for depth in sorted(fractions) for rate in args.learning_rates]
