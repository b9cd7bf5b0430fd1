"""The demonstration: procedural clips, a LayerLock and an MAE run on them, and what the two encoders learned.

python scripts/demo.py --output_dir runs/demo

It takes nine and a half minutes on two idle CPU cores. `--max_steps 40 --num_videos 32` is a quick test of the whole.
"""

import programs  # isort: skip  # before what takes long to import
import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from demo_plots import plot_losses, plot_reconstruction
from layerlock_hf.data import MaskArguments
from layerlock_hf.training import load_recipe
from layerlock_hf.utils.bounds import MAX_SEED
from layerlock_hf.utils.cores import count_cores
from outputs import check_output
from runs import (
    SCRIPTS,
    Run,
    RunFailed,
    alone,
    environment,
    exit_when_terminated,
    read_metrics,
    run_together,
    shortened,
    summarise_stages,
    write_data,
)


RECIPES = {"layerlock": SCRIPTS / "recipes" / "demo.yaml", "mae": SCRIPTS / "recipes" / "demo-mae.yaml"}
TITLES = {"layerlock": "LayerLock", "mae": "plain MAE"}
REPORTS = ("probes.png", "loss.png", "reconstruction.png", "summary.json")


def heading(number: int, text: str):
    print(f"\n== {number}. {text} ==", flush=True)


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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=programs.folder, default=Path("runs/demo"), help="Where everything goes.")
    parser.add_argument(
        "--max_steps", type=programs.whole(1), help="Steps of each run (default: those of the recipe)."
    )
    parser.add_argument(
        "--seed",
        type=programs.whole(0, MAX_SEED),
        default=0,
        help="Of weights, clips and masks; the videos stay the same.",
    )
    parser.add_argument("--num_videos", type=programs.whole(1), default=1500, help="Videos to pretrain on.")
    args = parser.parse_args()
    output, data = args.output_dir, args.output_dir / "data"
    with programs.errors_told():
        check_output(output, ("probes.json", *REPORTS))
        for folder in (data, *(output / name for name in RECIPES)):
            check_output(folder, ())
    exit_when_terminated()
    recipes = {name: load_recipe(path) for name, path in RECIPES.items()}
    max_steps = args.max_steps or recipes["layerlock"]["max_steps"]
    began = time.perf_counter()
    if args.max_steps is None:
        print("This takes nine and a half minutes on two idle CPU cores, more where they are slow or busy.")

    heading(1, "Procedural videos")
    write_data(data, args.num_videos)

    heading(2, f"Pretraining, {max_steps} steps: {' and '.join(TITLES[name] for name in RECIPES)} side by side")
    runs = [
        Run(
            RECIPES[name],
            data / "train" / "videos",
            output / name,
            {"seed": args.seed, **(shortened(recipe, args.max_steps) if args.max_steps else {})},
            num_threads=max(1, count_cores() // len(RECIPES)),
            name=name,
        )
        for name, recipe in recipes.items()
    ]
    try:
        run_together(map(alone, runs), at_once=len(runs))
    except RunFailed as error:
        raise SystemExit(f"error: {error}") from None
    stages = summarise_stages(output / "layerlock", recipes["layerlock"]["global_batch_size"], max_steps)
    print("\nLayerLock, stage by stage:")
    print_stages(stages)
    plot_losses({name: read_metrics(output / name) for name in RECIPES}, stages, max_steps, output / "loss.png")
    plot_reconstruction(
        output / "mae",
        sorted((data / "probe" / "test" / "videos").glob("*.mp4"))[:3],
        MaskArguments(**{key: value for key, value in recipes["mae"].items() if key.startswith("mask")}).build(),
        recipes["mae"]["resize_factor"],
        output / "reconstruction.png",
    )

    heading(3, "What the frozen encoders know, beside controls")
    command = [sys.executable, str(SCRIPTS / "probe.py"), "--data", str(data / "probe")]
    command += ["--models", *(f"{name}={output / name}" for name in RECIPES), "--output", str(output / "probes.json")]
    command += ["--resize_factor", str(recipes["layerlock"]["resize_factor"])]
    try:  # in a process of its own, which gives its memory back
        subprocess.run(command, check=True, env=environment())
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"error: the probes failed with exit status {error.returncode}, see above") from None

    seconds = time.perf_counter() - began
    summary = {"stages": stages, "probes": json.loads((output / "probes.json").read_text()), "seconds": seconds}
    (output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(f"\nDone in {seconds:.0f} s. Look at:")
    for name in REPORTS:
        print(f"  {output / name}")
    for name in RECIPES:
        print(f"  {output / name}: AutoModel.from_pretrained('{output / name}')")


if __name__ == "__main__":
    main()
