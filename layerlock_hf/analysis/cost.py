"""What a run will cost, stage by stage: operations, memory, communication, hours. Counted, not measured."""

from dataclasses import replace
from itertools import accumulate

from ..models.objectives import Objective, Pixels, Stage
from ..training.flops import executed_flops, forward_flops, step_flops
from ..training.run_file import target_label
from .memory import GIGA, USABLE, StageMemory, memory_of_stages
from .runs import Machine, PlannedRun


HOUR_S = 3600
DEFAULT_BATCH_SIZE = 8  # of Transformers, per GPU
ACCOUNTING = (
    "counted, not measured: FLOPs of matrix products only, a multiply-accumulate as 2, frozen layers forward only, "
    "targets included, every clip by itself. Hours are of what a batch executes (tokens that all clips share once, "
    "checkpointed layers twice), at the given share of the GPU's peak, without waiting for data or for other GPUs"
)


def plan_cost(run: PlannedRun, machine: Machine) -> dict:
    """All that is counted, as one JSON object; `stages` is a list with a row per stage.

    Raises:
        ValueError: if the batch cannot be divided among the GPUs.
    """
    memories = memory_of_stages(run, machine)
    batch_size, clips_per_step = _batches(run, machine, memories)
    lengths = run.lengths(run.stages)
    rate = machine.num_gpus * machine.gpu.peak(run.bf16, run.tf32) * machine.utilisation
    total = run_flops(run) * clips_per_step
    rows = []
    for stage, length, memory in zip(run.stages, lengths, memories, strict=True):
        flops, clips = clip_flops(run, stage), length * clips_per_step
        executed = executed_clip_flops(run, stage, batch_size)
        parts = memory.parts(batch_size)
        communicates = machine.num_gpus > 1 and not machine.fsdp2
        rows.append(
            {
                "start": stage.start,
                "num_steps": length,
                "num_frozen": stage.num_frozen,
                "target": target_label(stage),
                "forward_flops_per_clip": _forward_flops(run, stage),
                "step_flops_per_clip": flops,
                "executed_flops_per_clip": executed,
                "flops": flops * clips,
                "share": flops * clips / total,
                "memory_bytes": sum(parts.values()),
                "memory": parts,
                "allreduce_bytes": memory.fixed["gradients"] if communicates else 0,
                "hours": executed * clips / rate / HOUR_S,
            }
        )
    for row, cumulative in zip(rows, accumulate(row["flops"] for row in rows), strict=True):
        row["cumulative_flops"] = cumulative
    hours = sum(row["hours"] for row in rows)
    return {
        "recipe": run.name,
        "max_steps": run.max_steps,
        "clips_per_step": clips_per_step,
        "batch_size": batch_size,
        "gpu": machine.gpu.name,
        "num_gpus": machine.num_gpus,
        "fsdp2": machine.fsdp2,
        "utilisation": machine.utilisation,
        "stages": rows,
        "total_flops": total,
        "total_flops_unfrozen": run_flops(replace(run, stages=run.unfrozen)) * clips_per_step,
        "total_flops_targets_unfrozen": run_flops(nothing_frozen(run)) * clips_per_step,
        "total_flops_mae": run_flops(as_mae(run)) * clips_per_step,
        "peak_memory_bytes": max(row["memory_bytes"] for row in rows),
        "usable_memory_bytes": USABLE * machine.gpu.gigabytes * GIGA,
        "most_clips": min(memory.most_clips(machine.gpu.gigabytes) for memory in memories),
        "hours": hours,
        "gpu_hours": hours * machine.num_gpus,
        "price": None if machine.price is None else hours * machine.num_gpus * machine.price,
        "accounting": ACCOUNTING,
    }


def nothing_frozen(run: PlannedRun) -> PlannedRun:
    """The same targets, while all layers learn: the difference is what freezing itself saves."""
    return replace(run, stages=[replace(stage, num_frozen=0, may_collapse=True) for stage in run.stages])


def as_mae(run: PlannedRun) -> PlannedRun:
    """Plain masked autoencoding of the same model, which sees the same tokens and predicts the pixels of all."""
    stage = Stage(0, 0, (Objective(run.config.decoder_depths[-1], Pixels()),))
    masks = [tuple((seen, None) for seen, _ in sizes) for sizes in run.masks]
    return replace(run, stages=[stage], unfrozen=[stage], masks=masks)


def clip_flops(run: PlannedRun, stage: Stage) -> float:
    """Of a training step, per clip: the mean over the masks, every clip by itself."""
    return run.mean(lambda sizes: step_flops(run.config, stage, sizes, teacher=run.teacher))


def _forward_flops(run: PlannedRun, stage: Stage) -> float:
    return run.mean(lambda sizes: forward_flops(run.config, stage, sizes, teacher=run.teacher))


def executed_clip_flops(run: PlannedRun, stage: Stage, batch_size: int) -> float:
    """Of a training step, per clip of a batch of `batch_size`: the mean over the masks."""

    def count(sizes):
        return executed_flops(
            run.config, stage, sizes, batch_size, teacher=run.teacher, checkpointing=run.checkpointing
        )

    return run.mean(count) / batch_size


def run_flops(run: PlannedRun) -> float:
    """Of a whole run, per clip of a step."""
    lengths = run.lengths(run.stages)
    return sum(clip_flops(run, stage) * length for stage, length in zip(run.stages, lengths, strict=True))


def _batches(run: PlannedRun, machine: Machine, memories: list[StageMemory]) -> tuple[int, int]:
    """Clips per GPU at a time, and of a step on all GPUs."""
    if run.global_batch_size is None:
        batch_size = run.batch_size or DEFAULT_BATCH_SIZE
        return batch_size, batch_size * machine.num_gpus * run.accumulation
    per_gpu, rest = divmod(run.global_batch_size, machine.num_gpus * (run.batch_size or 1))
    if rest:
        at_a_time = "" if run.batch_size is None else f" times {run.batch_size} clips at a time"
        raise ValueError(
            f"global_batch_size must be a multiple of {machine.num_gpus} GPUs{at_a_time}, got "
            f"{run.global_batch_size}: change one of them"
        )
    batch_size = run.batch_size or max(1, min(memory.most_clips(machine.gpu.gigabytes) for memory in memories))
    while run.batch_size is None and per_gpu % batch_size:
        batch_size //= 2
    return batch_size, run.global_batch_size
