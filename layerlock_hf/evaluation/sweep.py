"""Many readouts trained together: every batch passes the frozen encoder once, for all depths and learning rates."""

import json
import pickle
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from ..utils.files import remove_left_over, write_aside
from ..utils.handing_over import Loader
from ..utils.records import json_text
from .metrics import SampleScores, in_order, measure, without
from .protocol import SweepArguments, SweepPoint


METRICS, PROGRESS, WEIGHTS = "metrics.jsonl", "progress.pt", "readouts"
NUM_TRIED = 16  # test items that are read before any training

# Predicts without an encoder: from a batch of test items to rows of `metrics`
Baseline = Callable[[dict], SampleScores]


class _Batches:
    """The positions that one process encodes at a time, from an optimizer step on."""

    def __init__(self, args: SweepArguments, state: PartialState, first_step: int = 0):
        self.first_step, self.num_steps, self.batch_size = first_step, args.num_steps, args.batch_size
        self.rank, self.num_processes = state.process_index, state.num_processes
        self.size = args.clips_at_once(state.num_processes)
        self.num_per_step = args.batch_size // (self.size * state.num_processes)
        if self.num_per_step * self.size * state.num_processes != args.batch_size:
            raise ValueError(
                f"batch_size must be a multiple of micro_batch_size={self.size} times {state.num_processes} "
                f"processes, got {args.batch_size}"
            )

    def __len__(self) -> int:
        return (self.num_steps - self.first_step) * self.num_per_step

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first_step, self.num_steps):
            for number in range(self.num_per_step):
                start = step * self.batch_size + (number * self.num_processes + self.rank) * self.size
                yield list(range(start, start + self.size))


