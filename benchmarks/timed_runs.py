"""Clips of decoded videos, a stopwatch that probes, and the contenders of benchmarks/time_to_quality.py."""

import copy
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, TrainerCallback, VideoMAEConfig, VideoMAEForPreTraining, set_seed

from comparing import REFERENCE, load_checked, model_config, recipe_path
from layerlock_hf import LayerLockViTConfig
from layerlock_hf.data import PretrainingClips, PretrainingCollator, fetch, load_videos, read_clip
from layerlock_hf.data.masks import TubeMask
from layerlock_hf.evaluation import (
    center_clips,
    clip_features,
    encode,
    labelled_videos,
    linear_accuracy,
    probe_depths,
)
from layerlock_hf.models import TransformersEncoder, TransformersEncoderConfig
from layerlock_hf.pretraining.arguments import parse
from layerlock_hf.pretraining.build import build, build_clips
from layerlock_hf.recipes.shortening import shortened
from layerlock_hf.training.schedules import scheduled_factor


TUBE_RATIO = 0.75
# Of a run of `layerlock pretrain` that is timed: it leaves nothing, and data are made in its own process
TIMED = {
    "use_cpu": True,
    "dataloader_num_workers": 0,
    "decode_timeout": 0,
    "diagnostics_steps": 0,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


# ---- clips


class DecodedClips(Dataset):
    """The clips that `PretrainingClips` would make, of videos that have been decoded.

    Args:
        clips: says which clip a position shows.
        frames: all frames of every video of `clips`, each uint8 (T, C, H, W).
    """

    def __init__(self, clips: PretrainingClips, frames: list[torch.Tensor]):
        self.clips, self.frames = clips, frames

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, position: int) -> dict:
        first = self.clips.order.first_of(position)
        frames = self.frames[self.clips.order.video_at(position)]
        frames = frames[self.clips.window(first)(len(frames))]
        augmentation = self.clips.draw(position, *frames.shape[-2:])
        video = augmentation.finish(augmentation.crop(frames), self.clips.transform.image_size)
        return {"pixel_values_videos": video, "position": position, "is_padded": False}


def decode_all(videos) -> list[torch.Tensor]:
    """All frames of every video, each uint8 (T, C, H, W), as `DecodedClips` takes them."""
    return [read_clip(fetch(row), lambda count: list(range(count))).frames for row in videos]


@dataclass(frozen=True)
class Data:
    """What all runs share.

    Attributes:
        videos: folder of the videos to train on.
        frames: their frames, as `DecodedClips` takes them.
        probe: clips to fit the probes to, uint8 (B, T, C, H, W), their motions (B,), and the same to test them.
    """

    videos: Path
    frames: list[torch.Tensor]
    probe: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

    @classmethod
    def load(cls, folder: Path, num_fit: int, num_test: int) -> "Data":
        """Of a folder as `runs.write_data` writes it.

        Raises:
            ValueError: if it is none.
        """
        recipe = load_checked(REFERENCE)
        config = model_config(recipe)
        shape = (config.num_frames, recipe["frame_stride"], config.image_size, recipe["resize_factor"])
        probe = []
        for name, count in (("train", num_fit), ("test", num_test)):
            rows, labels = labelled_videos(load_videos(str(folder / "probe" / name / "videos.csv")), count)
            probe += center_clips(rows, labels, *shape)
        videos = folder / "train" / "videos"
        frames = decode_all(load_videos(str(videos)))
        span = (config.num_frames - 1) * recipe["frame_stride"] + 1
        if min(map(len, frames)) < span:
            raise ValueError(
                f"data must hold videos of {span} frames or more, got {min(map(len, frames))} in {videos}"
            )
        return cls(videos, frames, tuple(probe))


# ---- the clock


def probe_motion(encoder, clips, labels, test_clips, test_labels) -> dict:
    """Accuracy on the test clips at the layer that does best on held-out ones of the others."""
    grid_size = encoder.grid_size(clips[:1].float())
    depths = probe_depths(encoder.config.num_hidden_layers)
    both = [
        encode(encoder, some, depths, pool=lambda tokens: clip_features(tokens, grid_size))
        for some in (clips, test_clips)
    ]
    scores = []
    for depth, known, asked in zip(depths, *both, strict=True):
        accuracy, held_out = linear_accuracy(known, labels, asked, test_labels)
        scores.append({"accuracy": accuracy, "held_out": held_out, "layer": depth})
    return max(scores, key=lambda score: score["held_out"])


