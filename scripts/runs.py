"""What programs that train on procedural clips share: the data, runs of pretrain.py, and reading their logs."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from layerlock_hf.data.procedural import write_procedural_dataset


SCRIPTS = Path(__file__).resolve().parent
VIDEO_FRAMES = 24
VIDEO_SIZE = 64  # pixels
REPORT_INTERVAL = 50  # steps
# Settings that are measured in steps
SCHEDULE = (
    "freeze_start",
    "freeze_interval",
    "warmup_steps",
    "switch_warmup_steps",
    "steps_per_block",
    "latent_weight_ramp_steps",
)


class RunFailed(RuntimeError):
    """A run of pretrain.py came to no good end."""


def write_data(folder: Path, num_videos: int):
    """Unlabelled videos to pretrain on, and two probe sets with labels and depth; the scenes of each differ."""
    sizes = {
        "train": num_videos,
        "probe/train": max(16, num_videos * 3 // 5),
        "probe/test": max(16, num_videos * 2 // 5),
    }
    for seed, (name, size) in enumerate(sizes.items()):
        print(f"{name}: {size} videos of {VIDEO_FRAMES} frames, {VIDEO_SIZE} x {VIDEO_SIZE} pixels", flush=True)
        write_procedural_dataset(
            folder / name,
            size,
            seed=seed,
            num_frames=VIDEO_FRAMES,
            image_size=VIDEO_SIZE,
            with_depth=name != "train",
        )


def shortened(recipe: dict, max_steps: int) -> dict:
    """The settings that bring a recipe to `max_steps`, its schedules in proportion."""
    share = max_steps / recipe["max_steps"]
    # warmup_steps below 1 are a share of the run already
    scaled = {name: max(1, int(recipe[name] * share)) for name in SCHEDULE if recipe.get(name, 0) >= 1}
    return {"max_steps": max_steps} | scaled


def read_log(folder: Path) -> list[dict]:
    """The lines of a run's log so far."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def read_metrics(folder: Path) -> list[dict]:
    """The lines of a run's log so far that hold losses."""
    return [row for row in read_log(folder) if "learning_rate" in row]


def environment() -> dict[str, str]:
    # Threads that spin while they wait slow everything else on a small machine down.
    return {"OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1", **os.environ}


def exit_when_terminated():
    """Let SIGTERM raise SystemExit, so that the run that is under way ends too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def pretrain(recipe: Path, videos: Path, folder: Path, settings: dict):
    """Run scripts/pretrain.py, and report from its log as it goes.

    Raises:
        RunFailed: naming the run.
    """
    command = [
        str(Path(sys.executable).parent / "accelerate"),
        "launch",
        "--num_processes",
        "1",
        "--num_machines",
        "1",
    ]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    extra = {"disable_tqdm": True, "save_strategy": "no", "report_to": "none", **settings}
    if not torch.cuda.is_available():
        command.append("--cpu")
        extra["dataloader_pin_memory"] = False
    command += [str(SCRIPTS / "pretrain.py"), "--config", str(recipe)]
    command += ["--train_data", str(videos), "--output_dir", str(folder)]
    for name, value in extra.items():
        command += [f"--{name}", str(value)]
    print(" ".join(command), flush=True)

    (folder / "metrics.jsonl").unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    log_path = folder / "output.log"
    reported = -1
    with log_path.open("w") as log:
        # In a session of its own, because accelerate does not pass a signal on to the process that it starts
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment(), start_new_session=True
        )
        try:
            while True:
                is_running = process.poll() is None
                rows = read_metrics(folder)
                for row in rows:
                    period = row["step"] // REPORT_INTERVAL
                    if period > reported:
                        reported = period
                        print(progress_line(row), flush=True)
                if not is_running:
                    break
                time.sleep(0.5)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()
    if process.returncode:
        output = log_path.read_text()
        print(output[-5000:], flush=True)
        # The error of the program itself, not that of accelerate after it
        causes = [line for line in output.splitlines() if re.match(r"error: |[\w.]*(Error|Exception)\b.*: ", line)]
        cause = f" ({causes[0][:200]})" if causes else ""
        raise RunFailed(f"the run in {folder} failed{cause}; its output is in {log_path}")


def progress_line(row: dict) -> str:
    target = next(name.removesuffix("/loss") for name in row if name.endswith("/loss"))
    return (
        f"  step {row['step']:4}  {row['num_frozen']} layers frozen  predicts {target:8}  loss {row['loss']:8.4f}  "
        f"explained variance {row[f'{target}/explained_variance']:6.2f}  {row['clips_per_second']:5.0f} clips/s"
    )