class _Round:
    """The readouts that are trained at once, their optimizer, and how far they are.

    Attributes:
        readouts: by point.
        step: optimizer steps done.
        losses: of each point, summed since the last log.
        num_summed: over how many steps.
    """

    def __init__(self, points: Sequence[SweepPoint], build: Callable[[], nn.Module], args: SweepArguments, device):
        self.args = args
        self.readouts = {}
        for point in points:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(args.seed)  # of every point: the start does not depend on the others
                self.readouts[point] = build().to(device)
        groups = [
            {"params": list(readout.parameters()), "highest": point.learning_rate}
            for point, readout in self.readouts.items()
        ]
        # Fused: one pass over the weights, which are many for what a step of a frozen encoder computes
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=args.weight_decay, fused=True)
        self.step, self.num_summed = 0, 0
        self.losses = torch.zeros(len(points), device=device)

    def state_dict(self) -> dict:
        return {
            "step": self.step,
            "losses": self.losses,
            "num_summed": self.num_summed,
            "readouts": [readout.state_dict() for readout in self.readouts.values()],
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict):
        self.step, self.num_summed = state["step"], state["num_summed"]
        self.losses.copy_(state["losses"])
        for readout, weights in zip(self.readouts.values(), state["readouts"], strict=True):
            readout.load_state_dict(weights)
        self.optimizer.load_state_dict(state["optimizer"])

    def update(self, losses: torch.Tensor):
        """An optimizer step with the gradients that lie on the parameters; `losses` is (points,)."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.learning_rate_at(self.step, group["highest"])
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses += losses
        self.num_summed += 1
        self.step += 1

    def mean_losses(self) -> dict[SweepPoint, float]:
        """Since the last call."""
        means = dict(zip(self.readouts, (self.losses / self.num_summed).tolist(), strict=True))
        self.losses.zero_()
        self.num_summed = 0
        return means


class Sweep:
    """Trains all points and tests them.

    The gradient of a batch is that of the mean loss over what counts in it, whatever the number of processes and of
    parts that the batch is encoded in. Every point starts from the same weights and sees the same clips in the same
    order, so its result does not depend on the others. The same run, started again, resumes where it stopped.

    Args:
        task: what is learnt and measured: see `tasks`.
        read_features: from a batch and depths to features at each depth, (B, t, S, D), without autograd.
        points: the readouts to train.
        args: the protocol.
        training: samples by position, `args.num_examples` of them.
        test: what is predicted at the end, by index.
        output: folder for `metrics.jsonl`, the weights of the readouts and the checkpoint.
        identity: what makes two runs the same.
        baselines: makes what is tested beside the readouts, by name; called if there is anything left to train.

    Attributes:
        rounds: the points, as they are trained together.
        errors: of test items that could not be read, by index.

    Raises:
        ValueError: if the folder holds another run or a damaged one, or a batch cannot be divided.
    """

    def __init__(
        self,
        task,
        read_features: Callable[[dict, Sequence[int]], list[torch.Tensor]],
        points: Sequence[SweepPoint],
        args: SweepArguments,
        training: Dataset,
        test: Dataset,
        output: Path,
        identity: dict,
        baselines: Callable[[], dict[str, Baseline]] = dict,
    ):
        self.task, self.read_features, self.args = task, read_features, args
        self.training, self.test = training, test
        self.output, self.identity, self.baselines = output, identity, baselines
        self.state = PartialState()
        _Batches(args, self.state)  # raises before anything is read
        size = args.max_parallel_readouts or len(points)
        points = sorted(points, key=lambda point: point.depth)  # a round reads as few depths as possible
        self.rounds = [points[start : start + size] for start in range(0, len(points), size)]
        self.errors: dict[int, str] = {}
        self.finished: dict[str, SampleScores] = {}
        self._baseline_rows: dict[str, SampleScores] = {}
        self._seconds_before, self._started = 0.0, time.monotonic()
        self._unfinished: dict | None = None
        self._load_progress()

    @property
    def seconds(self) -> float:
        """Since this object was made, and of the runs before that it goes on from, up to their last checkpoints."""
        return self._seconds_before + time.monotonic() - self._started

    @property
    def baseline_samples(self) -> dict[str, SampleScores]:
        """As what `run` returns, by the names of the baselines."""
        return {name: without(rows, self.errors) for name, rows in self._baseline_rows.items()}

    def run(self) -> dict[SweepPoint, SampleScores]:
        """Train and test every point.

        Returns:
            The rows of `metrics` of all test items but those in `errors`, for each point.

        Raises:
            ValueError: if no test item can be read.
        """
        (self.output / WEIGHTS).mkdir(parents=True, exist_ok=True)
        if self.state.is_main_process:
            remove_left_over(self.output / PROGRESS)
        self._cut_metrics()
        left = [points for points in self.rounds if points[0].name not in self.finished]
        baselines = self._prepare_test() if left else {}
        for points in left:
            number = self.rounds.index(points) + 1
            self._run_round(f"readouts {number}/{len(self.rounds)}", points, baselines)
        # What could be read for one round and not for another counts for none: points are compared on the same items
        return {point: without(self.finished[point.name], self.errors) for points in self.rounds for point in points}

    def load_readout(self, point: SweepPoint) -> nn.Module:
        """The trained readout of a point."""
        readout = self.task.build_readout()
        readout.load_state_dict(load_file(self._weights_of(point)))
        return readout

    def _prepare_test(self) -> dict[str, Baseline]:
        """The baselines; and what would spoil the test is told before any training."""
        if self.state.is_main_process:
            # Not evenly spread: what is bad may be so too
            tried = random.Random(0).sample(range(len(self.test)), min(len(self.test), NUM_TRIED))
            errors = [item["error"] for item in map(self.test.__getitem__, tried) if "error" in item]
            if len(errors) == len(tried):
                raise ValueError(f"none of {len(tried)} test items can be read, the first because of: {errors[0]}")
        return self.baselines()

    def _run_round(self, name: str, points: list[SweepPoint], baselines: dict[str, Baseline]):
        this = _Round(points, self.task.build_readout, self.args, self.state.device)
        if self._unfinished is not None:
            self._restore(this, self._unfinished)
            self._unfinished = None
        batches = _Batches(self.args, self.state, this.step)
        loader = iter(self._loader(self.training, self.task.collate, batch_sampler=batches))
        last = self.args.num_steps
        with tqdm(desc=name, initial=this.step, total=last, disable=not self.state.is_main_process) as bar:
            while this.step < last:
                self._train_step(this, [next(loader) for _ in range(batches.num_per_step)])
                bar.update()
                if this.step % self.args.logging_steps == 0 or this.step == last:
                    losses = this.mean_losses()
                    bar.set_postfix_str(f"loss {min(losses.values()):.4f} to {max(losses.values()):.4f}")
                    self._write_metrics(this.step, {point: {"loss": loss} for point, loss in losses.items()})
                if self.args.eval_steps and this.step % self.args.eval_steps == 0 and this.step < last:
                    self._measure(this, baselines)
                if this.step == last:
                    self._save_trained(this)
                elif this.step % self.args.save_steps == 0:
                    self._save_progress(this.state_dict())
        results = self._measure(this, baselines)
        self.finished |= {point.name: samples for point, samples in results.items()}
        self._save_progress(None)

    def _save_trained(self, this: _Round):
        """Weights alone are left to save: what lacks is the test, which may take long and be stopped."""
        if self.state.is_main_process:
            for point, readout in this.readouts.items():
                with write_aside(self._weights_of(point)) as aside:
                    save_file({key: value.cpu() for key, value in readout.state_dict().items()}, aside)
        self._save_progress({"step": this.step})

    def _restore(self, this: _Round, saved: dict):
        if saved["step"] < self.args.num_steps:
            this.load_state_dict(saved)
        else:
            this.step = saved["step"]
            for point, readout in this.readouts.items():
                readout.load_state_dict(load_file(self._weights_of(point)))

    def _loader(self, dataset: Dataset, collate: Callable, **options) -> Loader:
        return Loader(
            dataset,
            collate_fn=collate,
            num_workers=self.args.num_workers,
            pin_memory=self.state.device.type == "cuda",
            **options,
        )

    def _train_step(self, this: _Round, parts: list[dict]):
        device = self.state.device
        parts = [part | {"labels": part["labels"].to(device, non_blocking=True)} for part in parts]
        count = torch.stack([self.task.count(part) for part in parts]).sum().to(device)
        self._sum_over_processes([count])
        losses = torch.zeros(len(this.readouts), device=device)
        for part in parts:
            for number, outputs in enumerate(self._outputs(this, part)):
                loss = self.task.loss(outputs.float(), part) / count.clamp(min=1)
                loss.backward()  # at once, so that one readout's activations are held at a time
                losses[number] += loss.detach()
        for readout in this.readouts.values():
            self._sum_over_processes([parameter.grad for parameter in readout.parameters()])
        self._sum_over_processes([losses])
        this.update(losses)

    def _outputs(self, this: _Round, batch: dict) -> Iterator[torch.Tensor]:
        """What the readouts, in their order, make of a batch: (B, Q, O) each."""
        depths = sorted({point.depth for point in this.readouts})
        # Not a `with` around the `yield`s, which would enclose what the caller does in between
        autocast = torch.autocast(self.state.device.type, torch.bfloat16, enabled=self.args.bf16)
        with torch.no_grad(), autocast:
            features = dict(zip(depths, self.read_features(batch, depths), strict=True))
        depth, normalized = None, None
        for point, readout in this.readouts.items():
            with autocast:
                if point.depth != depth:
                    depth, normalized = point.depth, readout.normalize(features.pop(point.depth))
                    normalized = normalized.bfloat16() if self.args.bf16 else normalized
                outputs = readout.read(normalized)
            yield outputs

    def _measure(self, this: _Round, baselines: dict[str, Baseline]) -> dict[SweepPoint, SampleScores]:
        """Test the readouts, and write what comes of it."""
        results = self._test(this, baselines)
        metrics = {point: measure(self.task.metrics, samples) for point, samples in results.items()}
        self._write_metrics(this.step, metrics)
        return results

    @torch.no_grad()
    def _test(self, this: _Round, baselines: dict[str, Baseline]) -> dict[SweepPoint, SampleScores]:
        indices = range(self.state.process_index, len(self.test), self.state.num_processes)
        size = max(1, self.args.clips_at_once(self.state.num_processes) // self.task.num_test_clips)
        loader = self._loader(self.test, self.task.collate_test, sampler=indices, batch_size=size)
        names = [*this.readouts, *baselines]
        parts = {name: [] for name in names}
        for batch in tqdm(loader, desc="test", leave=False, disable=not self.state.is_main_process):
            self.errors |= {item["index"]: item["error"] for item in batch["failed"]}
            if len(batch["index"]):
                batch["labels"] = batch["labels"].to(self.state.device, non_blocking=True)
                for point, outputs in zip(this.readouts, self._outputs(this, batch), strict=True):
                    parts[point].append(self.task.test(outputs.float(), batch))
                for name, score_samples in baselines.items():
                    parts[name].append(score_samples(batch))
        gathered = gather_object([(parts, self.errors)])
        for _, errors in gathered:
            self.errors |= errors
        if len(self.errors) == len(self.test):
            raise ValueError(f"no test item can be read, the first because of: {self.errors[min(self.errors)]}")
        samples = {name: in_order([rows for parts, _ in gathered for rows in parts[name]]) for name in names}
        self._baseline_rows = {name: samples.pop(name) for name in baselines}
        return samples

    def _sum_over_processes(self, tensors: list[torch.Tensor]):
        if self.state.num_processes > 1:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            torch.distributed.all_reduce(flat)
            for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def _weights_of(self, point: SweepPoint) -> Path:
        return self.output / WEIGHTS / f"{point.name}.safetensors"

    def _write_metrics(self, step: int, values: dict[SweepPoint, dict[str, float]]):
        if self.state.is_main_process:
            with (self.output / METRICS).open("a") as file:
                for point, metrics in values.items():
                    where = {"step": step, "depth": point.depth, "learning_rate": point.learning_rate}
                    file.write(json_text(where | metrics) + "\n")

    def _cut_metrics(self):
        """What was logged after the checkpoint will be logged again."""
        path = self.output / METRICS
        if not self.state.is_main_process or not path.exists():
            return
        step = 0 if self._unfinished is None else self._unfinished["step"]
        done = {(m.depth, m.learning_rate) for points in self.rounds for m in points if m.name in self.finished}
        kept = []
        for line in path.read_text().splitlines(keepends=True):
            row = json.loads(line) if line.endswith("\n") else None  # the last line may be torn
            if row and (row["step"] <= step or (row["depth"], row["learning_rate"]) in done):
                kept.append(line)
        with write_aside(path) as aside:
            aside.write_text("".join(kept))

    def _load_progress(self):
        path = self.output / PROGRESS
        if not path.exists():
            return
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise ValueError(f"{path} is damaged: delete it to start again ({error})") from error
        theirs, ours = saved["identity"], self.identity
        changed = [name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name)]
        if changed:
            name = changed[0]
            raise ValueError(
                f"{self.output} holds a run with other settings ({name} was {theirs.get(name)!r} and is now "
                f"{ours.get(name)!r}): choose another output_dir, or delete it"
            )
        self.finished, self._unfinished, self.errors = saved["finished"], saved["unfinished"], saved["errors"]
        self._baseline_rows, self._seconds_before = saved["baselines"], saved["seconds"]

    def _save_progress(self, unfinished: dict | None):
        if self.state.is_main_process:
            content = {
                "identity": self.identity,
                "finished": self.finished,
                "baselines": self._baseline_rows,
                "errors": self.errors,
                "seconds": self.seconds,
                "unfinished": unfinished,
            }
            with write_aside(self.output / PROGRESS) as aside:
                torch.save(content, aside)
        self.state.wait_for_everyone()
