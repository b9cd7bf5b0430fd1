"""Seconds of training until a probe of motion passes 30%: LayerLock, MAE and `transformers.VideoMAEForPreTraining`.

OMP_WAIT_POLICY=passive python benchmarks/time_to_quality.py --output_dir runs/time_to_quality

All train encoders of one size, by the batches and schedules of the demonstration's recipes (stretched to the steps of
each contender), on the same clips, in this process. VideoMAE is trained the usual way: tube masks of 75%, each patch
normalised, a decoder of half the width, a learning rate that short runs of another seed have chosen by held-out clips.

Videos are decoded once, before anything is timed, so that time is time of training: making clips and masks, steps,
and switches of stages, but not probes, which come every `--probe_seconds`. A run that has not done its steps after
`--max_seconds` is cut, its learning rate still high. Nothing else should run on the machine: time that others took
shows where the seconds exceed the processor's over the threads. Probes are ridge regressions on features of the frozen
encoder; a held-out fifth of the fitted clips chooses layer and strength, and clips of other videos are classified.
Contenders take turns seed by seed. The benchmark can be stopped and continued: runs that are finished are not run
again.

Writes results.json, results.md and time_to_quality.png.
"""

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from transformers.utils import logging

from comparing import read_record, write_data_once, write_record
from layerlock_hf.data.procedural import MOTIONS
from layerlock_hf.pretraining.jobs import exit_when_terminated
from timed_runs import Data, Ours, Stopwatch, VideoMAE, probe_motion


matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


CHANCE = 1 / len(MOTIONS)
TUNING_SEED = 1000  # of no run that is compared

CONTENDERS = {
    "layerlock": Ours("LayerLock", "demo"),
    "mae": Ours("MAE", "demo-mae"),
    "videomae": VideoMAE("VideoMAE (Transformers)", "demo-mae", (5e-4, 1e-3, 2e-3)),
}
COLOURS = dict(zip(CONTENDERS, plt.get_cmap("tab10").colors, strict=False))


@dataclass(frozen=True)
class Benchmark:
    """Runs what an earlier call has not finished.

    Attributes:
        output: where the record of every run goes.
        data: what all train on.
        shared: settings of the data and of the machine, which decide what is found, too.
    """

    output: Path
    data: Data
    shared: dict

    def run(self, contender: Ours, settings: dict, path: Path, limits: dict) -> dict:
        """The record of a run: {settings, curve, flops}.

        Args:
            limits: probe_seconds and max_seconds.

        Raises:
            ValueError: if the record is there and of other settings.
        """
        # As JSON gives it back
        everything = json.loads(json.dumps(contender.describe(settings) | self.shared | limits))
        record = read_record(path, everything)
        if record is None:
            stopwatch = Stopwatch(
                lambda encoder: probe_motion(encoder, *self.data.probe), settings["max_steps"], **limits
            )
            flops = contender.train(settings, self.data, stopwatch)
            record = {"settings": everything, "curve": stopwatch.curve, "flops": flops}
            path.parent.mkdir(parents=True, exist_ok=True)
            write_record(path, record)
        return record

    def choose_rate(self, name: str, rates: tuple[float, ...], num_steps: int, max_seconds: float) -> float | None:
        """The rate whose run of so many steps does best on held-out clips; one alone needs none, and None is the
        recipe's."""
        held_out = {}
        for rate in rates if len(rates) > 1 else ():
            print(
                f"\n== {CONTENDERS[name].title}, learning rate {rate:g}: {num_steps} steps to choose it ==", flush=True
            )
            settings = CONTENDERS[name].settings(num_steps, TUNING_SEED, rate)
            limits = {"probe_seconds": max_seconds, "max_seconds": max_seconds}
            record = self.run(CONTENDERS[name], settings, self.output / name / f"rate_{rate:g}.json", limits)
            held_out[rate] = record["curve"][-1]["held_out"]
        return max(held_out, key=held_out.get) if held_out else next(iter(rates), None)


