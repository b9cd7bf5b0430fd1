"""What freezing saves in every stage, measured and counted: time, memory, optimizer state, communication.

python benchmarks/savings.py --output_dir benchmarks

Three cases of width 384 on clips of 16 x 224 x 224: freezing alone on 16 layers with 75% masked, and LayerLock on 12
layers with 95% masked, its latents predicted on all patches or on 5% of them. The first stage of each is plain MAE.
A step is forward and backward pass, targets and AdamW. The stages of a case alternate in one process, and medians are
compared. Peaks are those of two steps in a process of their own, above what is resident before the model is made.
FLOPs are counted by `layerlock_hf.training.step_flops`. Writes `savings.json` and `savings.png`, and prints tables.
"""

import argparse
import json
import multiprocessing
import os
import statistics
from pathlib import Path

import torch
from matplotlib.figure import Figure

from layerlock_hf import LayerLockViTConfig
from layerlock_hf.training import FreezeSchedule, locked, mae
from layerlock_hf.utils.memory import peak_memory_gib, reset_peak_memory
from steps import Case, Steps, layerlock_case


def make_cases(preset: str, sizes: dict) -> dict[str, Case]:
    """The three cases; `sizes` replaces fields of the preset."""
    deep = LayerLockViTConfig.from_preset(preset, **{**sizes, "num_hidden_layers": 16})
    config = LayerLockViTConfig.from_preset(preset, **{**sizes, "num_hidden_layers": 12})
    alone = locked(mae(16), FreezeSchedule(1, 1, 2, num_freezes=8), predict_latents=False)
    return {
        "freezing": Case("freezing alone, 16 layers, 75% masked", deep, alone, round(0.25 * deep.num_tokens)),
        "latents_100": layerlock_case(config, 1.0),
        "latents_5": layerlock_case(config, 0.05),
    }


def peak(preset: str, sizes: dict, name: str, index: int, batch_size: int) -> float:
    """GiB of two steps of a stage above what is resident at the start of this process."""
    cpu = torch.device("cpu")
    reset_peak_memory(cpu)
    start = peak_memory_gib(cpu)
    case = make_cases(preset, sizes)[name]
    steps = Steps(case, batch_size)
    for _ in range(2):
        steps.run(case.stages[index])
    return peak_memory_gib(cpu) - start


def peaks_of(preset: str, sizes: dict, name: str, batch_size: int) -> list[float]:
    """The peak of every stage, each in a fresh process."""
    # Bytes from which glibc gives memory back at once; by default it learns to keep what was freed, up to 32 MiB each
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**18)
    num_stages = len(make_cases(preset, sizes)[name].stages)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return [pool.apply(peak, (preset, sizes, name, index, batch_size)) for index in range(num_stages)]


def measure(preset: str, sizes: dict, name: str, batch_size: int, repeats: int) -> list[dict]:
    """A row per stage of the case."""
    case = make_cases(preset, sizes)[name]
    peaks = peaks_of(preset, sizes, name, batch_size)
    steps = Steps(case, batch_size)
    for stage in case.stages:
        steps.run(stage)
    results = [[steps.run(stage) for stage in case.stages] for _ in range(repeats)]
    rows = []
    for index, stage in enumerate(case.stages):
        mine = [result[index] for result in results]
        seconds = statistics.median(result["seconds"] for result in mine)
        counted = {"num_frozen": stage.num_frozen, "peak_gib": peaks[index], "flops": case.flops(stage)}
        rows.append({**mine[0], **counted, "seconds": seconds})
    return rows


def table(case: Case, rows: list[dict]) -> str:
    """Shares of the first stage."""
    first = rows[0]
    heads = "frozen | FLOPs counted | time | saved / counted | time / counted | peak | moments | all-reduced"
    lines = [f"{case.title} ({first['seconds']:.2f} s, {first['peak_gib']:.2f} GiB):", "", f"| {heads} |"]
    lines.append("| --- " * (heads.count("|") + 1) + "|")
    for row in rows:
        share = {key: row[key] / first[key] for key in row if key != "num_frozen"}
        time_share, counted = share["seconds"], share["flops"]
        saved = f"{(1 - time_share) / (1 - counted):.2f}" if counted < 1 else ""
        cells = [row["num_frozen"], f"{counted:.3f}", f"{time_share:.3f}", saved, f"{time_share / counted:.2f}"]
        cells += [f"{share[key]:.2f}" for key in ("peak_gib", "optimizer_bytes", "all_reduced_bytes")]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def plot(cases: dict[str, Case], results: dict[str, list[dict]], path: Path):
    figure = Figure(figsize=(4 * len(results), 3.6), layout="constrained")
    for axes, (name, rows) in zip(figure.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True):
        frozen = [row["num_frozen"] for row in rows]
        styles = {"flops": ("FLOPs, counted", "k--"), "seconds": ("time, measured", "o-"), "peak_gib": ("peak", "s:")}
        for key, (label, style) in styles.items():
            axes.plot(frozen, [row[key] / rows[0][key] for row in rows], style, label=label, markersize=4)
        axes.set(title=cases[name].title, xlabel="layers frozen", xticks=frozen)
        axes.set_ylim(bottom=0)
        axes.title.set_fontsize(9)
    figure.axes[0].set_ylabel("share of the plain MAE step")
    figure.axes[0].legend(fontsize=8, loc="lower left")
    figure.savefig(path, dpi=110)


def main(preset: str, sizes: dict, names: list[str], batch_size: int, repeats: int, output_dir: Path):
    cases, results = make_cases(preset, sizes), {}
    print(f"{batch_size} clips, {torch.get_num_threads()} threads, medians of {repeats}", flush=True)
    for name in names:
        results[name] = measure(preset, sizes, name, batch_size, repeats)
        print("\n" + table(cases[name], results[name]), flush=True)
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "savings.json").write_text(json.dumps(results, indent=1) + "\n")
    plot(cases, results, output_dir / "savings.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/savings"))
    parser.add_argument("--preset", default="4ds-s")
    parser.add_argument("--cases", nargs="+", default=["freezing", "latents_100", "latents_5"])
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    main(args.preset, {}, args.cases, args.batch_size, args.repeats, args.output_dir)
