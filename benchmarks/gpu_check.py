"""Everything there is to know from a GPU, in one run of a few minutes.

python benchmarks/gpu_check.py --output_dir runs/gpu_check

Parts, each within its own share of the time: the tests that need CUDA; the rate of matrix products; bf16 against fp32;
attention by every implementation there is; every stage of 4ds-b and 4ds-l on 16 x 224 x 224, 95% masked (clips/s,
FLOPs against the card's peak, peak memory beside what `layerlock cost` counts); layers compiled or not; videos decoded
on the CPU and by NVDEC. What is not on the machine is reported with the reason. Exit status: 1 if a part failed, 130
after Ctrl-C, which leaves the results so far.

Writes results.json and results.md, whose text is printed at the end, to be appended to benchmarks/README.md.
`--dry_run` does all this on the CPU in small: its figures mean nothing.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import gpu_parts
from gpu_parts import ROOT, Setup, Unavailable, one_line


@dataclass(frozen=True)
class Part:
    """Rows that are measured one after the other, for at most so many seconds."""

    name: str
    title: str
    seconds: float
    rows: Callable[[Setup], Iterator[dict]]


MINUTES = 6  # on a GPU that does nothing else
PARTS = [
    Part("tests", "Tests that need CUDA", 60, gpu_parts.tests),
    Part("matmul", "Matrix products in bf16", 5, gpu_parts.matmul),
    Part("precision", "bf16 against fp32, MAE", 20, gpu_parts.precision),
    Part("attention", "Implementations of attention, MAE in bf16", 25, gpu_parts.attention),
    Part("stages", "Stages in bf16", 110, gpu_parts.stages),
    Part("compiling", "`torch_compile` layer by layer, in bf16", 90, gpu_parts.compiling),
    Part("loading", "Reading clips", 40, gpu_parts.loading),
]
PACKAGES = ("torch", "transformers", "triton", "flash_attn", "torchcodec", "av")


def setup_for(dry_run: bool) -> Setup:
    if dry_run:
        return Setup(torch.device("cpu"), {"tiny": 2}, 1, 256, "aot_eager", 2, 40, 64, 8, 1)
    batches, num_workers = {"4ds-b": 128, "4ds-l": 64}, min(8, os.cpu_count() or 1)
    return Setup(torch.device("cuda"), batches, 10, 8192, "inductor", 8, 64, 256, 512, num_workers)


class OutOfTime(BaseException):
    """Not an `Exception`: what handles errors must not take it for one."""


@contextlib.contextmanager
def time_limit(seconds: float):
    """Raises `OutOfTime` in the body, once Python has its turn, after so many seconds."""

    def stop(signum, frame):
        raise OutOfTime

    handler = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)


def run(part: Part, setup: Setup, seconds_left: float) -> dict:
    """What came out: status, reason, seconds, and the rows until then."""
    result = {"title": part.title, "status": "done", "reason": "", "seconds": 0.0, "rows": []}
    if part.seconds > seconds_left:
        reason = f"it may take {part.seconds:.0f} s, and {max(0, seconds_left):.0f} s are left"
        return {**result, "status": "skipped", "reason": reason}
    start = time.perf_counter()
    try:
        with time_limit(part.seconds):
            for row in part.rows(setup):
                result["rows"].append(row)
    except Unavailable as error:
        result |= {"status": "unavailable", "reason": one_line(error)}
    except OutOfTime:
        reason = f"stopped after {part.seconds:.0f} s with {len(result['rows'])} rows"
        result |= {"status": "out of time", "reason": reason}
    except KeyboardInterrupt:
        result |= {"status": "interrupted", "reason": "by Ctrl-C"}
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        result |= {"status": "failed", "reason": reason, "traceback": traceback.format_exc()}
    result["seconds"] = round(time.perf_counter() - start, 1)
    return result


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "CUDA": str(torch.version.cuda)}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def commit() -> str:
    with contextlib.suppress(OSError):
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
        if found:
            return found
    return "unknown"


def cell(value) -> str:
    if not isinstance(value, float):
        return str(value).replace("|", "/")
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(rows: list[dict]) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names), *([cell(row.get(name, "")) for name in names] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def markdown(results: dict) -> str:
    """A section of benchmarks/README.md."""
    about = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [f"### {results['gpu']}", "", f"`{results['command']}` at commit {results['commit']}; {about}."]
    for result in results["parts"].values():
        lines += ["", f"**{result['title']}**"]
        if result["status"] != "done":
            lines[-1] += f" ({result['status']}: {result['reason'].replace('|', '/')})"
        if result["rows"]:
            lines += ["", *table(result["rows"])]
    return "\n".join(lines) + "\n"


def main(output_dir: Path, minutes: float = MINUTES, dry_run: bool = False) -> int:
    """The exit status."""
    if not dry_run and not torch.cuda.is_available():
        sys.exit("error: PyTorch finds no GPU; --dry_run runs the same in small on the CPU")
    end = time.perf_counter() + 60 * minutes
    setup = setup_for(dry_run)
    output_dir.mkdir(parents=True, exist_ok=True)
    command = f"python benchmarks/gpu_check.py {shlex.join(sys.argv[1:])}"
    gpu = "CPU (dry run: figures mean nothing)" if dry_run else torch.cuda.get_device_name(setup.device)
    results = {"gpu": gpu, "command": command, "commit": commit(), "versions": versions(), "parts": {}}
    scale = max(1.0, minutes / MINUTES)  # more time for all is more for each
    for part in (replace(part, seconds=scale * part.seconds) for part in PARTS):
        result = run(part, setup, end - time.perf_counter())
        results["parts"][part.name] = result
        (output_dir / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        (output_dir / "results.md").write_text(markdown(results))
        reason = f": {result['reason']}" if result["reason"] else ""
        print(f"{part.name}: {result['status']} in {result['seconds']:.1f} s{reason}", flush=True)
        if result["status"] == "interrupted":
            break
    print("\n" + markdown(results), flush=True)
    statuses = {result["status"] for result in results["parts"].values()}
    return 130 if "interrupted" in statuses else int("failed" in statuses)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/gpu_check"))
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help="A part that does not fit is left out (default 6)."
    )
    parser.add_argument("--dry_run", action="store_true", help="In small, on the CPU.")
    sys.exit(main(**vars(parser.parse_args())))
