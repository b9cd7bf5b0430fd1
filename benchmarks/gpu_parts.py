"""What `gpu_check.py` measures: each part makes rows of a table, one after the other, or says why it cannot.

A step is forward and backward pass, targets and AdamW on clips that lie on the device. Times are medians, after steps
that are not counted, and the device is waited for. Losses that should agree and do not make a part fail.
"""

import contextlib
import functools
import gc
import importlib.util
import itertools
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch._dynamo.utils import counters
from torch.nn.attention import SDPBackend, sdpa_kernel

from layerlock_hf import LayerLockViTConfig
from layerlock_hf.data import BadVideos, ClipTransform, PretrainingClips, load_videos
from layerlock_hf.data.decoding import read_clip
from layerlock_hf.data.procedural import write_procedural_dataset
from layerlock_hf.models import Stage
from layerlock_hf.training.compilation import compile_layers
from layerlock_hf.training.memory_plan import held_bytes
from layerlock_hf.utils.memory import peak_memory_gib, reset_peak_memory
from steps import Case, Steps, layerlock_case, now


T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 0.01  # of losses that should agree to bf16's precision, 2^-8
WARM_UP = 2  # steps
# Dense bf16 with fp32 sums, TFLOP/s, by NVIDIA's data sheets; a name's first match counts
PEAKS = {"H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312, "L40S": 362}
ATTENTION = {
    "eager": ("eager", None),
    "SDPA, PyTorch's choice": ("sdpa", None),
    "SDPA, flash": ("sdpa", SDPBackend.FLASH_ATTENTION),
    "SDPA, cuDNN": ("sdpa", SDPBackend.CUDNN_ATTENTION),
    "SDPA, memory-efficient": ("sdpa", SDPBackend.EFFICIENT_ATTENTION),
    "SDPA, math": ("sdpa", SDPBackend.MATH),
    "flash_attention_2": ("flash_attention_2", None),
    "flash_attention_3": ("flash_attention_3", None),
}


class Unavailable(Exception):
    """What a part needs is not on this machine; the message is for the user."""


class Failed(Exception):
    """Something is wrong; the message is for the user."""


@dataclass(frozen=True)
class Setup:
    """How large everything is.

    Attributes:
        batches: preset -> clips per step, halved as often as memory runs out.
        repeats: timed steps.
        matrix_size: of the square matrices whose product gives the matmul rate.
        backend: of `torch.compile`.
        num_videos, num_frames, video_size: of the videos that are decoded, the size in pixels.
        num_clips: of 16 frames, timed.
        num_workers: that decode.
    """

    device: torch.device
    batches: dict[str, int]
    repeats: int
    matrix_size: int
    backend: str
    num_videos: int
    num_frames: int
    video_size: int
    num_clips: int
    num_workers: int

    @property
    def first(self) -> tuple[Case, int]:
        """LayerLock on the first preset with latents of all patches, and its clips per step."""
        preset, batch_size = next(iter(self.batches.items()))
        return layerlock_case(LayerLockViTConfig.from_preset(preset), 1.0), batch_size


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def halving(batch_size: int, measure: Callable[[int], T], device: torch.device) -> T:
    """What `measure` says of this number of clips, or of half as many, and so on while memory is short; each time on a
    device where nothing else lies, whose peak memory starts anew."""
    while True:
        clean(device)
        with contextlib.suppress(torch.OutOfMemoryError):
            return measure(batch_size)
        if batch_size == 1:
            raise Failed("not even one clip fits into the memory")
        batch_size //= 2


def clean(device: torch.device):
    gc.collect()  # models are in cycles
    torch.cuda.empty_cache()
    reset_peak_memory(device)


def step_seconds(steps: Steps, stage: Stage, repeats: int) -> float:
    for _ in range(WARM_UP):
        steps.run(stage)
    return statistics.median(steps.run(stage)["seconds"] for _ in range(repeats))


def difference(loss: float, expected: float) -> float:
    return abs(loss - expected) / abs(expected)


# ---- the parts


def tests(setup: Setup) -> Iterator[dict]:
    """The tests marked `gpu`. Warnings are no errors here, as other versions and drivers have others."""
    for name in ("pytest", "pytest_timeout"):
        if importlib.util.find_spec(name) is None:
            raise Unavailable(f'{name} is missing: pip install -e ".[dev]"')
    # Given several GPUs, Trainer would spread over them
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    options = ["-q", "-m", "gpu", "-rfE", "--tb=short", "-W", "default", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, "tests"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": gpu}
    )
    lines = (done.stdout + done.stderr).strip().splitlines() or [""]
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)}
    yield {word: counts.get(word, 0) for word in ("passed", "failed", "error", "skipped")}
    if done.returncode != 0:
        named = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        raise Failed(f"pytest exits with {done.returncode}: {'; '.join(named) or lines[-1]}")
    if setup.device.type == "cuda" and not counts.get("passed"):
        raise Failed(f"no test ran on the GPU: {lines[-1]}")