class Stopwatch:
    """Measures the time that training takes, and probes along it, which it does not count.

    Args:
        probe: from the encoder to what is found about it.
        max_steps: steps of the run.
        probe_seconds: seconds of training from one probe to the next.
        max_seconds: seconds of training after which the run is cut.

    Attributes:
        curve: what was found, with the steps, the seconds of training and the processor's seconds before it.
    """

    def __init__(
        self, probe: Callable[[torch.nn.Module], dict], max_steps: int, probe_seconds: float, max_seconds: float
    ):
        self.curve = []
        self._probe, self._max_steps = probe, max_steps
        self._probe_seconds, self._max_seconds = probe_seconds, max_seconds
        self._seconds = self._processor_seconds = self._due = 0.0
        self._resumed = (0.0, 0.0)

    def start(self, encoder: torch.nn.Module):
        """Probe the encoder that is going to be trained. Training begins."""
        self._encoder = encoder
        self._read(0)
        self._resume()

    def stops_after(self, step: int) -> bool:
        """Whether this step was the last one, that many being done."""
        seconds, processor_seconds = self._resumed
        self._seconds += time.perf_counter() - seconds
        self._processor_seconds += time.process_time() - processor_seconds
        is_last = step == self._max_steps or self._seconds >= self._max_seconds
        if is_last or self._seconds >= self._due:
            self._read(step)
        self._resume()
        return is_last

    def _resume(self):
        self._resumed = time.perf_counter(), time.process_time()

    def _read(self, step: int):
        begin = time.perf_counter()
        point = {"step": step, "seconds": self._seconds, "processor_seconds": self._processor_seconds}
        point |= self._probe(self._encoder)
        self.curve.append(point)
        self._due = (self._seconds // self._probe_seconds + 1) * self._probe_seconds
        print(
            f"  step {step:5}, {self._seconds:6.1f} s: motion {point['accuracy']:.1%} (layer {point['layer']}, "
            f"held out {point['held_out']:.1%}); the probe took {time.perf_counter() - begin:.1f} s",
            flush=True,
        )


class Timed(TrainerCallback):
    """Lets a stopwatch follow the run of a `LayerLockTrainer`."""

    def __init__(self, stopwatch: Stopwatch):
        self.stopwatch = stopwatch

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.stopwatch.start(model.encoder)

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= self.stopwatch.stops_after(state.global_step)


# ---- contenders


@dataclass(frozen=True)
class Ours:
    """A recipe, run by `LayerLockTrainer` as `layerlock pretrain` does.

    Attributes:
        title: its name in tables.
        recipe: its name.
        learning_rates: those to choose from; that of the recipe if there are none.
    """

    title: str
    recipe: str
    learning_rates: tuple[float, ...] = ()

    def settings(self, max_steps: int, seed: int, learning_rate: float | None) -> dict:
        """All of a run: those of the recipe, its schedules in proportion."""
        recipe = load_checked(self.recipe)
        settings = recipe | TIMED | shortened(recipe, max_steps) | {"seed": seed, "logging_steps": max_steps}
        if learning_rate is not None:
            factor = learning_rate / recipe["learning_rate"]
            settings |= {name: factor * recipe[name] for name in ("learning_rate", "last_learning_rate")}
        return settings

    def arguments(self, settings: dict, data: Data, folder: str) -> list[str]:
        """The command line of `layerlock pretrain` that has these settings."""
        arguments = ["--config", str(recipe_path(self.recipe)), "--train_data", str(data.videos)]
        recipe = load_checked(self.recipe)
        for name, value in settings.items():
            if recipe.get(name) != value:
                arguments += [f"--{name}", str(value)]
        return [*arguments, "--output_dir", folder]

    def describe(self, settings: dict) -> dict:
        """What decides a run with these settings."""
        return settings

    def train(self, settings: dict, data: Data, stopwatch: Stopwatch) -> float | None:
        """Train by these settings until the stopwatch says stop.

        Returns:
            counted FLOPs of a step, on average over the run; None if they are not counted.
        """
        with tempfile.TemporaryDirectory() as folder:
            trainer = build(parse(self.arguments(settings, data, folder)))
            trainer.train_dataset = DecodedClips(trainer.train_dataset, data.frames)
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(Timed(stopwatch))
            trainer.train()
            if trainer.was_preempted:
                raise SystemExit(128 + trainer.stop_signal)
        return trainer.state.total_flos / trainer.state.global_step


@dataclass(frozen=True)
class VideoMAE(Ours):
    """`VideoMAEForPreTraining`, with the sizes of the encoder, the clips, batches and schedules of a recipe."""

    def describe(self, settings: dict) -> dict:
        own = {name: value for name, value in settings.items() if not name.startswith("mask")}
        return own | {"tube_ratio": TUBE_RATIO, "videomae": videomae_config(model_config(settings)).to_diff_dict()}

    def train(self, settings: dict, data: Data, stopwatch: Stopwatch) -> float | None:
        config = model_config(settings)
        with tempfile.TemporaryDirectory() as folder:
            parsed = parse(self.arguments(settings, data, folder))
            data_args, args = parsed.data, parsed.training
            num_samples = args.max_steps * args.per_device_train_batch_size
            clips = build_clips(data_args, args, config, num_samples, Path(folder) / "bad_videos.jsonl")
        collator = PretrainingCollator(config.grid_size, TubeMask(TUBE_RATIO), args.seed)
        batches = DataLoader(DecodedClips(clips, data.frames), args.per_device_train_batch_size, collate_fn=collator)
        set_seed(args.seed)
        model = VideoMAEForPreTraining(videomae_config(config))
        groups, betas = decay_groups(model, args.weight_decay), (args.adam_beta1, args.adam_beta2)
        optimizer = torch.optim.AdamW(groups, args.learning_rate, betas, fused=True)  # as the Trainer does by default
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: scheduled_factor(step, args.max_steps, [], args)
        )
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (config.pixel_mean, config.pixel_std))
        stopwatch.start(encoder_of(model, config))
        for step, batch in enumerate(batches, 1):
            is_hidden = torch.ones(len(batch["context_ids"]), config.num_tokens, dtype=torch.bool)
            is_hidden.scatter_(1, batch["context_ids"], False)
            # The model takes ImageNet's statistics back; normalised patches do not depend on which they were
            video = (batch["pixel_values_videos"].float() / 255 - mean) / std
            optimizer.zero_grad()
            model(video, is_hidden).loss.backward()
            clip_grad_norm_(model.parameters(), args.max_grad_norm)
            optimizer.step()
            schedule.step()
            if stopwatch.stops_after(step):
                break
        return None


