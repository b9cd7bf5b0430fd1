"""scripts/pretrain.py stopped by SIGTERM, alone and under accelerate, and started again by the same command."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from layerlock_hf.data.procedural import write_procedural_dataset


ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ROOT / "scripts" / "pretrain.py"
NUM_STEPS = 96  # long enough for the signal to arrive in the middle
MEASURED = (
    "clips_per_second",
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
    return [*launcher, str(PROGRAM), "--config", str(recipe), "--output_dir", str(output_dir), "--resume", "auto"]


def start(recipe, output_dir, num_processes):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment |= {"ACCELERATE_USE_CPU": "true"} if num_processes > 1 else {}
    with (output_dir.parent / f"{output_dir.name}.log").open("a") as log:
        return subprocess.Popen(
            command(recipe, output_dir, num_processes), env=environment, stdout=log, stderr=subprocess.STDOUT
        )


def rows(output_dir):
    lines = (output_dir / "metrics.jsonl").read_text().splitlines() if (output_dir / "metrics.jsonl").exists() else []
    return [{k: v for k, v in json.loads(line).items() if k not in MEASURED} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_sigterm_saves_and_the_same_command_goes_on(tmp_path, recipe, num_processes):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert start(recipe, whole, num_processes).wait(timeout=240) == 0
    process = start(recipe, stopped, num_processes)
    end = time.monotonic() + 120
    while len(rows(stopped)) < 5 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    status = process.wait(timeout=120)
    assert status == 143 if num_processes == 1 else status != 0  # torchrun's agent has a status of its own
    checkpoints = list(stopped.glob("checkpoint-*"))
    assert len(checkpoints) == 1, (tmp_path / "stopped.log").read_text()[-3000:]
    assert 5 <= int(checkpoints[0].name.split("-")[1]) < NUM_STEPS
    assert not (stopped / "model.safetensors").exists()

    assert start(recipe, stopped, num_processes).wait(timeout=240) == 0
    expected, weights = (load_file(folder / "model.safetensors") for folder in (whole, stopped))
    assert all((weights[name] == tensor).all() for name, tensor in expected.items())
    losses = [[row for row in rows(folder) if "loss" in row] for folder in (whole, stopped)]
    assert [row["step"] for row in losses[0]] == list(range(1, NUM_STEPS + 1))
    assert losses[0] == losses[1]
