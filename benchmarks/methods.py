"""What frozen features know after pretraining by each method, at equal optimizer steps and with encoders of one size.

python benchmarks/methods.py --output_dir runs/methods

Every method and seed trains on the procedural clips of the demonstration, which all share, by its demo-sized recipe
in scripts/recipes; methods of several runs (SALT: teacher, then student) divide the steps as their recipes do. Ridge
probes read motion and depth at the layer that does best on held-out training clips; `random` is the encoder with
random weights. Training can be stopped and continued: what is finished is not run again. A run that fails is named,
left out of the results, and makes the program exit with 1 at its end.

Writes results.json, results.md and methods.png.
"""

import argparse
import json
import statistics
import sys
import time
from functools import cached_property
from pathlib import Path

import matplotlib
import torch
from transformers import AutoModel, set_seed
from transformers.utils import logging


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
from layerlock_hf import LayerLockViTConfig  # noqa: E402
from layerlock_hf.evaluation import probe_depths  # noqa: E402
from layerlock_hf.models.configuration_layerlock import architecture_fields  # noqa: E402
from layerlock_hf.training import load_recipe  # noqa: E402
from probe import load_clips, probe  # noqa: E402
from runs import (  # noqa: E402
    SCRIPTS,
    RunFailed,
    exit_when_terminated,
    pretrain,
    read_log,
    read_metrics,
    shortened,
    write_data,
)


matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


# Method -> title and recipes, run one after the other: the model of each is the teacher of the next.
METHODS = {
    "layerlock": ("LayerLock", ("demo",)),
    "mae": ("MAE", ("demo-mae",)),
    "freezing_only": ("freezing only", ("demo-freezing-only",)),
    "vjepa": ("V-JEPA", ("demo-vjepa",)),
    "vjepa_layerlock": ("V-JEPA + LayerLock", ("demo-vjepa-layerlock",)),
    "salt": ("SALT", ("demo-salt-teacher", "demo-salt")),
    "blockwise": ("blockwise", ("demo-blockwise",)),
    "collapse": ("MAE + unfrozen latents", ("demo-collapse",)),
}
RANDOM = "random"
TITLES = {name: title for name, (title, _) in METHODS.items()} | {RANDOM: "random weights"}
COLOURS = dict(zip(TITLES, [*plt.get_cmap("tab10").colors[:7], "black", "grey"], strict=True))
REFERENCE = "demo"  # the recipe that gives steps and sizes

# What must agree for a comparison
SAME_MODEL = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
SAME_CLIPS = ("image_size", "num_frames", "patch_size", "tubelet_size")
SAME_SETTINGS = ("global_batch_size", "frame_stride")
NUM_DIAGNOSES = 40  # per run


def recipe_path(name: str) -> Path:
    return SCRIPTS / "recipes" / f"{name}.yaml"


def model_config(recipe: dict) -> LayerLockViTConfig:
    fields = {name: recipe[name] for name in architecture_fields() if name in recipe}
    return LayerLockViTConfig.from_preset(recipe["preset"], **fields)


def load_checked(name: str) -> dict:
    """A recipe whose encoder, clips and batches are those of the reference.

    Raises:
        ValueError: naming the setting that differs.
    """
    recipe, reference = load_recipe(recipe_path(name)), load_recipe(recipe_path(REFERENCE))
    ours, theirs = model_config(recipe), model_config(reference)
    pairs = {field: (getattr(ours, field), getattr(theirs, field)) for field in SAME_MODEL + SAME_CLIPS}
    pairs |= {field: (recipe.get(field), reference.get(field)) for field in SAME_SETTINGS}
    for field, (value, expected) in pairs.items():
        if value != expected:
            raise ValueError(f"{field} is {value} in {name}.yaml, but {expected} in {REFERENCE}.yaml")
    return recipe