def videomae_config(config: LayerLockViTConfig) -> VideoMAEConfig:
    """An encoder of the same sizes, and the decoder of VideoMAE's proportions: four layers, half of all widths."""
    return VideoMAEConfig(
        image_size=config.image_size,
        patch_size=config.patch_size,
        num_frames=config.num_frames,
        tubelet_size=config.tubelet_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        use_mean_pooling=False,  # which puts a norm before the decoder, as in VideoMAE's own checkpoints
        decoder_hidden_size=config.hidden_size // 2,
        decoder_num_hidden_layers=4,
        decoder_num_attention_heads=config.num_attention_heads // 2,
        decoder_intermediate_size=config.intermediate_size // 2,
        norm_pix_loss=True,
    )


def encoder_of(model: VideoMAEForPreTraining, config: LayerLockViTConfig) -> TransformersEncoder:
    """The encoder as it learns, with the verbs of ours."""
    clips = {name: getattr(config, name) for name in ("image_size", "num_frames", "pixel_mean", "pixel_std")}
    # A copy: a model sets the attention of all configurations within its own, and the one that learns would lose its
    config = TransformersEncoderConfig(encoder_config=copy.deepcopy(model.videomae.config), **clips)
    return TransformersEncoder(config, model.videomae)


def decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay is for the weights of linear layers and of the patch embedding."""
    groups = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[name.endswith("weight") and parameter.ndim > 1].append(parameter)
    return [{"params": groups[True], "weight_decay": weight_decay}, {"params": groups[False], "weight_decay": 0.0}]
