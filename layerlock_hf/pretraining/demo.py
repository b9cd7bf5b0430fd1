"""The demonstration: procedural clips, a LayerLock and an MAE run on them, and what the two encoders learned."""

import json
import subprocess
import sys
import time
from pathlib import Path

from ..data import MaskArguments
from ..recipes import load_recipe
from ..recipes.shortening import shortened
from ..utils.cores import count_cores
from ..utils.outputs import check_output
from ..utils.records import write_record
from .demo_data import write_data
from .demo_plots import plot_losses, plot_reconstruction
from .jobs import Run, RunFailed, alone, environment, run_together
from .logs import read_metrics, summarise_stages


RECIPES = {"layerlock": "demo", "mae": "demo-mae"}
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


def run_demo(output: Path, max_steps: int | None = None, seed: int = 0, num_videos: int = 1500) -> dict:
    """Everything, with headings, into a folder; returns what `summary.json` holds.

    Args:
        output: the folder.
        max_steps: of each run; by default those of the recipe.
        seed: of weights, clips and masks; the videos stay the same.
        num_videos: to pretrain on.

    Raises:
        ValueError: if the folder cannot be written.
        RunFailed: naming the part that failed.
    """
    data = output / "data"
    check_output(output, ("probes.json", *REPORTS))
    for folder in (data, *(output / name for name in RECIPES)):
        check_output(folder, ())
    recipes = {name: load_recipe(path) for name, path in RECIPES.items()}
    settings = {name: shortened(recipe, max_steps) if max_steps else {} for name, recipe in recipes.items()}
    is_short = max_steps is not None
    max_steps = max_steps or recipes["layerlock"]["max_steps"]
    began = time.perf_counter()
    if not is_short:
        print("This takes ten minutes on two idle CPU cores, more where they are slow or busy.")

    heading(1, "Procedural videos")
    write_data(data, num_videos)

    heading(2, f"Pretraining, {max_steps} steps: {' and '.join(TITLES[name] for name in RECIPES)} side by side")
    runs = [
        Run(
            RECIPES[name],
            data / "train" / "videos",
            output / name,
            {"seed": seed, **settings[name]},
            num_threads=max(1, count_cores() // len(RECIPES)),
            name=name,
        )
        for name in RECIPES
    ]
    run_together(map(alone, runs), at_once=len(runs))
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
    command = [sys.executable, "-m", "layerlock_hf.cli.probe", "--data", str(data / "probe")]
    command += ["--models", *(f"{name}={output / name}" for name in RECIPES), "--output", str(output / "probes.json")]
    command += ["--resize_factor", str(recipes["layerlock"]["resize_factor"])]
    try:  # in a process of its own, which gives its memory back
        subprocess.run(command, check=True, env=environment())
    except subprocess.CalledProcessError as error:
        raise RunFailed(f"the probes failed with exit status {error.returncode}: see above") from None

    seconds = time.perf_counter() - began
    summary = {"stages": stages, "probes": json.loads((output / "probes.json").read_text()), "seconds": seconds}
    write_record(output / "summary.json", summary)
    print(f"\nDone in {seconds:.0f} s. Look at:")
    for name in REPORTS:
        print(f"  {output / name}")
    for name in RECIPES:
        print(f"  {output / name}: AutoModel.from_pretrained('{output / name}')")
    return summary
