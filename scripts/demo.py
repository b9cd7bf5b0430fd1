"""The demonstration: procedural clips, a LayerLock and an MAE run on them, and what the two encoders learned.

python scripts/demo.py --output_dir runs/demo

It takes minutes on two CPU cores. `--max_steps 40 --num_videos 32` is a quick test of the whole.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

from demo_plots import plot_losses, plot_reconstruction
from layerlock_hf.training import load_recipe
from runs import (
    SCRIPTS,
    RunFailed,
    environment,
    exit_when_terminated,
    pretrain,
    read_metrics,
    shortened,
    write_data,
)


RECIPES = {"layerlock": SCRIPTS / "recipes" / "demo.yaml", "mae": SCRIPTS / "recipes" / "demo-mae.yaml"}
FIRST_STEPS, LAST_STEPS = 10, 30  # steps over which a stage's first and last losses are averaged
TITLES = {"layerlock": "LayerLock", "mae": "plain MAE", "random": "random weights", "constant": "no encoder"}


def heading(number: int, text: str):
    print(f"\n== {number}. {text} ==", flush=True)


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
    print("  encoder         motion accuracy      depth AbsRel      depth R2   (test clips; layer chosen on others)")
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
    exit_when_terminated()
    output, data = args.output_dir, args.output_dir / "data"
    recipes = {name: load_recipe(path) for name, path in RECIPES.items()}
    max_steps = args.max_steps or recipes["layerlock"]["max_steps"]
    began = time.perf_counter()

    heading(1, "Procedural videos")
    write_data(data, args.num_videos)

    for number, name in ((2, "layerlock"), (3, "mae")):
        heading(number, f"Pretraining: {TITLES[name]}, {max_steps} steps")
        settings = shortened(recipes[name], args.max_steps) if args.max_steps else {}
        try:
            pretrain(RECIPES[name], data / "train" / "videos", output / name, settings)
        except RunFailed as error:
            raise SystemExit(f"error: {error}") from None
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