@functools.cache
def matmul_rate(device: torch.device, size: int) -> float:
    """FLOP/s of a product of square bf16 matrices."""
    left, right = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    seconds = []
    for _ in range(13):
        start = now(device)
        left @ right
        seconds.append(now(device) - start)
    return 2 * size**3 / statistics.median(seconds[3:])


def peak_rate(device: torch.device) -> float | None:
    """FLOP/s in bf16 by the data sheet, None of an unknown card."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((1e12 * peak for card, peak in PEAKS.items() if card in name), None)


def matmul(setup: Setup) -> Iterator[dict]:
    peak = peak_rate(setup.device)
    yield {
        "matrices": setup.matrix_size,
        "TFLOP/s, measured": matmul_rate(setup.device, setup.matrix_size) / 1e12,
        "TFLOP/s, data sheet": peak / 1e12 if peak else "unknown card",
    }


def precision(setup: Setup) -> Iterator[dict]:
    """A step of MAE in fp32 and under bf16 autocast, from the same weights."""
    case, batch_size = setup.first
    stage, gradients = case.stages[0], []

    def measure(bf16: bool, num_clips: int) -> dict:
        steps = Steps(case, num_clips, setup.device, bf16)
        learning = steps.learning(stage)
        loss = steps.loss(stage)
        loss.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in learning]).cpu())
        steps.model.zero_grad()
        seconds = step_seconds(steps, stage, setup.repeats)
        row = {"clips": num_clips, "ms": 1000 * seconds, "clips/s": num_clips / seconds, "loss": loss.item()}
        return row | {"peak GB": peak_memory_gib(setup.device) * 2**30 / 1e9}

    full = halving(max(1, batch_size // 2), functools.partial(measure, False), setup.device)
    yield {"precision": "fp32"} | full
    half = halving(full["clips"], functools.partial(measure, True), setup.device)
    cosine = torch.cosine_similarity(gradients[-2], gradients[-1], dim=0).item()
    yield {"precision": "bf16"} | half | {"cosine of the gradients": cosine}
    error = difference(half["loss"], full["loss"])
    if not (error < TOLERANCE and cosine > 1 - TOLERANCE):
        raise Failed(f"bf16 changes the loss by {error:.2%} and turns the gradient to a cosine of {cosine:.4f}")


def attention(setup: Setup) -> Iterator[dict]:
    """A step of MAE in bf16 by every attention there may be."""
    case, batch_size = setup.first
    stage, expected, wrong = case.stages[0], None, []
    for name, (implementation, backend) in ATTENTION.items():

        def measure(num_clips: int, implementation=implementation, backend=backend) -> dict:
            steps = Steps(case, num_clips, setup.device, bf16=True)
            steps.model.set_attn_implementation(implementation)
            with sdpa_kernel(backend) if backend is not None else contextlib.nullcontext():
                steps.learning(stage)
                loss = steps.loss(stage).item()
                seconds = step_seconds(steps, stage, setup.repeats)
            return {"clips": num_clips, "ms": 1000 * seconds, "clips/s": num_clips / seconds, "loss": loss}

        try:
            # A quarter: the eager one keeps every weight
            row = halving(max(1, batch_size // 4), measure, setup.device)
        except Exception as error:  # a package, a driver, a card or a shape that does not have it, in as many words
            yield {"attention": name, "note": f"not available: {one_line(error)}"}
            continue
        yield {"attention": name, **row}
        expected = row["loss"] if expected is None else expected
        if not difference(row["loss"], expected) < TOLERANCE:
            wrong.append(name)
    if wrong:
        raise Failed(f"the loss is another one with {', '.join(wrong)}")


def stages(setup: Setup) -> Iterator[dict]:
    """Every stage of every preset in bf16, beside what is counted: FLOPs, and the bytes of the plan."""
    for preset, batch_size in setup.batches.items():
        config = LayerLockViTConfig.from_preset(preset)
        for patch_fraction in (1.0, 0.05):
            case = layerlock_case(config, patch_fraction)
            # MAE, the first stage, is the same in both
            for stage in case.stages if patch_fraction == 1 else case.stages[1:]:
                what = {"model": preset, "frozen": stage.num_frozen}
                what["target"] = f"latents of {patch_fraction:.0%}" if stage.num_frozen else "pixels"
                measure = functools.partial(stage_row, setup, case, stage)
                yield what | halving(batch_size, measure, setup.device)


def stage_row(setup: Setup, case: Case, stage: Stage, num_clips: int) -> dict:
    """A model of its own, so that nothing of another stage is in memory. MFU is the share of the data sheet's peak, or
    of the matmul rate on a card that `PEAKS` lacks."""
    steps = Steps(case, num_clips, setup.device, bf16=True)
    seconds = step_seconds(steps, stage, setup.repeats)
    measured = peak_memory_gib(setup.device) * 2**30
    rate, peak = num_clips * case.flops(stage) / seconds, peak_rate(setup.device)
    matmuls = matmul_rate(setup.device, setup.matrix_size)
    masks = [(steps.context_ids[:1].cpu(), steps.target_ids[:1].cpu())]
    planned = steps.video.nbytes + held_bytes(case.config, stage, masks, True, num_clips)
    return {
        "clips": num_clips,
        "ms": 1000 * seconds,
        "clips/s": num_clips / seconds,
        "GFLOP of a clip": case.flops(stage) / 1e9,
        "TFLOP/s": rate / 1e12,
        "MFU": rate / (peak or matmuls),
        "of the matmul rate": rate / matmuls,
        "peak GB": measured / 1e9,
        "planned GB": planned / 1e9,
        "peak / planned": measured / planned,
    }


def compiling(setup: Setup) -> Iterator[dict]:
    """One model that walks through the stages, compiled layer by layer as the trainer does it, and one that is not."""
    if setup.backend == "inductor" and importlib.util.find_spec("triton") is None:
        raise Unavailable("triton is missing, which torch.compile needs on GPUs")
    case, batch_size = setup.first

    def both(num_clips: int) -> list[Steps]:
        pair = [Steps(case, num_clips, setup.device, bf16=True) for _ in range(2)]
        for steps in pair:
            steps.run(case.stages[0])  # MAE needs the most memory
        return pair

    eager, compiled = halving(max(1, batch_size // 2), both, setup.device)
    torch._dynamo.reset()
    counters.clear()
    compile_layers(compiled.model, backend=setup.backend)
    known = 0
    for stage in case.stages:
        compiled.model.load_state_dict(eager.model.state_dict())  # what was stepped since differs in rounding
        expected, _ = loss_and_seconds(eager, stage)
        loss, first = loss_and_seconds(compiled, stage)
        plain, fast = (step_seconds(steps, stage, setup.repeats) for steps in (eager, compiled))
        graphs = counters["stats"]["unique_graphs"]
        row = {"frozen": stage.num_frozen, "clips": len(eager.video), "eager ms": 1000 * plain}
        row |= {"compiled ms": 1000 * fast, "faster by": plain / fast, "first pass, s": first}
        yield row | {"graphs": graphs, "new graphs": graphs - known, "loss, eager": expected, "loss, compiled": loss}
        known = graphs
        if not difference(loss, expected) < TOLERANCE:
            raise Failed(f"compiled, the loss is {loss} with {stage.num_frozen} layers frozen, not {expected}")


def loss_and_seconds(steps: Steps, stage: Stage) -> tuple[float, float]:
    """Of a forward and a backward pass that change no weight."""
    steps.learning(stage)
    start = now(steps.device)
    loss = steps.loss(stage)
    loss.backward()
    seconds = now(steps.device) - start
    steps.model.zero_grad()
    return loss.item(), seconds


def loading(setup: Setup) -> Iterator[dict]:
    """Clips of 16 x 224 x 224 by a DataLoader, decoded on the CPU and by NVDEC, once the workers run."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"num_frames": setup.num_frames, "image_size": setup.video_size}
        write_procedural_dataset(folder, setup.num_videos, **sizes, progress=False)
        videos = Path(folder, "videos")
        for name, device in (("CPU", "cpu"), ("NVDEC", "cuda")):
            row = {"decoded by": name, "workers": setup.num_workers}
            try:
                row["clips/s"] = clips_per_second(setup, videos, device)
            except Unavailable as error:
                row["note"] = f"not available: {error}"
            yield row


