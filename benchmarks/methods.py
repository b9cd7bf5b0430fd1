"""What frozen features know after pretraining by each method, at equal optimizer steps and with encoders of one size.

python benchmarks/methods.py --output_dir runs/methods

Every method and seed trains on the procedural clips of the demonstration, which all share and which are decoded once,
by its demo-sized recipe; methods of several runs (SALT: teacher, then student) divide the steps as their recipes do.
Probes read motion and depth of full scenes, as `layerlock probe` does, at the layer that does best on held-out clips;
`random` is the encoder with random weights. Training can be stopped and continued: what is finished is not run again.
A run that fails is named, left out of the results, and makes the program exit with 1 at its end.

Writes results.json, results.md and methods.png.
"""

import argparse
import statistics
from collections.abc import Generator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import matplotlib
import torch
from transformers import AutoModel, set_seed
from transformers.utils import logging

import comparing
from comparing import read_record, write_record
from layerlock_hf.evaluation import climb, load_clips, probe_depths
from layerlock_hf.pretraining.jobs import Run, RunFailed, exit_when_terminated, run_together
from layerlock_hf.pretraining.logs import read_log, read_metrics
from layerlock_hf.recipes import load_recipe
from layerlock_hf.recipes.shortening import shortened


matplotlib.use("Agg")
import matplotlib.pyplot as plt


@dataclass(frozen=True)
class Entry:
    """A row of the table.

    Args:
        title: its name there.
        recipes: run one after the other; the model of each is the teacher of the next.
        settings: what changes in all of them.
    """

    title: str
    recipes: tuple[str, ...]
    settings: dict = field(default_factory=dict)


METHODS = {
    "mae": Entry("MAE", ("demo-mae",)),
    "layerlock": Entry("LayerLock, a third of the patches", ("demo",)),
    "layerlock_all_patches": Entry("LayerLock, all patches", ("demo-layerlock-all-patches",)),
    "freezing_only": Entry("freezing only", ("demo-freezing-only",)),
    "vjepa_future": Entry("V-JEPA", ("demo-vjepa-future",)),
    "vjepa_layerlock": Entry("V-JEPA + LayerLock", ("demo-vjepa-layerlock",)),
    "collapse": Entry("MAE + unfrozen latents", ("demo-collapse",)),
    "mae_random": Entry("MAE, random masks", ("demo-mae-random",)),
    "mae_tube": Entry("MAE, tubes", ("demo-mae-tube",)),
    "vjepa": Entry("V-JEPA, multi-block", ("demo-vjepa",)),
    "salt": Entry("SALT, multi-block", ("demo-salt-teacher", "demo-salt")),
    "blockwise": Entry("blockwise, tubes", ("demo-blockwise",)),
    "layerlock_zero_heads": Entry("LayerLock, heads from zero", ("demo",), {"heads_start_at_mean": False}),
}
RANDOM = "random"
TITLES = {name: entry.title for name, entry in METHODS.items()} | {RANDOM: "random weights"}
COLOURS = dict(zip(TITLES, plt.get_cmap("tab20").colors, strict=False))
NUM_DIAGNOSES = 40
PROGRAM = (str(Path(__file__).with_name("pretrain_decoded.py")),)


