"""The look at the health of a run while it trains."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from transformers import TrainerControl

from layerlock_hf.pretraining import health_check
from layerlock_hf.pretraining.arguments import HealthArguments
from layerlock_hf.pretraining.health_check import HealthCheck, RunUnhealthy


LOGS = Path(__file__).parents[1] / "analysis" / "health_logs"


@pytest.fixture
def warnings(monkeypatch):
    """What is told to the user."""
    told = []
    monkeypatch.setattr(health_check.logger, "warning", told.append)
    return told


def walk(name, folder, stops=False, rows=None, steps=10):
    """Let the check see a recorded log row by row, as the Trainer would show it; the step at which it stops, if it
    does, and the check."""
    record = json.loads((LOGS / f"{name}.json").read_text())
    check = HealthCheck(folder, record["stages"], steps, stops)
    state = SimpleNamespace(is_world_process_zero=True, global_step=0, max_steps=record["max_steps"])
    check.on_train_begin(None, state, TrainerControl())
    rows = {row["step"]: row for row in rows or record["rows"]}
    for step in range(1, max(rows) + 1):
        state.global_step, control = step, TrainerControl()
        check.on_step_end(None, state, control)
        assert control.should_save == control.should_training_stop
        if control.should_training_stop:
            return step, check
        if step in rows:
            check.on_log(None, state, control, logs={key: rows[step][key] for key in rows[step] if key != "step"})
    return None, check


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("diverging", ["diverging, in stage 0: the loss rose to "]),
        ("collapse-hot", ["collapsing, in stage 0: the encoder explains "]),
        ("too-short", [f"stage too short, in stage {stage}: the stage ended after 10 steps" for stage in (1, 2, 3)]),
        ("demo", []),
    ],
)
def test_each_trouble_is_told_once(name, told, tmp_path, warnings):
    stopped, check = walk(name, tmp_path)
    assert stopped is None
    assert [line[: len(start)] for line, start in zip(warnings, told, strict=True)] == told
    check.on_train_end(None, None, None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("diverging", 30), ("collapse-hot", 30), ("too-short", None), ("starved", None), ("demo", None)],
)
def test_what_stops_a_run(name, expected, tmp_path, warnings):
    stopped, check = walk(name, tmp_path, stops=True)
    assert stopped == expected
    if expected is not None:
        with pytest.raises(
            RunUnhealthy, match=rf"stopped after step {expected}, which has been saved \(health_stop\): "
        ):
            check.on_train_end(None, None, None)


def test_trouble_that_is_over_stops_nothing(tmp_path, warnings):
    """A run that resumes after it: the log before the checkpoint is there, and is judged, too."""
    rows = json.loads((LOGS / "diverging.json").read_text())["rows"]
    before, after = ([row for row in rows if (row["step"] > 200) == is_late] for is_late in (False, True))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in before))
    assert walk("diverging", tmp_path, stops=True, rows=after, steps=270)[0] is None
    assert len(warnings) == 1 and "until step 185" in warnings[0]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in before[:5]))
    assert walk("diverging", tmp_path, stops=True, rows=before[5:])[0] == 10  # where it still holds


def test_nothing_is_judged_before_the_first_loss(tmp_path, warnings):
    assert walk("diverging", tmp_path, stops=True, rows=[{"step": 50, "readout/seconds": 1.0}])[0] is None


def test_settings(tmp_path):
    assert HealthArguments(health_steps=0).callbacks(tmp_path, []) == []
    (check,) = HealthArguments(health_steps=7, health_stop=True).callbacks(tmp_path, [])
    assert (check.steps, check.stops) == (7, True)
    with pytest.raises(ValueError, match="health_steps must be at least 0, got -1"):
        HealthArguments(health_steps=-1)
    with pytest.raises(ValueError, match="health_stop is set but health_steps is 0: set "):
        HealthArguments(health_steps=0, health_stop=True)


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_run_that_diverges_is_saved_and_stopped(num_processes, settings, tmp_path):
    """At a hundred times the learning rate of the recipe."""
    changed = {"learning_rate": 1.0, "max_steps": 60, "freeze_start": 50, "save_strategy": "no"}
    changed |= {"per_device_train_batch_size": 4 // num_processes, "health_steps": 10, "health_stop": True}
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(yaml.safe_dump(settings | changed))
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(num_processes)] if num_processes > 1 else []
    command = [sys.executable, *launcher, "-m", "layerlock_hf.cli.pretrain"]
    command += ["--config", str(recipe), "--output_dir", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1, ended.stderr[-3000:]
    told = [line for line in ended.stderr.splitlines() if line.startswith("error: stopped after step ")]
    assert len(told) == num_processes and "diverging, in stage 0: the loss rose to " in told[0]
    (checkpoint,) = out.glob("checkpoint-*")
    assert f"step {checkpoint.name.removeprefix('checkpoint-')}, which has been saved" in told[0]
    assert (checkpoint / "manifest.json").is_file() and not (out / "model.safetensors").exists()
