"""What the page tells, section by section: each is a function from a run to what the template fills in.

What a section lacks it says by a `ValueError`, whose text the page shows in its place.
"""

import re
from collections import Counter

from ..analysis.cost import ACCOUNTING
from ..analysis.cost_check import TOLERANCE, deviations
from ..analysis.gpus import GPUS
from ..analysis.health_rules import Verdict
from ..analysis.stage_logs import (
    EXPLAINED_VARIANCE,
    FIRST_STEPS,
    LAST_STEPS,
    RECOVERED,
    labels_of,
    median_speed,
    stage_logs,
    summarise_objective,
)
from ..hub.documents import RESULTS, read_json
from ..hub.results_table import results_table
from ..hub.words import counted, duration, in_powers, listed, public_name, public_text
from ..pretraining.health import judge_run
from ..pretraining.planning import plan_beside_log
from ..pretraining.reports import BAD_VIDEOS
from ..utils.outputs import read_lines
from .curves import draw_charts
from .recorded import Run


MAX_BAD_VIDEOS = 50  # listed by name
GIB = 2**30
NO_STEPS = "no step has been logged yet"


def overview(run: Run) -> dict:
    """What the first screen tells beside the verdicts."""
    record, hardware = run.record, run.record.get("hardware", {})
    videos = counted(record["data"]["num_videos"], "video") if "data" in record else "videos"
    machine = hardware.get("device", "an unknown device")
    if machine == "CPU":
        machine = f"a CPU with {counted(hardware.get('num_cores', 1), 'core')}"
    processes = hardware.get("num_processes", 1)
    machine += f", {counted(processes, 'process')}" if processes > 1 else ""
    return {
        "recipe": record.get("recipe"),
        "status": _status(run),
        "is_finished": run.is_finished,
        "machine": machine,
        "videos": videos,
        "version": record.get("versions", {}).get("layerlock_hf", "unknown"),
        "tiles": _tiles(run) if run.rows else [],
    }


def _status(run: Run) -> str:
    if not run.rows:
        return "no step yet"
    if run.is_finished:
        return "finished"
    if run.step == run.max_steps:
        return "all steps done, model not saved"
    return f"not finished, last line of the log {duration(run.idle_seconds)} ago"  # whether it runs, no file tells


def _tiles(run: Run) -> list[tuple[str, str, str]]:
    """The numbers of the first screen: (what, value, more)."""
    last = run.rows[-1]
    rate, seconds = run.clips_per_second, run.progress.get("seconds")
    config = run.planned.config
    tiles = [("steps", f"{run.step:,}", f"of {run.max_steps:,}, {run.record['clips_per_step']:,} clips each")]
    if seconds is not None:
        tiles.append(("time in training", duration(seconds), "without start and saving"))
    if rate is not None:
        tiles.append(("throughput", f"{rate:,.0f}", "clips per second, median"))
    for label in labels_of(last)[-1:]:  # of the deepest objective
        explained = last[f"{label}/{EXPLAINED_VARIANCE}"]
        tiles.append(("explained variance", f"{explained:.2f}", f"of {_words(label)}, last logged"))
    tiles.append(("layers frozen", f"{last['num_frozen']}", f"of {config.num_hidden_layers}"))
    if "total_flops" in last:
        tiles.append(("operations", in_powers(last["total_flops"], 2), "FLOP, counted"))
    if "bad_videos" in last:
        tiles.append(("bad videos", f"{last['bad_videos']:,}", f"of {run.record['data']['num_videos']:,}"))
    return tiles


def _words(text: str) -> str:
    """Targets as people read them: layer_3 -> layer 3."""
    return re.sub(r"\b(layer|depth)_(\d+)", r"\1 \2", text)


def health(run: Run) -> dict:
    """Whether anything is wrong, by the log."""
    if not run.rows:
        raise ValueError(NO_STEPS)
    found = judge_run(run.folder)
    groups: dict[str, list[Verdict]] = {}
    for verdict in found.verdicts:
        groups.setdefault(verdict.name, []).append(verdict)
    return {
        "is_healthy": found.is_healthy,
        "verdicts": [_verdict(*group) for group in groups.values()],
        "checkpoint": public_text(found.checkpoint_text.replace(f"{run.folder}/", "")),
    }


def _verdict(first: Verdict, *others: Verdict) -> dict:
    """Verdicts of one kind, of several stages."""
    return {
        "name": first.name,
        "stage": first.stage,
        "text": _words(first.text),
        "also": listed([f"stage {other.stage}" for other in others]),
        "advice": first.advice,
        "is_trouble": first.is_trouble,
    }


def curves(run: Run) -> dict:
    """Numbers of the log over the steps."""
    if not run.rows:
        raise ValueError(NO_STEPS)
    return {"charts": draw_charts(run.log, run.stages, run.max_steps)}


