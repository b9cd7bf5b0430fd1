"""A readout during pretraining: how well the features classify a few labelled clips."""

import time
from collections.abc import Iterable

import torch
from transformers import TrainerCallback
from transformers.utils import logging

from ..data import (
    DECODE_TIMEOUT,
    DecodingError,
    Isolated,
    center_crop,
    fetch,
    generator_for,
    is_remote,
    name_of,
    read_clip,
    repeat_last_frame,
)
from ..data.addresses import check_classes
from .probes import encode, knn_accuracy, linear_accuracy, mean_features, probe_depths


logger = logging.get_logger(__name__)

MAX_VIDEOS = 512


def labelled_videos(videos, max_videos: int = MAX_VIDEOS):
    """At most `max_videos` rows of a dataset of `load_videos`, and their classes (B,), counted from 0.

    Which rows, and in which order, is random but always the same.

    Raises:
        ValueError: without labels, or with fewer than two classes.
    """
    if max_videos < 2:
        raise ValueError(f"max_videos (readout_max_videos) must be at least 2, got {max_videos}")
    if "label" not in videos.column_names:
        raise ValueError("the videos have no labels: give a list or a dataset with a column label")
    order = torch.randperm(len(videos), generator=generator_for("readout")).tolist()[:max_videos]
    videos = videos.select(order)
    names = list(videos["label"])
    check_classes("readout_data", names)
    classes = {name: index for index, name in enumerate(sorted(set(names)))}
    if len(classes) < 2:
        raise ValueError(f"videos must have at least two classes, got only {names[0]!r}")
    return videos, torch.tensor([classes[name] for name in names])


def center_clips(
    videos: Iterable[dict],
    labels: torch.Tensor,
    num_frames: int,
    frame_stride: int,
    image_size: int,
    resize_factor: float,
    frame_rate: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The middle of every video, decoded once: bytes (B, T, C, H, W), and the labels of those that decode.

    A short video repeats its last frame, as in pretraining; one that does not decode is left out with a warning. The
    arguments are those of `PretrainingClips` and of `center_crop`.

    Raises:
        ValueError: if fewer than two remain.
    """
    span = (num_frames - 1) * frame_stride + 1

    def choose(available: int) -> list[int]:
        start = max(0, available - span) // 2
        return list(range(start, available, frame_stride))[:num_frames]

    def clip(row: dict, source: bytes | None):
        clip = read_clip(fetch(row) if source is None else source, choose, frame_rate=frame_rate)
        frames = center_crop(clip.frames, image_size, resize_factor, clip.pixel_aspect)
        return repeat_last_frame(frames, num_frames).numpy()

    isolated_clip = Isolated(clip, DECODE_TIMEOUT)
    clips, kept = [], []
    for index, (row, label) in enumerate(zip(videos, labels.tolist(), strict=True)):
        try:
            # A network has limits of time of its own
            frames = isolated_clip(row, fetch(row) if is_remote(row) else None)
        except DecodingError as error:
            logger.warning(f"the readout skips {name_of(row, index)}: {error}")
            continue
        clips.append(torch.from_numpy(frames))
        kept.append(label)
    if len(clips) < 2:
        raise ValueError(f"only {len(clips)} of {len(labels)} videos can be decoded")
    return torch.stack(clips), torch.tensor(kept)


class OnlineReadout(TrainerCallback):
    """Logs `readout/knn_accuracy_layer_K` of the encoder every `steps` optimizer steps, from step 0 to the end.

    Features are means over the tokens of whole clips, in eval mode; neighbours are all other clips. The measurement
    only reads the model and draws nothing random, so training stays bit-identical. It runs on the main process while
    the others wait, at the beginning of a step: a resumed run measures what the uninterrupted one did. Its time, which
    `readout/seconds` records, counts in the clips per second of the next log.

    Args:
        trainer: whose encoder (`model.base_model`, which offers `tap`) is read, and whose `log` takes the results.
        clips, labels: bytes (B, T, C, H, W) and classes (B,); needed on the main process alone.
        steps: optimizer steps between measurements.
        depths: layers to read; a quarter, half, three quarters and all if None.
        linear: also `readout/linear_accuracy_layer_K`, of a ridge classifier fitted to every other clip and tested on
            the rest.
        batch_size: clips that are encoded at once.

    Raises:
        ValueError: naming the setting, if it cannot be done.
    """

    def __init__(
        self,
        trainer,
        clips: torch.Tensor | None,
        labels: torch.Tensor | None,
        steps: int,
        depths: list[int] | None = None,
        linear: bool = False,
        batch_size: int = 32,
    ):
        if steps < 1:
            raise ValueError(f"readout_steps must be at least 1, got {steps}")
        if trainer.is_fsdp_enabled:
            raise ValueError("readout_steps must be left out with FSDP: a single process cannot read a sharded model")
        if linear and labels is not None and len(labels) < 10:
            raise ValueError(f"readout_linear needs at least 10 videos, got {len(labels)}")
        self.trainer, self.clips, self.labels, self.steps = trainer, clips, labels, steps
        self.depths = depths or probe_depths(trainer.model.config.num_hidden_layers)
        self.linear, self.batch_size = linear, batch_size
        self._measured_step = -1

    # Not at the end of a step: there a log of ours would pass for the one that the Trainer owes

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step % self.steps == 0:
            self._read_out(state)

    def on_train_end(self, args, state, control, **kwargs):
        self._read_out(state)

    def _read_out(self, state):
        if state.global_step == self._measured_step:
            return
        self._measured_step = state.global_step
        if state.is_world_process_zero:
            self.trainer.log(self.measure())
        self.trainer.accelerator.wait_for_everyone()

    def measure(self) -> dict[str, float]:
        """The accuracies now, and the seconds it took to find them."""
        start = time.perf_counter()
        encoder = self.trainer.accelerator.unwrap_model(self.trainer.model).base_model
        modes = [(module, module.training) for module in encoder.modules()]
        encoder.eval()
        try:
            with self.trainer.accelerator.autocast():
                features = encode(encoder, self.clips, self.depths, self.batch_size, mean_features)
        finally:
            for module, was_training in modes:
                module.training = was_training
        logs = {}
        for depth, values in zip(self.depths, features, strict=True):
            logs[f"readout/knn_accuracy_layer_{depth}"] = knn_accuracy(values, self.labels)
            if self.linear:
                halves = (values[::2], self.labels[::2], values[1::2], self.labels[1::2])
                logs[f"readout/linear_accuracy_layer_{depth}"] = linear_accuracy(*halves)[0]
        return logs | {"readout/seconds": time.perf_counter() - start}