def plan(method: str, max_steps: int, seed: int, num_diagnoses: int = NUM_DIAGNOSES) -> list[tuple[str, dict]]:
    """The recipes of a method with the settings that make it `max_steps` in all: (recipe, all its settings)."""
    names = METHODS[method].recipes
    recipes = [comparing.load_checked(name) for name in names]
    total, parts, taken = sum(recipe["max_steps"] for recipe in recipes), [], 0
    for name, recipe in zip(names, recipes, strict=True):
        is_last = name == names[-1]
        steps = max_steps - taken if is_last else round(max_steps * recipe["max_steps"] / total)
        taken += steps
        every = max(1, steps // num_diagnoses) if num_diagnoses else 0
        changes = {"seed": seed, "diagnostics_steps": every, "dataloader_num_workers": 0} | METHODS[method].settings
        parts.append((name, recipe | shortened(recipe, steps) | changes))
    return parts


class Benchmark:
    def __init__(self, output: Path, max_steps: int, num_videos: int, num_diagnoses: int, settings: dict):
        self.output, self.max_steps, self.num_videos = output, max_steps, num_videos
        self.num_diagnoses, self.settings = num_diagnoses, settings
        self.reference = load_recipe(comparing.recipe_path(comparing.REFERENCE))
        self.config = comparing.model_config(self.reference)
        self.depths = probe_depths(self.config.num_hidden_layers)
        self.results, self.failures = [], []

    @cached_property
    def probe_data(self):
        factor = self.reference["resize_factor"]
        return tuple(
            load_clips(self.output / "data" / "probe" / name, self.config, factor) for name in ("train", "test")
        )

    def job(self, method: str, seed: int) -> Generator[Run, None, None]:
        """Train and probe, or read what an earlier call has found; the result is added to `results`, or what failed
        to `failures`."""
        try:
            yield from self._job(method, seed)
        except (RunFailed, ValueError) as error:
            self.failures.append(f"{method}, seed {seed}: {error}")
            print(f"FAILED: {self.failures[-1]}", flush=True)
        else:
            probes = self.results[-1]["probes"]
            print(
                f"{TITLES[method]}, seed {seed}: motion {probes['motion_accuracy']:.1%} (layer "
                f"{probes['motion_layer']}), AbsRel {probes['depth_abs_rel']:.3f} (layer {probes['depth_layer']})",
                flush=True,
            )
        report(self.output, self.results, self.max_steps, self.failures)

    def _job(self, method: str, seed: int) -> Generator[Run, None, None]:
        folder = self.output / method / f"seed_{seed}"
        parts = [] if method == RANDOM else plan(method, self.max_steps, seed, self.num_diagnoses)
        parts = [(name, part | self.settings) for name, part in parts]
        settings = [part for _, part in parts] + [{"num_videos": self.num_videos, "seed": seed}]
        result = read_record(folder / "result.json", settings)
        if result is None:
            seconds, flops, curve, step, model_folder = 0.0, 0.0, [], 0, None
            for name, part in parts:
                part_folder = folder / name
                teacher = {"teacher": str(model_folder)} if step else {}
                cost = yield from self._train(name, part | teacher, part_folder)
                seconds, flops = seconds + cost["seconds"], flops + cost["flops"]
                curve += rank_curve(part_folder, step)
                step, model_folder = step + part["max_steps"], part_folder
            result = {"settings": settings, "method": method, "seed": seed, "curve": curve}
            result |= {"seconds": seconds, "flops": flops} if parts else {}
            result |= {"probes": self.probe(model_folder, seed), "last": curve[-1] if curve else {}}
            folder.mkdir(parents=True, exist_ok=True)
            write_record(folder / "result.json", result)
        self.results.append(result)

    def _train(self, name: str, settings: dict, folder: Path) -> Generator[Run, None, dict]:
        """What it took: the seconds of the Trainer, and the counted FLOPs."""
        record = read_record(folder / "finished.json", settings)
        if record is None:
            given = load_recipe(comparing.recipe_path(name))
            changed = {key: value for key, value in settings.items() if given.get(key) != value}
            label = str(folder.relative_to(self.output))
            videos = self.output / "data" / "train" / "videos"
            yield Run(comparing.recipe_path(name), videos, folder, changed, 1, label, PROGRAM)
            seconds = next(row["train_runtime"] for row in reversed(read_log(folder)) if "train_runtime" in row)
            record = {"settings": settings, "seconds": seconds, "flops": read_metrics(folder)[-1]["total_flops"]}
            write_record(folder / "finished.json", record)
        return record

    def probe(self, folder: Path | None, seed: int) -> dict:
        if folder is None:
            set_seed(seed)
            model = AutoModel.from_config(self.config)
        else:
            model = AutoModel.from_pretrained(folder)
        return climb(model.eval(), {"full": self.probe_data}, self.depths)


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


# Name -> where a result has it, and its title, format and factor in the table
QUANTITIES = {
    "motion_accuracy": (("probes", "motion_accuracy"), "motion, % (chance 12.5)", ".1f", 100),
    "motion_accuracy_attention": (("probes", "motion_accuracy_attention"), "by attention", ".1f", 100),
    "depth_abs_rel": (("probes", "depth_abs_rel"), "depth AbsRel", ".3f", 1),
    "depth_r2": (("probes", "depth_r2"), "depth R2", ".2f", 1),
    "effective_rank": (("last", "effective_rank"), "effective rank", ".1f", 1),
    "feature_std": (("last", "feature_std"), "feature std", ".3g", 1),
    "seconds": (("seconds",), "seconds", ".0f", 1),
    "flops": (("flops",), "TFLOP", ".1f", 1e-12),
}


def quantity(result: dict, name: str):
    """A number of a result, None if it has none."""
    for key in QUANTITIES[name][0]:
        result = result.get(key)
        if result is None:
            return None
    return result


def summarise(results: list[dict]) -> dict[str, dict]:
    """Per method: for each quantity its mean and its (sample) standard deviation over the seeds."""
    summary = {}
    for method in TITLES:
        own = [result for result in results if result["method"] == method]
        if not own:
            continue
        summary[method] = {"seeds": [result["seed"] for result in own]}
        for name in QUANTITIES:
            values = [quantity(result, name) for result in own]
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
        f"| {' | '.join(['method', *(title for _, title, _, _ in QUANTITIES.values()), 'seeds'])} |",
        f"| {' | '.join(['---'] * (len(QUANTITIES) + 2))} |",
    ]
    for method, row in summary.items():
        cells = [cell(row, name, pattern, scale) for name, (_, _, pattern, scale) in QUANTITIES.items()]
        lines.append(f"| {' | '.join([TITLES[method], *cells, str(len(row['seeds']))])} |")
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
    parser.add_argument("--learning_rate", type=float, help="Of all methods (default: that of each recipe).")
    parser.add_argument("--num_videos", type=int, default=1500, help="Videos to pretrain on.")
    parser.add_argument(
        "--num_diagnoses",
        type=int,
        default=NUM_DIAGNOSES,
        help="Measurements of the rank in a run, which take time; 0 to time the training alone.",
    )
    parser.add_argument("--at_once", type=int, default=2, help="Runs at the same time, of one thread each.")
    args = parser.parse_args()
    for name in ("seeds", "max_steps", "num_videos", "at_once"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if args.num_diagnoses < 0:
        parser.error("--num_diagnoses must be at least 0")
    exit_when_terminated()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    max_steps = args.max_steps or load_recipe(comparing.recipe_path(comparing.REFERENCE))["max_steps"]
    settings = {} if args.learning_rate is None else {"learning_rate": args.learning_rate}
    benchmark = Benchmark(args.output_dir, max_steps, args.num_videos, args.num_diagnoses, settings)
    try:
        comparing.write_data_once(args.output_dir, args.num_videos)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None

    # Seed after seed, so that a benchmark that is stopped has compared all methods
    todo = [(method, seed) for seed in range(args.seeds) for method in [RANDOM, *args.methods]]
    run_together((benchmark.job(*which) for which in todo), at_once=args.at_once)
    results, failures = benchmark.results, benchmark.failures
    print(f"\n{report(args.output_dir, results, max_steps, failures)}")
    for name in ("results.json", "results.md", "methods.png"):
        print(f"  {args.output_dir / name}")
    if failures:
        raise SystemExit(f"error: {len(failures)} of {len(todo)} runs failed: {'; '.join(failures)}")


if __name__ == "__main__":
    main()
