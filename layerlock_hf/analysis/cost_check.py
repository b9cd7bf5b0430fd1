"""What was planned of a run beside what its log says."""

import statistics

from .cost import clip_flops
from .runs import PlannedRun


GIB = 2**30
TOLERANCE = 0.25  # of time and memory


def compare_with_log(run: PlannedRun, plan: dict, rows: list[dict], knows_memory: bool) -> dict:
    """Plan and log, stage by stage: `stages` is a list with a row per stage that the log has.

    Seconds per step are compared as ratios to the first of these stages: how fast a machine is, the plan does not
    know. Memory is compared for the whole run, as the log holds the highest so far.

    Args:
        plan: of this run, as `plan_cost` makes it.
        rows: lines of the log that hold losses.
        knows_memory: whether the log has the memory of tensors, as on a GPU, and not that of the whole process.

    Raises:
        ValueError: if the log has no speeds, or is of other stages.
    """
    timed = [row for row in rows if row.get("clips_per_second")]
    if not timed:
        raise ValueError("metrics.jsonl must hold clips_per_second, got no line with it: let the run log more steps")
    for row in timed:
        known = [stage.num_frozen for stage in run.stages]
        if row["num_frozen"] != dict(enumerate(known)).get(row["stage"]):
            raise ValueError(
                "metrics.jsonl must be of the stages of settings.json, got "
                f"{row['num_frozen']} frozen layers in stage {row['stage']}: were files of two runs mixed?"
            )
    found, first = [], None
    for index, planned in enumerate(plan["stages"]):
        speeds = [row["clips_per_second"] for row in timed if row["stage"] == index]
        if not speeds:
            continue
        # The first line of a stage holds the switch
        speed, work = statistics.median(speeds[1:] or speeds), planned["executed_flops_per_clip"]
        first = first or (speed, work)
        ratio, planned_ratio = first[0] / speed, work / first[1]
        found.append(
            {
                "stage": index,
                **{name: planned[name] for name in ("start", "num_frozen", "target")},
                "seconds_per_step": plan["clips_per_step"] / speed,
                "flops_per_second": speed * work / plan["num_gpus"],
                "time_ratio": ratio,
                "planned_time_ratio": planned_ratio,
                "is_off": abs(ratio / planned_ratio - 1) > TOLERANCE,
            }
        )
    return {"stages": found, "flops": _flops(run, plan, timed[-1]), "memory": _memory(plan, timed, knows_memory)}


def deviations(found: dict) -> list[str]:
    """The stages that are off, of what `compare_with_log` found, a line each; or one that says that none is."""
    lines = []
    for stage in found["stages"]:
        if stage["is_off"]:
            slower = "slower" if stage["time_ratio"] > stage["planned_time_ratio"] else "faster"
            factor = stage["time_ratio"] / stage["planned_time_ratio"]
            lines.append(
                f"stage {stage['stage']} ({stage['num_frozen']} frozen, predicts {stage['target']}) is {slower} than "
                f"planned: its steps take {factor:.2f} times as long as they should beside those of stage "
                f"{found['stages'][0]['stage']}"
            )
    return lines or [f"no stage is off by more than {TOLERANCE:.0%}"]


def _flops(run: PlannedRun, plan: dict, last: dict) -> dict:
    """Of the steps up to the last that was logged."""
    done = zip(run.stages, run.lengths(run.stages), strict=True)
    num_steps = [max(0, min(length, last["step"] - stage.start)) for stage, length in done]
    per_clip = sum(number * clip_flops(run, stage) for number, stage in zip(num_steps, run.stages, strict=True))
    return {"step": last["step"], "planned": per_clip * plan["clips_per_step"], "logged": last["total_flops"]}


def _memory(plan: dict, timed: list[dict], knows_memory: bool) -> dict:
    """Peaks in bytes; `is_off` is None where the log's cannot be compared."""
    reached = plan["stages"][: timed[-1]["stage"] + 1]
    planned = max(stage["memory_bytes"] for stage in reached)
    logged = max(row["peak_memory_gib"] for row in timed) * GIB
    is_off = abs(logged / planned - 1) > TOLERANCE if knows_memory else None
    return {"planned": planned, "logged": logged, "is_off": is_off}