def plan(method: str, max_steps: int, seed: int) -> list[tuple[str, dict]]:
    """The recipes of a method with the settings that make it `max_steps` in all: (recipe, all its settings)."""
    names = METHODS[method][1]
    recipes = [load_checked(name) for name in names]
    total, parts, taken = sum(recipe["max_steps"] for recipe in recipes), [], 0
    for name, recipe in zip(names, recipes, strict=True):
        is_last = name == names[-1]
        steps = max_steps - taken if is_last else round(max_steps * recipe["max_steps"] / total)
        taken += steps
        every = max(1, steps // NUM_DIAGNOSES)
        parts.append((name, recipe | shortened(recipe, steps) | {"seed": seed, "diagnostics_steps": every}))
    return parts


def read_record(path: Path, settings) -> dict | None:
    """What an earlier call left, if it did the same.

    Raises:
        ValueError: if it did something else.
    """
    if not path.is_file():
        return None
    record = json.loads(path.read_text())
    if record["settings"] != settings:
        raise ValueError(f"{path} is of other settings: delete its folder, or choose another --output_dir")
    return record


def write_record(path: Path, record):
    """Whole or not at all."""
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(record, indent=1) + "\n")
    aside.replace(path)


class Benchmark:
    def __init__(self, output: Path, max_steps: int, num_videos: int):
        self.output, self.max_steps, self.num_videos = output, max_steps, num_videos
        self.reference = load_recipe(recipe_path(REFERENCE))
        self.config = model_config(self.reference)
        self.depths = probe_depths(self.config.num_hidden_layers)

    def write_data(self):
        """The clips of all methods and seeds."""
        settings = {"num_videos": self.num_videos}
        self.output.mkdir(parents=True, exist_ok=True)
        if read_record(self.output / "data.json", settings) is None:
            write_data(self.output / "data", self.num_videos)
            write_record(self.output / "data.json", {"settings": settings})

    @cached_property
    def probe_data(self):
        factor = self.reference["resize_factor"]
        return [load_clips(self.output / "data" / "probe" / name, self.config, factor) for name in ("train", "test")]

    def run(self, method: str, seed: int) -> dict:
        """Train and probe, or read what an earlier call has found.

        Raises:
            RunFailed, ValueError: saying what is wrong.
        """
        folder = self.output / method / f"seed_{seed}"
        parts = [] if method == RANDOM else plan(method, self.max_steps, seed)
        settings = [part for _, part in parts] + [{"num_videos": self.num_videos, "seed": seed}]
        result = read_record(folder / "result.json", settings)
        if result is not None:
            return result
        seconds, curve, step, model_folder = 0.0, [], 0, None
        for name, part in parts:
            part_folder = folder / name
            seconds += self.train(name, part | ({"teacher": str(model_folder)} if step else {}), part_folder)
            curve += rank_curve(part_folder, step)
            step, model_folder = step + part["max_steps"], part_folder
        scores = self.probe(model_folder, seed)
        if not parts:
            seconds = None
        last = curve[-1] if curve else dict.fromkeys(("step", "effective_rank", "feature_std"))
        result = {"settings": settings, "method": method, "seed": seed, "seconds": seconds, "curve": curve}
        result |= {"probes": scores, "last": last}
        folder.mkdir(parents=True, exist_ok=True)
        write_record(folder / "result.json", result)
        return result

    def train(self, name: str, settings: dict, folder: Path) -> float:
        """Seconds that the Trainer took."""
        record = read_record(folder / "finished.json", settings)
        if record is None:
            given = load_recipe(recipe_path(name))
            changed = {key: value for key, value in settings.items() if given.get(key) != value}
            pretrain(recipe_path(name), self.output / "data" / "train" / "videos", folder, changed)
            seconds = next(row["train_runtime"] for row in reversed(read_log(folder)) if "train_runtime" in row)
            record = {"settings": settings, "seconds": seconds}
            write_record(folder / "finished.json", record)
        return record["seconds"]

    def probe(self, folder: Path | None, seed: int) -> dict:
        if folder is None:
            set_seed(seed)
            model = AutoModel.from_config(self.config)
        else:
            model = AutoModel.from_pretrained(folder)
        return probe(model.eval(), *self.probe_data, self.depths)