def seconds_to(curve: list[dict], threshold: float) -> float | None:
    """When the accuracy first passes the threshold, on a line from probe to probe; None if it never does."""
    before = None
    for point in curve:
        if point["accuracy"] >= threshold:
            if before is None:
                return point["seconds"]
            share = (threshold - before["accuracy"]) / (point["accuracy"] - before["accuracy"])
            return before["seconds"] + share * (point["seconds"] - before["seconds"])
        before = point
    return None


def summarise(records: list[dict], threshold: float) -> dict:
    """What the runs of one contender, one per seed, came to."""
    ends = [record["curve"][-1] for record in records]
    flops = [record["flops"] for record in records if record["flops"] is not None]
    return {
        "seconds_to_threshold": [seconds_to(record["curve"], threshold) for record in records],
        "best_accuracy": [max(point["accuracy"] for point in record["curve"]) for record in records],
        "steps": [end["step"] for end in ends],
        "max_steps": [record["settings"]["max_steps"] for record in records],
        "seconds": [end["seconds"] for end in ends],
        "seconds_per_step": statistics.fmean(end["seconds"] / end["step"] for end in ends),
        "processor_seconds_per_step": statistics.fmean(end["processor_seconds"] / end["step"] for end in ends),
        "flops_per_step": statistics.fmean(flops) if flops else None,
        "learning_rate": records[0]["settings"]["learning_rate"],
    }


def spread(values: list[float], pattern: str) -> str:
    """Mean, and smallest and largest in brackets."""
    mean, low, high = (format(value, pattern) for value in (statistics.fmean(values), min(values), max(values)))
    return f"{mean} ({low} to {high})"


def table(summary: dict[str, dict], threshold: float, max_seconds: float, threads: int) -> str:
    """The results in Markdown."""
    lines = [
        f"{threads} threads; mean (smallest to largest) over seeds; chance {CHANCE:.1%}.",
        "",
        f"| contender | seconds to {threshold:.0%} motion | best motion within {max_seconds:g} s, % | seconds "
        "| steps | seconds a step | processor seconds a step | GFLOP a step | learning rate | seeds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in summary.items():
        reached = [value for value in row["seconds_to_threshold"] if value is not None]
        num_seeds, never = len(row["steps"]), f"not within {max_seconds:g} s"
        if reached:
            missing = num_seeds - len(reached)
            time_cell = spread(reached, ".0f") + (f"; {missing} of {num_seeds} {never}" if missing else "")
        else:
            time_cell = never
        steps = spread(row["steps"], ".0f")
        if row["steps"] != row["max_steps"]:
            steps += f" of {row['max_steps'][0]}, cut"
        flops = "" if row["flops_per_step"] is None else f"{row['flops_per_step'] / 1e9:.1f}"
        cells = [CONTENDERS[name].title, time_cell, spread([100 * value for value in row["best_accuracy"]], ".1f")]
        cells += [spread(row["seconds"], ".0f"), steps, f"{row['seconds_per_step']:.3f}"]
        cells += [f"{row['processor_seconds_per_step']:.3f}", flops]
        lines.append(f"| {' | '.join([*cells, format(row['learning_rate'], 'g'), str(num_seeds)])} |")
    return "\n".join(lines) + "\n"


def plot(runs: dict[str, list[dict]], threshold: float, path: Path):
    """Accuracy over seconds: a thin line per seed, and their mean as long as all go on."""
    plt.rcParams.update({"font.size": 13, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(figsize=(11, 6.5))
    for name, records in runs.items():
        lines = []
        for record in records:
            seconds, values = zip(*((point["seconds"], point["accuracy"]) for point in record["curve"]), strict=True)
            lines.append((seconds, [100 * value for value in values]))
            axes.plot(*lines[-1], color=COLOURS[name], alpha=0.35, linewidth=1)
        times = np.linspace(0, min(seconds[-1] for seconds, _ in lines), 200)
        mean = np.mean([np.interp(times, *line) for line in lines], axis=0)
        axes.plot(times, mean, color=COLOURS[name], linewidth=3, label=CONTENDERS[name].title)
    for value, style, label in ((threshold, "--", f"{threshold:.0%}"), (CHANCE, ":", "chance")):
        axes.axhline(100 * value, color="grey", linestyle=style, linewidth=1.2, label=label)
    axes.set(xlabel="seconds of training", ylabel="motion accuracy of the frozen encoder, %")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def report(output: Path, runs: dict[str, list[dict]], args: argparse.Namespace) -> str:
    """Write what is known so far; returns the table."""
    summary = {name: summarise(records, args.threshold) for name, records in runs.items()}
    text = table(summary, args.threshold, args.max_seconds, args.threads)
    write_record(output / "results.json", {"threshold": args.threshold, "contenders": summary, "runs": runs})
    (output / "results.md").write_text(text)
    plot(runs, args.threshold, output / "time_to_quality.png")
    return text


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/time_to_quality"), help="Where everything goes.")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--data", type=Path, help="Folder of `runs.write_data` (default: clips are rendered).")
    source.add_argument("--num_videos", type=int, default=1500, help="Videos to render for training.")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help="Default: all.")
    parser.add_argument("--seeds", type=int, default=3, help="Number of seeds, from 0.")
    parser.add_argument(
        "--max_seconds", type=float, default=600.0, help="Seconds of training after which to cut a run."
    )
    parser.add_argument("--probe_seconds", type=float, default=60.0, help="Seconds of training between probes.")
    parser.add_argument("--threshold", type=float, default=0.3, help="Motion accuracy to be passed.")
    parser.add_argument("--fit_clips", type=int, default=600, help="Most clips to fit a probe to, one per video.")
    parser.add_argument("--test_clips", type=int, default=600, help="Most clips to test a probe on, one per video.")
    parser.add_argument("--tuning_steps", type=int, default=500, help="Steps of the runs that choose a learning rate.")
    parser.add_argument("--threads", type=int, default=2, help="Threads of all computations.")
    for name, contender in CONTENDERS.items():
        title, known = contender.title, contender.learning_rates or "that of the recipe"
        parser.add_argument(f"--{name}_steps", type=int, default=2000, help=f"Steps of {title}, and of its schedules.")
        parser.add_argument(
            f"--{name}_learning_rates",
            type=float,
            nargs="+",
            default=contender.learning_rates,
            help=f"Learning rates of {title} to choose from (default: {known}).",
        )
    args = parser.parse_args()
    for name, value in vars(args).items():
        numbers = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(number, (int, float)) and number <= 0 for number in numbers):
            parser.error(f"--{name} must be above 0, got {' '.join(map(str, numbers))}")
    return args


