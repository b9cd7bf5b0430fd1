"""Which layers have settled: the weights' norms no longer grow, and what the layer represents no longer moves.

The paper starts to freeze "when the norms of the first few layers seems to plateau (or start getting smaller ...)"
(LayerLock, sec. 3.4). Norms alone mislead: they can lie flat while content enters that the loss hardly sees. So the
representation is compared with itself an interval ago, too, by CKA. Both changes are projected to the end of the run:
how far a layer gets is about proportional to the sum of the learning rates.

B clips, N tokens of the grid (t, h, w), P positions in it, n rows = clips times positions, L layers, D width.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from ..models.modeling_layerlock_pretraining import LayerLockViTForPretraining
from ..utils.similarity import alignment, similarities
from .diagnostics import weight_norms


NUM_CLIPS = 32
NUM_ROWS = 256
# Projected changes below which a layer counts as settled. Of a plain MAE under future masks, which learns motion late,
# the first layer settled at 90% of the run; under random masks, at 60 to 80% (docs/when_to_freeze.md)
MAX_DRIFT = 0.02
MAX_GROWTH = 0.05
MIN_CONTENT = 1e-5  # share of the norm of tokens below which what differs between clips is rounding
NUM_INTERVALS = 2  # in which it must hold, so that a lull is not taken for the end


@dataclass(frozen=True)
class Observation:
    """An encoder at one step.

    Attributes:
        norms: of the weights of every layer, (L,).
        tokens: alignments (see `alignment`) of every layer's tokens, (L, n, n).
        changes: of the changes of its tokens from one time step to the next, where motion shows, (L, n, n).
    """

    norms: torch.Tensor
    tokens: torch.Tensor
    changes: torch.Tensor

    @classmethod
    def of(cls, norms: torch.Tensor, views: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> "Observation":
        """From the `views` of every layer."""
        tokens, changes = (torch.stack([_align(values) for values in kind]) for kind in zip(*views, strict=True))
        return cls(norms.float().cpu(), tokens.cpu(), changes.cpu())


def _align(values: torch.Tensor) -> torch.Tensor:
    """(B, P, D) -> (n, n), of what differs between clips: the mean over them is subtracted at every position."""
    values = values.float()
    content = values - values.mean(dim=0, keepdim=True)
    if content.norm() < MIN_CONTENT * values.norm():  # rounding: clips that do not differ have nothing to compare
        return torch.full((content[..., 0].numel(),) * 2, torch.nan)
    # Biased: both sides of a comparison are of the same clips
    return alignment(content.flatten(0, 1), is_biased=True)


@dataclass(frozen=True)
class Movement:
    """How a layer will have changed by the end of the run, at the pace of an interval.

    Attributes:
        drift: 1 - CKA of its tokens, or of their changes over time, whichever is more.
        growth: of the norm of its weights, as a share; negative where they shrink.
    """

    drift: float
    growth: float


def remaining_pace(rates: Sequence[float], before: int, after: int) -> float:
    """The sum of the learning rates from step `after` to the end, over that from step `before` to it: what a change
    between the two is multiplied by, to project it to the end.

    Args:
        rates: of all steps of the run; their scale does not count.
    """
    return sum(rates[after:]) / sum(rates[before:after])


def movements(before: Observation, after: Observation, factor: float) -> list[Movement]:
    """Of every layer between two observations.

    Args:
        factor: of `remaining_pace`.
    """
    drifts = [
        1 - min(similarities([one], [other]).item() for one, other in zip(before_layer, after_layer, strict=True))
        for before_layer, after_layer in zip(_pairs(before), _pairs(after), strict=True)
    ]
    growths = (after.norms / before.norms - 1).tolist()
    return [Movement(drift * factor, growth * factor) for drift, growth in zip(drifts, growths, strict=True)]


def _pairs(observation: Observation) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    return zip(observation.tokens, observation.changes, strict=True)


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
                setting = name.replace("max", "settled")
                raise ValueError(f"{setting} must be above 0, got {getattr(self, name):g}: nothing would ever settle")

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
        if not drift <= self.max_drift:  # nor NaN, of tokens that are all the same
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


def views(tokens: torch.Tensor, grid_size: tuple[int, int, int], num_clips: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, and their changes over time, at positions evenly spread over the grid, so that all clips together give
    about `NUM_ROWS` of each: (B, N, D) -> 2 x (B, P, D).

    Args:
        grid_size: of the tokens; with one time step, the tokens stand for the changes, too.
        num_clips: of all batches.
    """
    changes = tokens.unflatten(1, grid_size).diff(dim=1).flatten(1, 3) if grid_size[0] > 1 else tokens
    return tuple(_spread(values, -(-NUM_ROWS // num_clips)) for values in (tokens, changes))


def _spread(values: torch.Tensor, num_positions: int) -> torch.Tensor:
    positions = torch.linspace(0, values.shape[1] - 1, min(values.shape[1], num_positions)).round().long()
    return values[:, positions.to(values.device)].float()


@torch.no_grad()
def view_layers(
    tap: Callable, encoder: PreTrainedModel, batches: Iterable[torch.Tensor], num_clips: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The `views` of every layer.

    Args:
        tap: of the encoder, or of the model around it.
        encoder: whose layers they are.
        batches: clips (B, T, C, H, W), as floats on its device.
        num_clips: of all batches, and of other processes.
    """
    depths = list(range(1, encoder.config.num_hidden_layers + 1))
    parts = []
    for video in batches:
        grid_size = encoder.grid_size(video)
        parts.append([views(tokens, grid_size, num_clips) for tokens in tap(video, depths)])
    return [tuple(map(torch.cat, zip(*pieces, strict=True))) for pieces in zip(*parts, strict=True)]


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
    num_processes = accelerator.num_processes
    # As many for each process: sharded layers are gathered by all together
    end = -(-len(clips) // num_processes) * num_processes
    own = torch.arange(accelerator.process_index, end, num_processes) % len(clips)
    batches = (prepare(clips[numbers]) for numbers in own.split(batch_size))
    with accelerator.autocast():
        layers = view_layers(model.tap, model.encoder, batches, len(clips))

    def gathered(values: torch.Tensor) -> torch.Tensor:
        values = accelerator.gather(values).unflatten(0, (num_processes, len(own)))
        return values.transpose(0, 1).flatten(0, 1)[: len(clips)]

    layers = [tuple(map(gathered, kinds)) for kinds in layers]
    return Observation.of(weight_norms(model.encoder.layers), layers)