def rank_curve(folder: Path, offset: int) -> list[dict]:
    """The measurements of collapse over the steps; of several depths that are read the deepest."""
    curve = []
    for row in read_metrics(folder):
        names = [name for name in row if name.endswith("effective_rank")]
        if names:
            prefix = max(names, key=source_of).removesuffix("effective_rank")
            values = {name: row[prefix + name] for name in ("effective_rank", "feature_std")}
            curve.append({"step": offset + row["step"], **values})
    return curve


def source_of(name: str) -> int:
    """The depth in `depth_4/effective_rank`; 0 for a name without one."""
    return int(name.split("/")[0].removeprefix("depth_")) if "/" in name else 0


QUANTITIES = {
    "motion_accuracy": lambda result: result["probes"]["motion_accuracy"],
    "depth_abs_rel": lambda result: result["probes"]["depth_abs_rel"],
    "depth_r2": lambda result: result["probes"]["depth_r2"],
    "effective_rank": lambda result: result["last"]["effective_rank"],
    "feature_std": lambda result: result["last"]["feature_std"],
    "seconds": lambda result: result["seconds"],
}


def summarise(results: list[dict]) -> dict[str, dict]:
    """Per method: for each quantity its mean and its (sample) standard deviation over the seeds."""
    summary = {}
    for method in TITLES:
        own = [result for result in results if result["method"] == method]
        if not own:
            continue
        summary[method] = {"seeds": [result["seed"] for result in own]}
        for name, quantity in QUANTITIES.items():
            values = [quantity(result) for result in own]
            if None not in values:
                deviation = statistics.stdev(values) if len(values) > 1 else None
                summary[method][name] = {"mean": statistics.fmean(values), "std": deviation}
        for task in ("motion", "depth"):
            summary[method][f"{task}_layers"] = [result["probes"][f"{task}_layer"] for result in own]
    return summary