def clips_per_second(setup: Setup, folder: Path, device: str) -> float:
    report = Path(folder.parent, f"bad_videos-{device}.jsonl")
    batch_size, warm_up = 4, 2 * setup.num_workers
    num_batches = setup.num_clips // batch_size
    videos = load_videos(str(folder))
    try:
        clips = PretrainingClips(
            videos,
            batch_size * (warm_up + num_batches),
            transform=ClipTransform(224),
            bad_videos=BadVideos(str(report), len(videos)),
            device=device,
        )
    except ValueError as error:
        raise Unavailable(one_line(error)) from error
    note = read_clip(str(min(folder.iterdir())), lambda num_frames: [0], device=device).note
    if note is not None:
        raise Unavailable(note)
    # What decodes on a GPU cannot be forked from a process that uses it
    batches = torch.utils.data.DataLoader(
        clips,
        batch_size,
        num_workers=setup.num_workers,
        multiprocessing_context="forkserver",
        collate_fn=len,
    )
    iterator = iter(batches)
    for _ in range(warm_up):
        next(iterator)
    start = now(setup.device)
    num_clips = sum(itertools.islice(iterator, num_batches))
    seconds = now(setup.device) - start
    if report.exists():
        raise Failed(f"videos could not be read as they should: {report.read_text().splitlines()[0]}")
    return num_clips / seconds