def stages(run: Run) -> dict:
    """What was frozen and predicted when, and how well: a row per stage and objective."""
    if not run.stages:
        raise ValueError("stages.json is missing: has the run begun to train?")
    logs = {log.index: log for log in stage_logs(run.rows, run.stages, run.max_steps)}
    ends = [*(stage["start"] for stage in run.stages[1:]), run.max_steps]
    rows = []
    for index, (stage, end) in enumerate(zip(run.stages, ends, strict=True)):
        told = {"number": index, "start": stage["start"], "end": end, "num_frozen": stage["num_frozen"]}
        told["num_learning"] = stage.get("trainable_parameters")
        told["is_current"] = index == max(logs, default=None) and not run.is_finished
        if index not in logs:
            rows.append(told | {"target": _words(stage["target"]), "log": None})
            continue
        speed = median_speed(logs[index].rows)
        told["seconds"] = None if speed is None else run.record["clips_per_step"] / speed
        for label in logs[index].labels:
            log = summarise_objective(logs[index].rows, label, stage["start"], end)
            rows.append(told | {"target": _words(label), "log": log})
    return {"rows": rows, "first_steps": FIRST_STEPS, "last_steps": LAST_STEPS, "recovered": RECOVERED}


def cost(run: Run) -> dict:
    """What was planned beside what the log says."""
    if not run.rows:
        raise ValueError(NO_STEPS)
    # Ratios and operations are those of any GPU, and no others are shown
    plan, found, device = plan_beside_log(run.folder, next(iter(GPUS.values())))
    memory = found["memory"]
    return {
        "stages": [stage | {"target": _words(stage["target"])} for stage in found["stages"]],
        "deviations": [_words(line) for line in deviations(found)],
        "is_off": any(stage["is_off"] for stage in found["stages"]),
        "tolerance": TOLERANCE,
        "flops": {name: in_powers(found["flops"][name]) for name in ("logged", "planned")},
        "step": found["flops"]["step"],
        "memory": {name: f"{memory[name] / GIB:.2f}" for name in ("logged", "planned")},
        "memory_compares": memory["is_off"] is not None,
        "memory_is_off": bool(memory["is_off"]),
        "device": device,
        "ratios": [
            (name, in_powers(plan[key]), f"{plan['total_flops'] / plan[key]:.3g}")
            for name, key in (
                ("the same recipe without freezing", "total_flops_unfrozen"),
                ("the same targets, none frozen", "total_flops_targets_unfrozen"),
                ("MAE on all patches", "total_flops_mae"),
            )
        ],
        "total": in_powers(plan["total_flops"]),
        "accounting": ACCOUNTING.partition(". ")[0],
    }


def readouts(run: Run) -> dict:
    """Results of readouts that lie in the folder of the run, where `layerlock pretrain` suggests to put them."""
    paths = [path for path in (run.folder / RESULTS, *sorted(run.folder.glob(f"*/{RESULTS}"))) if path.is_file()]
    if not paths:
        raise ValueError(
            "there are no results of readouts in the folder of the run: layerlock readout --model RUN ... "
            "--output_dir RUN/readout makes some"
        )
    tables = []
    for path in paths:
        results = read_json(path)
        table = results_table(results)
        name = "the run" if path.parent == run.folder else path.parent.name
        tested = counted(results["num_test"], "item")
        about = f"{results['task']} on {public_text(results['dataset'])}: {tested} tested"
        tables.append({"name": name, "about": about, "header": table.header, "rows": table.rows})
    return {"tables": tables}


def bad_videos(run: Run) -> dict:
    """Videos that could not be used, or only in part."""
    path = run.folder / BAD_VIDEOS
    if not path.is_file():
        raise ValueError(f"{BAD_VIDEOS} is missing")
    rows = list({row["path"]: row for row in read_lines(path)}.values())
    kinds = Counter(row.get("kind", "damaged") for row in rows)
    return {
        "num_bad": len(rows),
        "num_videos": int(run.record.get("data", {}).get("num_videos", 0)),
        "num_used": sum(row["used"] for row in rows),
        "kinds": listed([f"{number} {kind}" for kind, number in kinds.most_common()]),
        "rows": [
            {"name": public_name(row["path"]), "kind": row.get("kind", "damaged"), "used": row["used"]}
            | {"reason": public_text(row["reason"].replace(row["path"], public_name(row["path"])))}
            for row in rows[:MAX_BAD_VIDEOS]
        ],
    }


def settings(run: Run) -> dict:
    """How the run was started."""
    record = run.record
    return {
        "command": record.get("command"),
        "settings": {name: _value(value) for name, value in sorted(record.get("settings", {}).items())},
        "versions": dict(record.get("versions", {})),
        "hardware": dict(record.get("hardware", {})),
        "sources": list(record.get("data", {}).get("sources", [])),
        "run_id": record.get("run_id", "unknown"),
    }


def _value(value) -> str:
    if isinstance(value, list):
        return " ".join(map(_value, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
