"""Which layers have settled: the weights' norms no longer grow, and what the layer represents no longer moves.

The paper starts to freeze "when the norms of the first few layers seem to plateau (or start getting smaller ...)"
(LayerLock, sec. 3.4). Norms alone mislead: they can lie flat while content enters that the loss hardly sees. So the
representation is compared with itself an interval ago, too, by CKA. Both changes are projected to the end of the run:
how far a layer gets is about proportional to the sum of the learning rates.

n rows (tokens of clips), L layers, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor

from ..models.modeling_layerlock_pretraining import LayerLockViTForPretraining
from ..utils.similarity import alignment, similarities


NUM_CLIPS = 32
NUM_ROWS = 512
# Projected changes below which a layer counts as settled. Of a plain MAE under future masks, which learns motion late,
# the first layer came below this drift at 75% of the run; where nothing enters late, at 45% (docs/when_to_freeze.md)
MAX_DRIFT = 0.02
MAX_GROWTH = 0.05
NUM_INTERVALS = 2  # in which it must hold, so that a lull is not taken for the end


@dataclass(frozen=True)
class Observation:
    """An encoder at one step.

    Attributes:
        norms: of the weights of every layer, (L,).
        alignments: of what every layer represents, see `alignment`: (L, n, n).
    """

    norms: torch.Tensor
    alignments: torch.Tensor

    @classmethod
    def of(cls, norms: torch.Tensor, rows: Sequence[torch.Tensor]) -> "Observation":
        """From the `token_rows` of every layer, (clips, positions, D) each.

        The mean over the clips is subtracted at every position, so that only content remains.
        """
        contents = (values.float() - values.float().mean(dim=0, keepdim=True) for values in rows)
        # Biased: an estimate's noise between clips does not matter where the clips are the same
        alignments = [alignment(values.flatten(0, 1), is_biased=True) for values in contents]
        return cls(norms.float().cpu(), torch.stack(alignments).cpu())


@dataclass(frozen=True)
class Movement:
    """How a layer will have changed by the end of the run, at the pace of an interval.

    Attributes:
        drift: 1 - CKA of what it represents.
        growth: of the norm of its weights, as a share; negative where they shrink.
    """

    drift: float
    growth: float


def movements(before: Observation, after: Observation, factor: float) -> list[Movement]:
    """Of every layer between two observations.

    Args:
        factor: sum of the learning rates from the second observation to the end, over that between the two.
    """
    pairs = zip(before.alignments, after.alignments, strict=True)
    drifts = [1 - similarities([one], [other]).item() for one, other in pairs]
    growths = (after.norms / before.norms - 1).tolist()
    return [Movement(max(0.0, drift) * factor, growth * factor) for drift, growth in zip(drifts, growths, strict=True)]


@dataclass(frozen=True)
class SettlingRule:
    """When a layer has settled: by both measures, in the last `NUM_INTERVALS` intervals.

    Args:
        max_drift: 1 - CKA between now and the end of the run, as projected.
        max_growth: of the weights' norm until then, as a share.

    Raises:
        ValueError: if one is not positive.
    """

    max_drift: float = MAX_DRIFT
    max_growth: float = MAX_GROWTH

    def __post_init__(self):
        for name in ("max_drift", "max_growth"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}: no layer would ever settle")

    def reason_to_wait(self, layer: int, history: Sequence[Movement]) -> str | None:
        """Why a layer has not settled, in words; None if it has.

        Args:
            layer: its number, for the words.
            history: its movements in the intervals up to now.
        """
        if len(history) < NUM_INTERVALS:
            return f"layer {layer} was observed over {len(history)} of {NUM_INTERVALS} intervals"
        drift = max(movement.drift for movement in history[-NUM_INTERVALS:])
        growth = max(movement.growth for movement in history[-NUM_INTERVALS:])
        if drift > self.max_drift:
            return (
                f"what layer {layer} represents still moves: at this pace it ends {drift:.2g} away (1 - CKA, limit "
                f"{self.max_drift:g})"
            )
        if growth > self.max_growth:
            return (
                f"the weights of layer {layer} still grow: at this pace by {growth:.1%} until the end (limit "
                f"{self.max_growth:.1%})"
            )
        return None

    def settled_at(self, layer: int, history: Sequence[Movement]) -> int | None:
        """The index of the first of these movements by which the layer has settled, None if none."""
        for index in range(len(history)):
            if self.reason_to_wait(layer, history[: index + 1]) is None:
                return index
        return None


def weight_norms(layers: nn.ModuleList) -> torch.Tensor:
    """Norm of the matrices of every layer, which may be sharded: (L,). All processes must call it."""
    squares = []
    for layer in layers:
        parts = [parameter.float().square().sum() for parameter in layer.parameters() if parameter.ndim == 2]
        squares.append(sum(part.full_tensor() if isinstance(part, DTensor) else part for part in parts))
    return torch.stack(squares).sqrt()


def token_rows(tokens: torch.Tensor, num_clips: int) -> torch.Tensor:
    """Tokens at some positions, evenly spread over the grid, so that all clips together give about `NUM_ROWS`:
    (clips of a batch, N, D) -> (clips of a batch, positions, D)."""
    num_positions = min(tokens.shape[1], -(-NUM_ROWS // num_clips))
    positions = torch.linspace(0, tokens.shape[1] - 1, num_positions).round().long()
    return tokens[:, positions.to(tokens.device)].float()


@torch.no_grad()
def observe(
    model: LayerLockViTForPretraining,
    clips: torch.Tensor,
    accelerator: Accelerator,
    batch_size: int,
    prepare: Callable[[torch.Tensor], torch.Tensor],
) -> Observation:
    """All layers as they are now. The processes share the clips and get the same; all must call it.

    Args:
        model: which may be sharded.
        clips: the same on all processes, (n, T, C, H, W).
        batch_size: clips that a process encodes at once.
        prepare: brings some of the clips to the device, as floats.
    """
    depths, num_processes = range(1, model.config.num_hidden_layers + 1), accelerator.num_processes
    # As many for each process: sharded layers are gathered by all together
    end = -(-len(clips) // num_processes) * num_processes
    own = torch.arange(accelerator.process_index, end, num_processes) % len(clips)
    parts = []
    for numbers in own.split(batch_size):
        with accelerator.autocast():
            taps = model.tap(prepare(clips[numbers]), list(depths))
        parts.append([token_rows(tokens, len(clips)) for tokens in taps])
    rows = []
    for values in zip(*parts, strict=True):
        gathered = accelerator.gather(torch.cat(values)).unflatten(0, (num_processes, len(own)))
        rows.append(gathered.transpose(0, 1).flatten(0, 1)[: len(clips)])
    return Observation.of(weight_norms(model.encoder.layers), rows)
