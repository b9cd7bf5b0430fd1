"""What a GPU must hold in every stage of a run: counted without one, and without allocating anything.

The counts are those of `training.memory_plan`. Not counted: what operations need while they run (targets included),
fragments, CUDA and NCCL; `USABLE` leaves a share of the card to them. GB are 10^9 bytes.
"""

from dataclasses import dataclass, replace

import torch

from ..models.configuration_layerlock import LayerLockViTConfig
from ..models.modeling_layerlock import LayerLockViTModel
from ..models.objectives import Stage
from ..training.memory_plan import FULL, activation_bytes, empty_model, gathered_bytes, state_bytes
from .runs import Machine, PlannedRun, Sizes


USABLE = 0.85
GIGA = 1e9


@dataclass(frozen=True)
class StageMemory:
    """Bytes that one GPU holds in a stage.

    Args:
        fixed: by what they are for, whatever the batch.
        per_clip: for every clip of the batch.
    """

    fixed: dict[str, int]
    per_clip: dict[str, int]

    def parts(self, num_clips: int) -> dict[str, int]:
        """All of them by what they are for, with this many clips at a time."""
        return self.fixed | {name: num_clips * size for name, size in self.per_clip.items()}

    def most_clips(self, gigabytes: float) -> int:
        """The largest power of two of clips that fits into a card, 0 if none does."""
        return most_clips(gigabytes, sum(self.fixed.values()), sum(self.per_clip.values()))


def most_clips(gigabytes: float, fixed: int, per_clip: int) -> int:
    """The largest power of two of clips per GPU that fits, 0 if none does."""
    num_clips = max(0, int((USABLE * gigabytes * GIGA - fixed) / per_clip))
    return 1 << num_clips.bit_length() >> 1


def memory_of_stages(run: PlannedRun, machine: Machine) -> list[StageMemory]:
    """What each GPU of the machine holds, stage by stage."""
    config, model = run.config, empty_model(run.config)
    num_values = config.num_frames * config.num_channels * config.image_size**2
    found = []
    for stage, (per_clip, per_step) in zip(run.stages, activations_of_stages(run), strict=True):
        model.freeze_for(stage)
        fixed = state_bytes(model, machine.num_gpus if machine.fsdp2 else 1)
        if run.frozen_dtype:
            fixed["frozen"] //= 2
        if machine.fsdp2:
            fixed["gathered"] = gathered_bytes(model, run.bf16)
        else:
            fixed["bf16 copies"] = per_step
            fixed["DDP's buckets"] = fixed["gradients"] if machine.num_gpus > 1 else 0
        if any(stage.needs_teacher for stage in run.stages):
            fixed["teacher"] = _teacher_bytes(run, machine)
        # As bytes and as floats
        found.append(StageMemory(fixed, {"clips": (1 + FULL) * num_values, "activations": per_clip}))
    return found


def _teacher_bytes(run: PlannedRun, machine: Machine) -> int:
    """A given teacher is held whole; one that moves with the encoder lies as the encoder does."""
    with torch.device("meta"):
        network = LayerLockViTModel(run.teacher or run.config).requires_grad_(False)
    is_shared = machine.fsdp2 and run.teacher is None
    return state_bytes(network, machine.num_gpus if is_shared else 1)["frozen"]


def activations_of_stages(run: PlannedRun) -> list[tuple[int, int]]:
    """Bytes that autograd keeps, per clip and per step, stage by stage.

    A count takes a second or two. Between two stages that differ only in how many like layers are frozen, what is kept
    is linear in that number: only the first and the last of them are counted.
    """
    kinds: dict[tuple, list[Stage]] = {}
    for stage in run.stages:
        kinds.setdefault(_kind(run.config, stage), []).append(stage)
    found = {}
    for alike in kinds.values():
        counts = {stage.num_frozen: _activations(run, stage) for stage in {alike[0], alike[-1]}}
        (least, start), (most, end) = min(counts.items()), max(counts.items())
        for stage in alike:
            share = (stage.num_frozen - least) / (most - least) if most > least else 0
            found[stage] = tuple(round(a + share * (b - a)) for a, b in zip(start, end, strict=True))
    return [found[stage] for stage in run.stages]


