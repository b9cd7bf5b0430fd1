"""`layerlock pretrain` stopped by signals, alone and under accelerate, and started again by the same command."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from safetensors.torch import load_file

from layerlock_hf.data.procedural import write_procedural_dataset


ROOT = Path(__file__).resolve().parents[1]
PROGRAM = "layerlock_hf.cli.pretrain"
NUM_STEPS = 96  # long enough for the signal to arrive in the middle
MEASURED = (
    "clips_per_second",
    "data_wait_fraction",
    "peak_memory_gib",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_sizes):
    """Four stages in 96 steps, on four videos."""
    folder = tmp_path_factory.mktemp("recipe")
    write_procedural_dataset(folder / "data", 4, num_frames=8, image_size=16, progress=False)
    settings = {
        "preset": "tiny",
        **tiny_sizes,
        "frame_stride": 1,
        "mask_ratio": 0.75,
        "freeze_start": 24,
        "freeze_interval": 24,
        "switch_warmup_steps": 4,
        "layers_per_freeze": 2,
        "num_freezes": 3,
        "max_steps": NUM_STEPS,
        "global_batch_size": 2,
        "per_device_train_batch_size": 1,
        "logging_steps": 1,
        "diagnostics_steps": 0,
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_num_workers": 1,
        "save_steps": 1000,
        "train_data": str(folder / "data" / "videos"),
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return folder / "recipe.yaml"


def command(recipe, output_dir, num_processes):
    launcher = [sys.executable]
    if num_processes > 1:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
        launcher = [str(Path(sys.executable).parent / "accelerate"), "launch", "--multi_gpu", "--num_machines", "1"]
        launcher += ["--num_processes", str(num_processes), "--main_process_port", str(port)]
        launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*launcher, "-m", PROGRAM, "--config", str(recipe), "--output_dir", str(output_dir), "--resume", "auto"]


def start(recipe, output_dir, num_processes):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment |= {"ACCELERATE_USE_CPU": "true"} if num_processes > 1 else {}
    with (output_dir.parent / f"{output_dir.name}.log").open("a") as log:
        return subprocess.Popen(
            command(recipe, output_dir, num_processes),
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def rows(output_dir):
    lines = (output_dir / "metrics.jsonl").read_text().splitlines() if (output_dir / "metrics.jsonl").exists() else []
    return [{k: v for k, v in json.loads(line).items() if k not in MEASURED} for line in lines]


def wait_for_rows(output_dir, process, count):
    end = time.monotonic() + 120
    while len(rows(output_dir)) < count and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "num_processes", "reaches_all"),
    [(signal.SIGTERM, 1, False), (signal.SIGTERM, 2, False), (signal.SIGINT, 1, True), (signal.SIGINT, 2, True)],
)
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path, recipe, number, num_processes, reaches_all):
    """Schedulers signal one process, terminals all of them, data workers included."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert start(recipe, whole, num_processes).wait(timeout=240) == 0
    process = start(recipe, stopped, num_processes)
    wait_for_rows(stopped, process, 5)
    if reaches_all:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    status = process.wait(timeout=120)
    log = (tmp_path / "stopped.log").read_text()
    # torchrun's agent has a status of its own
    assert status == 128 + number if num_processes == 1 else status != 0, log[-3000:]
    checkpoints = list(stopped.glob("checkpoint-*"))
    assert len(checkpoints) == 1, log[-3000:]
    assert 5 <= int(checkpoints[0].name.split("-")[1]) < NUM_STEPS
    assert not (stopped / "model.safetensors").exists()
    assert f"saved {checkpoints[0].name}; the same command with --resume auto goes on" in log

    assert start(recipe, stopped, num_processes).wait(timeout=240) == 0
    expected, weights = (load_file(folder / "model.safetensors") for folder in (whole, stopped))
    assert all((weights[name] == tensor).all() for name, tensor in expected.items())
    losses = [[row for row in rows(folder) if "loss" in row] for folder in (whole, stopped)]
    assert [row["step"] for row in losses[0]] == list(range(1, NUM_STEPS + 1))
    assert losses[0] == losses[1]


SLOW = """
import sys, time
from layerlock_hf.cli import pretrain
from layerlock_hf.training import LayerLockTrainer, callbacks
{changes}
from layerlock_hf.utils.processes import run_and_exit
run_and_exit(lambda: pretrain.main(sys.argv[1:]))
"""


def start_changed(recipe, output_dir, changes):
    """pretrain.py with something changed in it."""
    program = SLOW.format(changes=changes)
    return subprocess.Popen(
        [sys.executable, "-c", program, *command(recipe, output_dir, 1)[3:]],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_table(process):
    """Of the stages, which is printed last before the training."""
    for line in process.stdout:
        if line.lstrip().startswith("0 "):
            break
    time.sleep(5)


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(tmp_path, recipe):
    changes = "callbacks.ECHO_S = 0.5\nstep = LayerLockTrainer.training_step\n"
    changes += "LayerLockTrainer.training_step = lambda self, *given: (time.sleep(20), step(self, *given))[1]"
    with start_changed(recipe, tmp_path / "out", changes) as process:
        wait_for_table(process)
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(1.5)
        began = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=15) == 130 and time.monotonic() - began < 10
        output = process.stdout.read()
    assert "SIGINT: saving after this step" in output and "Traceback" not in output
    assert not list((tmp_path / "out").glob("checkpoint-*"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_waits_for_data_can_be_ended(tmp_path, recipe, number):
    changes = "callbacks.MAX_WAIT_S = 2\n"
    changes += "from layerlock_hf.data import PretrainingClips\n"
    changes += "PretrainingClips.__getitems__ = lambda self, positions: time.sleep(1000)"
    with start_changed(recipe, tmp_path / "out", changes) as process:
        wait_for_table(process)
        os.killpg(process.pid, number)
        assert process.wait(timeout=30) == 1
        (told,) = [line for line in process.stdout if line.startswith("error: ")]
    assert f"{number.name}, but no batch came within 2 s: nothing has been saved since the last checkpoint" in told


@pytest.mark.slow
@pytest.mark.parametrize("num_rows", [0, 5])
def test_the_processes_of_a_killed_launcher_end(tmp_path, recipe, num_rows):
    """At the start, when they wait for each other, and in the middle, when they save first."""
    out = tmp_path / "out"
    process = start(recipe, out, 2)
    launcher, children, end = psutil.Process(process.pid), [], time.monotonic() + 120
    while len(children) < 2 and time.monotonic() < end:
        children = [child for child in launcher.children(recursive=True) if PROGRAM in child.cmdline()]
        time.sleep(0.05)
    if num_rows:
        wait_for_rows(out, process, num_rows)
        children = launcher.children(recursive=True)
    else:
        time.sleep(2)  # of the seconds in which they import what they need
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=90)  # what hangs is ended after `parents.GRACE_S`
    for child in alive:
        child.kill()
    assert not alive
    assert list(out.glob("checkpoint-*")) or not num_rows
