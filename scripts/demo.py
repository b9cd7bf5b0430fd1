"""The demonstration: procedural clips, a LayerLock and an MAE run on them, and what the two encoders learned.

python scripts/demo.py --output_dir runs/demo

It takes minutes on two CPU cores. `--max_steps 40 --num_videos 32` is a quick test of the whole.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import torch
from demo_plots import plot_losses, plot_reconstruction

from layerlock_hf.data.procedural import write_procedural_dataset
from layerlock_hf.training import load_recipe


SCRIPTS = Path(__file__).resolve().parent
RECIPES = {"layerlock": SCRIPTS / "recipes" / "demo.yaml", "mae": SCRIPTS / "recipes" / "demo-mae.yaml"}
VIDEO_FRAMES = 24
VIDEO_SIZE = 64  # pixels
FIRST_STEPS, LAST_STEPS = 10, 30  # steps over which a stage's first and last losses are averaged
REPORT_INTERVAL = 50  # steps
TITLES = {"layerlock": "LayerLock", "mae": "plain MAE", "random": "random weights", "constant": "no encoder"}


def heading(number: int, text: str):
    print(f"\n== {number}. {text} ==", flush=True)


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
    """The settings that shorten a recipe to `max_steps`, its schedule in proportion."""
    names = ("freeze_start", "freeze_interval", "warmup_steps", "switch_warmup_steps")
    share = max_steps / recipe["max_steps"]
    return {"max_steps": max_steps} | {name: max(1, int(recipe[name] * share)) for name in names if name in recipe}


def read_metrics(folder: Path) -> list[dict]:
    """The lines of a run's log so far that hold losses."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [row for row in rows if "learning_rate" in row]


def environment() -> dict[str, str]:
    # Threads that spin while they wait slow everything else on a small machine down.
    return {"OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1", **os.environ}


def pretrain(recipe: Path, videos: Path, folder: Path, settings: dict):
    """Run scripts/pretrain.py, and report from its log as it goes."""
    command = [
        str(Path(sys.executable).parent / "accelerate"),
        "launch",
        "--num_processes",
        "1",
        "--num_machines",
        "1",
    ]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    extra = {"disable_tqdm": True, **settings}
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
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment())
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
            process.terminate()
            process.wait()
    if process.returncode:
        print(log_path.read_text()[-5000:])
        raise SystemExit(f"error: the run in {folder} failed; its output is in {log_path}")


def progress_line(row: dict) -> str:
    target = next(name.removesuffix("/loss") for name in row if name.endswith("/loss"))
    return (
        f"  step {row['step']:4}  {row['num_frozen']} layers frozen  predicts {target:8}  loss {row['loss']:8.4f}  "
        f"explained variance {row[f'{target}/explained_variance']:6.2f}  {row['clips_per_second']:5.0f} clips/s"
    )


def summarise_stages(folder: Path, recipe: dict, max_steps: int) -> list[dict]:
    """The stages of a run with their first and last losses, as means over a few steps."""
    stages = json.loads((folder / "stages.json").read_text())
    rows = read_metrics(folder)
    ends = [*(stage["start"] for stage in stages), max_steps]
    for index, (stage, (start, end)) in enumerate(zip(stages, pairwise(ends), strict=True)):
        own = [row for row in rows if row["stage"] == index]
        if not own:
            continue
        first = [row for row in own if row["step"] <= start + FIRST_STEPS] or own[:1]
        last = [row for row in own if row["step"] > end - LAST_STEPS] or own[-1:]
        for name in ("loss", "explained_variance"):
            stage[f"first_{name}"] = statistics.fmean(row[f"{stage['target']}/{name}"] for row in first)
            stage[f"last_{name}"] = statistics.fmean(row[f"{stage['target']}/{name}"] for row in last)
        stage["seconds_per_step"] = recipe["global_batch_size"] / statistics.median(
            row["clips_per_second"] for row in own
        )
    return stages


def print_stages(stages: list[dict]):
    print("  start  frozen  predicts   loss: first   last   explained variance: first  last   s/step")
    for stage in stages:
        if "first_loss" not in stage:
            continue
        print(
            f"  {stage['start']:5}  {stage['num_frozen']:6}  {stage['target']:8}  {stage['first_loss']:12.4f} "
            f"{stage['last_loss']:7.4f}  {stage['first_explained_variance']:25.2f} "
            f"{stage['last_explained_variance']:5.2f}  {stage['seconds_per_step']:7.3f}"
        )


def print_probes(probes: dict[str, dict]):
    print("  encoder         motion accuracy      depth AbsRel      depth R2   (of the best layer, test clips)")
    for name, scores in probes.items():
        motion, depth = (f"(layer {scores[key]})" if key in scores else "" for key in ("motion_layer", "depth_layer"))
        print(
            f"  {TITLES[name]:15} {scores['motion_accuracy']:6.1%} {motion:10} {scores['depth_abs_rel']:7.3f} "
            f"{depth:10} {scores['depth_r2']:9.3f}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/demo"), help="Where everything goes.")
    parser.add_argument("--max_steps", type=int, help="Steps of each run (default: those of the recipe).")
    parser.add_argument("--num_videos", type=int, default=400, help="Videos to pretrain on.")
    args = parser.parse_args()
    output, data = args.output_dir, args.output_dir / "data"
    recipes = {name: load_recipe(path) for name, path in RECIPES.items()}
    max_steps = args.max_steps or recipes["layerlock"]["max_steps"]
    began = time.perf_counter()

    heading(1, "Procedural videos")
    write_data(data, args.num_videos)

    for number, name in ((2, "layerlock"), (3, "mae")):
        heading(number, f"Pretraining: {TITLES[name]}, {max_steps} steps")
        settings = shortened(recipes[name], args.max_steps) if args.max_steps else {}
        pretrain(RECIPES[name], data / "train" / "videos", output / name, settings)
    stages = summarise_stages(output / "layerlock", recipes["layerlock"], max_steps)

    heading(4, "Probes of the frozen encoders, in a process of their own")
    command = [sys.executable, str(SCRIPTS / "probe.py"), "--data", str(data / "probe")]
    command += ["--models", *(f"{name}={output / name}" for name in RECIPES), "--output", str(output / "probes.json")]
    command += ["--resize_factor", str(recipes["layerlock"]["resize_factor"])]
    subprocess.run(command, check=True, env=environment())
    probes = json.loads((output / "probes.json").read_text())

    heading(5, "Results")
    summary = {"stages": stages, "probes": probes, "seconds": time.perf_counter() - began}
    (output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    runs = {name: read_metrics(output / name) for name in RECIPES}
    plot_losses(runs, stages, max_steps, output / "loss.png")
    plot_reconstruction(
        output / "mae",
        sorted((data / "probe" / "test" / "videos").glob("*.mp4"))[:3],
        recipes["mae"]["mask_ratio"],
        recipes["mae"]["resize_factor"],
        output / "reconstruction.png",
    )
    print("LayerLock, stage by stage:")
    print_stages(stages)
    print("\nFrozen encoders:")
    print_probes(probes)
    print(f"\nDone in {time.perf_counter() - began:.0f} s. Look at:")
    for name in ("summary.json", "loss.png", "reconstruction.png"):
        print(f"  {output / name}")
    for name in RECIPES:
        print(f"  {output / name}: AutoModel.from_pretrained('{output / name}')")


if __name__ == "__main__":
    main()