def main():
    args = parse_arguments()
    exit_when_terminated()
    logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    try:
        run_all(args)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(f"stopped: what is finished is in {args.output_dir}; start again to go on") from None


def run_all(args: argparse.Namespace):
    folder = args.data or write_data_once(args.output_dir, args.num_videos)
    data = Data.load(folder, args.fit_clips, args.test_clips)
    sizes = {"num_videos": len(data.frames), "fit_clips": len(data.probe[0]), "test_clips": len(data.probe[2])}
    print(", ".join(f"{name} {size}" for name, size in sizes.items()), flush=True)
    benchmark = Benchmark(args.output_dir, data, sizes | {"data": str(folder.resolve()), "threads": args.threads})
    limits = {"probe_seconds": args.probe_seconds, "max_seconds": args.max_seconds}
    rates = {
        name: benchmark.choose_rate(
            name, tuple(getattr(args, f"{name}_learning_rates")), args.tuning_steps, args.max_seconds
        )
        for name in args.contenders
    }
    runs, text = {}, ""
    for seed in range(args.seeds):
        for name in args.contenders:
            contender = CONTENDERS[name]
            settings = contender.settings(getattr(args, f"{name}_steps"), seed, rates[name])
            print(f"\n== {contender.title}, seed {seed} of {args.seeds}: {settings['max_steps']} steps ==", flush=True)
            path = args.output_dir / name / f"seed_{seed}.json"
            runs.setdefault(name, []).append(benchmark.run(contender, settings, path, limits))
            text = report(args.output_dir, runs, args)
    print(f"\n{text}")


if __name__ == "__main__":
    main()
