"""`layerlock pretrain` with a record of what each process trains on, and with accidents: for tests of streaming."""

import json
import os
import signal
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from transformers import TrainerCallback

from layerlock_hf.cli import pretrain
from layerlock_hf.data import PretrainingClips, PretrainingCollator, files, isolation
from layerlock_hf.pretraining import build as building
from layerlock_hf.training import LayerLockTrainer
from layerlock_hf.utils.processes import run_and_exit


# Every frame of video i is about as bright as this
DARKEST, STEP = 10, 10


class WithPositions(PretrainingCollator):
    """Batches also say which positions they hold."""

    def __call__(self, samples):
        return super().__call__(samples) | {"positions": torch.tensor([sample["position"] for sample in samples])}


class Recording(LayerLockTrainer):
    """Writes the position, the video and a checksum of every clip that is trained on to `seen-RANK.jsonl`."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        positions, clips = inputs.pop("positions"), inputs["pixel_values_videos"]
        videos = ((clips.float().mean((1, 2, 3, 4)) - DARKEST) / STEP).round().int()
        checksums = [zlib.crc32(clip.numpy().tobytes()) for clip in clips]
        step = [self.state.global_step] * len(clips)
        with (Path(self.args.output_dir) / f"seen-{self.args.process_index}.jsonl").open("a") as file:
            for entry in zip(positions.tolist(), videos.tolist(), checksums, step, strict=True):
                file.write(json.dumps(entry) + "\n")
        return super().training_step(model, inputs, num_items_in_batch)


class KillRank(TrainerCallback):
    """SIGKILL to one process at the end of a step."""

    def __init__(self, rank: int, step: int):
        self.rank, self.step = rank, step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step and args.process_index == self.rank:
            os.kill(os.getpid(), signal.SIGKILL)


def kill_rank(output_dir: Path, rank: int, step: int):
    build = pretrain.build

    def build_mortal(settings):
        trainer = build(settings)
        trainer.add_callback(KillRank(rank, step))
        return trainer

    pretrain.build = build_mortal


def kill_worker(output_dir: Path, position: int):
    """SIGKILL to the data worker that is to make the clip at this position."""

    def before(positions):
        if position in positions:
            os.kill(os.getpid(), signal.SIGKILL)

    _before_batches(before)


def kill_decoding_child(output_dir: Path, position: int):
    """SIGKILL to the process that decodes, while it makes the clip at this position for the first time."""
    draw = PretrainingClips.draw

    def drawn(self, drawn_for, *shape, **options):
        if drawn_for == position and not (output_dir / "killed").exists():
            (output_dir / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return draw(self, drawn_for, *shape, **options)

    PretrainingClips.draw = drawn


def spoil(output_dir: Path, position: int, missing: Path, changed: Path):
    """Between the clips before this position and those from it on, a file vanishes and another one changes."""
    done = output_dir / "fetched"
    done.mkdir(parents=True, exist_ok=True)

    def before(positions):
        if positions[0] < position:
            return
        while len(list(done.iterdir())) < position:
            time.sleep(0.01)
        missing.unlink(missing_ok=True)
        changed.write_bytes(bytes(changed.stat().st_size))

    def after(positions):
        for one in positions:
            if one < position:
                (done / str(one)).touch()

    _before_batches(before, after)


def _before_batches(before: Callable, after: Callable = lambda positions: None):
    make = PretrainingClips.__getitems__

    def made(self, positions):
        before(positions)
        samples = make(self, positions)
        after(positions)
        return samples

    PretrainingClips.__getitems__ = made


ACCIDENTS = {function.__name__: function for function in (kill_rank, kill_worker, kill_decoding_child, spoil)}


def run(output_dir: Path, settings: dict, timeout_s: float = 0.5, accident: str | None = None, **details):
    """Train, or go on training; what is printed goes to `RANK.log`."""
    rank = os.environ.get("RANK", "0")
    output_dir.mkdir(parents=True, exist_ok=True)
    log = os.open(output_dir / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    building.PretrainingCollator, building.LayerLockTrainer = WithPositions, Recording
    files.FIRST_PAUSE, files.TIMEOUT, isolation.PAUSES = 0.02, timeout_s, (0.05, 0.1, 0.2)
    if accident is not None:
        ACCIDENTS[accident](output_dir, **details)
    recipe = output_dir / f"recipe-{rank}.yaml"
    recipe.write_text(yaml.safe_dump(settings))
    arguments = ["--config", str(recipe), "--output_dir", str(output_dir), "--resume", "auto"]
    torch.set_num_threads(1)
    run_and_exit(lambda: pretrain.main(arguments))


if __name__ == "__main__":
    run(Path(sys.argv[1]), yaml.safe_load(sys.argv[2]))