def _kind(config: LayerLockViTConfig, stage: Stage) -> tuple:
    """What stages have in common whose activations lie on one line."""
    # The last of them differs: a decoder follows, or the final norm belongs to it
    num_alike = stage.read_depths[-1] - 1 - (config.num_decoder_layers if config.decoder == "trunk" else 0)
    place = min(stage.num_frozen, 1) if stage.num_frozen <= num_alike else stage.num_frozen
    # A target's depth changes nothing: it keeps no activations
    objectives = tuple((one.read_at, one.target.head, one.target.loss, one.patch_fraction) for one in stage.objectives)
    return place, objectives, stage.local, stage.overlap


def _activations(run: PlannedRun, stage: Stage) -> tuple[int, int]:
    masks = as_ids(run.largest_masks)
    settles = stage.local and run.settle_blocks
    stages = one_by_one(stage) if settles else [stage]
    return max(activation_bytes(run.config, one, masks, run.bf16, run.checkpointing) for one in stages)


def one_by_one(stage: Stage) -> list[Stage]:
    """The blocks of a local stage as stages of their own, on top of frozen layers: what each keeps when it runs."""
    starts = [0, *(max(0, depth - stage.overlap) for depth in stage.read_depths[:-1])]
    return [
        replace(
            stage,
            num_frozen=start,
            objectives=tuple(objective for objective in stage.objectives if objective.read_at == depth),
            local=False,
            overlap=0,
        )
        for start, depth in zip(starts, stage.read_depths, strict=True)
    ]


def as_ids(sizes: Sizes) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Masks of one clip of these sizes, of which nothing but the shape is looked at."""
    return [tuple(torch.zeros(1, size, dtype=torch.long) for size in pair) for pair in sizes]


def what_fits(run: PlannedRun, cards: list[int], num_gpus: list[int]) -> list[dict]:
    """A row for the first, the middle and the last stage of a run: bytes by what they are for as integers, and the
    most clips at a time, without / with activation checkpointing.

    Args:
        cards: GB of a GPU.
        num_gpus: that share the model (FSDP2).
    """
    model, masks, rows = empty_model(run.config), as_ids(run.largest_masks), []
    for stage in (run.stages[index] for index in sorted({0, len(run.stages) // 2, len(run.stages) - 1})):
        model.freeze_for(stage)
        state = state_bytes(model)
        whole = sum(state.values())
        # Clip by clip and step by step, without checkpointing and with it
        counts = [activation_bytes(run.config, stage, masks, run.bf16, on) for on in (False, True)]
        clips, steps = zip(*counts, strict=True)
        ways = {"one GPU": (whole, steps), "DDP": (whole + state["gradients"], steps)}
        for number in num_gpus:  # whose weights are bf16 when they are gathered
            shared = sum(state_bytes(model, number).values()) + gathered_bytes(model, run.bf16)
            ways[f"FSDP2 on {number}"] = shared, (0, 0)
        row = {"from step": str(stage.start), "frozen layers": str(stage.num_frozen), **state}
        row |= {"frozen, with `frozen_dtype`": state["frozen"] // 2, "DDP's buckets": state["gradients"]}
        row |= {"bf16 copies": steps[0], "activations of a clip": clips[0], "the same, checkpointed": clips[1]}
        row |= {f"all but activations, {way}": fixed for way, (fixed, _) in ways.items()}
        for card in cards:
            for way, (fixed, extra) in ways.items():
                fits = [str(most_clips(card, fixed + extra[on], clips[on])) for on in (False, True)]
                row[f"most clips, {card} GB, {way}"] = " / ".join(fits)
        rows.append(row)
    return rows