def table(summary: dict[str, dict], max_steps: int, failures: list[str]) -> str:
    """The results in Markdown."""

    def cell(row: dict, name: str, pattern: str, scale: float = 1) -> str:
        if name not in row:
            return ""
        values = [value for value in (row[name]["mean"], row[name]["std"]) if value is not None]
        return " ± ".join(format(value * scale, pattern) for value in values)

    lines = [
        f"{max_steps} optimizer steps each; mean ± standard deviation over seeds.",
        "",
        "| method | motion, % (chance 12.5) | depth AbsRel | effective rank | feature std | seconds | seeds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for method, row in summary.items():
        cells = [TITLES[method], cell(row, "motion_accuracy", ".1f", 100), cell(row, "depth_abs_rel", ".3f")]
        cells += [cell(row, "effective_rank", ".1f"), cell(row, "feature_std", ".3g"), cell(row, "seconds", ".0f")]
        lines.append(f"| {' | '.join([*cells, str(len(row['seeds']))])} |")
    lines += ["", *(f"Failed: {failure}" for failure in failures)] if failures else []
    return "\n".join(lines) + "\n"


def plot(results: list[dict], summary: dict[str, dict], path: Path):
    """Probes of every method, and the effective rank over the steps."""
    plt.rcParams.update({"font.size": 13, "axes.spines.top": False, "axes.spines.right": False})
    figure, (probes, ranks) = plt.subplots(1, 2, figsize=(16, 6.5))
    for method, row in summary.items():
        motion, depth = row["motion_accuracy"], row["depth_abs_rel"]
        probes.errorbar(
            depth["mean"],
            100 * motion["mean"],
            xerr=depth["std"],
            yerr=None if motion["std"] is None else 100 * motion["std"],
            color=COLOURS[method],
            marker="X" if method == RANDOM else "o",
            markersize=10,
            capsize=3,
            linestyle="none",
            label=TITLES[method],
        )
        curves = [result["curve"] for result in results if result["method"] == method and result["curve"]]
        for curve in curves:
            steps, values = [point["step"] for point in curve], [point["effective_rank"] for point in curve]
            ranks.plot(steps, values, color=COLOURS[method], alpha=0.25, linewidth=1)
        if curves:
            mean = [statistics.fmean(point["effective_rank"] for point in points) for points in zip(*curves)]  # noqa: B905
            steps = [point["step"] for point in curves[0]][: len(mean)]
            ranks.plot(steps, mean, color=COLOURS[method], linewidth=2.5, marker="o" if len(mean) == 1 else None)
    probes.set(xlabel="depth AbsRel (lower is better)", ylabel="motion accuracy, % (higher is better)")
    probes.set_title("Probes of the frozen encoder")
    probes.invert_xaxis()
    ranks.set(xlabel="optimizer step", ylabel="effective rank")
    ranks.set_ylim(bottom=0)
    ranks.set_title("Effective rank of the features that are read")
    for axes in (probes, ranks):
        axes.grid(alpha=0.3)
    figure.legend(*probes.get_legend_handles_labels(), loc="lower center", ncols=5, frameon=False)
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def report(output: Path, results: list[dict], max_steps: int, failures: list[str]) -> str:
    summary = summarise(results)
    text = table(summary, max_steps, failures)
    record = {"max_steps": max_steps, "threads": torch.get_num_threads(), "failures": failures, "methods": summary}
    write_record(output / "results.json", record | {"runs": results})
    (output / "results.md").write_text(text)
    if results:
        plot(results, summary, output / "methods.png")
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/methods"), help="Where everything goes.")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="Default: all.")
    parser.add_argument("--seeds", type=int, default=3, help="Number of seeds, from 0.")
    parser.add_argument("--max_steps", type=int, help="Steps of each method (default: those of demo.yaml).")
    parser.add_argument("--num_videos", type=int, default=400, help="Videos to pretrain on.")
    args = parser.parse_args()
    for name in ("seeds", "max_steps", "num_videos"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1")
    exit_when_terminated()
    logging.disable_progress_bar()
    max_steps = args.max_steps or load_recipe(recipe_path(REFERENCE))["max_steps"]
    benchmark = Benchmark(args.output_dir, max_steps, args.num_videos)
    try:
        benchmark.write_data()
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None

    # Seed after seed, so that a benchmark that is stopped has compared all methods
    todo = [(method, seed) for seed in range(args.seeds) for method in [RANDOM, *args.methods]]
    results, failures = [], []
    for number, (method, seed) in enumerate(todo, 1):
        print(f"\n== {number} of {len(todo)}: {TITLES[method]}, seed {seed} ==", flush=True)
        start = time.perf_counter()
        try:
            result = benchmark.run(method, seed)
        except (RunFailed, ValueError) as error:
            failures.append(f"{method}, seed {seed}: {error}")
            print(f"FAILED: {failures[-1]}", flush=True)
        else:
            results.append(result)
            probes = result["probes"]
            print(
                f"motion {probes['motion_accuracy']:.1%} (layer {probes['motion_layer']}), AbsRel "
                f"{probes['depth_abs_rel']:.3f} (layer {probes['depth_layer']}); {time.perf_counter() - start:.0f} s",
                flush=True,
            )
        report(args.output_dir, results, max_steps, failures)
    print(f"\n{report(args.output_dir, results, max_steps, failures)}")
    for name in ("results.json", "results.md", "methods.png"):
        print(f"  {args.output_dir / name}")
    if failures:
        raise SystemExit(f"error: {len(failures)} of {len(todo)} runs failed: {'; '.join(failures)}")


if __name__ == "__main__":
    main()
