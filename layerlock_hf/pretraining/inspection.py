"""A look at the data of a run before it starts."""

import math
import os
from dataclasses import replace
from pathlib import Path

from ..data import BatchAugmentation, ClipTransform, PretrainingCollator
from ..data.inspection.advice import Measured
from ..data.inspection.plots import plot_clips
from ..data.inspection.steps import clips_per_second, look_at_clips, time_batches
from ..utils.cores import count_cores
from ..utils.outputs import check_output, read_lines
from .arguments import RunSettings
from .build import build_clips, model_config
from .reports import REPORTS


CLIPS, TIMES = "clips.png", "times.png"
NUM_SHOWN = 8  # clips of the picture
NUM_POSITIONS = 10**9  # of the run, more than are ever drawn


def inspect_run(
    settings: RunSettings, num_clips: int, seconds: float, step_seconds: float | None, report: Path
) -> tuple[Measured, list[dict]]:
    """Measure the steps of loading, and write a picture of the first clips; the measurements, and the bad videos met.

    Args:
        settings: of the run.
        num_clips: whose steps are timed.
        seconds: for which data workers are timed.
        step_seconds: that the model takes for a step, if known.
        report: a file for the bad videos met.

    Raises:
        ValueError: naming the setting that is wrong.
        BadData: if too many videos cannot be used.
    """
    data_args, training_args = settings.data, settings.training
    if data_args.decode_device != "cpu":
        raise ValueError(
            f"decode_device must be cpu, got {data_args.decode_device}: only decoding on the CPU can be timed step "
            "by step"
        )
    output = Path(training_args.output_dir)
    check_output(output, REPORTS)
    config = model_config(settings.model)
    data_args = replace(data_args, max_bad_fraction=1.0)
    clips = build_clips(data_args, training_args, config, NUM_POSITIONS, report)
    videos, bad_videos = clips.videos, clips.bad_videos
    batch_transform = BatchAugmentation(config.image_size, config.num_frames) if clips.augment_on_device else None
    collator = PretrainingCollator(config.grid_size, settings.masks.build(), training_args.seed)

    load = os.getloadavg()[0]
    looks = look_at_clips(clips, data_args.decode_timeout, num_clips, bad_videos)
    if not looks:
        reasons = [f"{row['path']} ({row['reason']})" for row in read_lines(Path(bad_videos.path))[:3]]
        raise ValueError(f"train_data: none of {len(videos)} videos can be decoded, among them {'; '.join(reasons)}")
    plot_clips(looks[:NUM_SHOWN], collator, config.num_frames, config.image_size, output / CLIPS)
    batch_size, num_workers = training_args.per_device_train_batch_size, training_args.dataloader_num_workers
    measured = Measured(
        looks,
        time_batches(
            looks,
            collator,
            batch_transform,
            batch_size,
            training_args.device,
            training_args.dataloader_pin_memory,
        ),
        # Far apart, so that no measurement of a large data set reads videos that one before left in memory
        {
            number: clips_per_second(clips, collator, batch_size, 1000 * place, number, seconds)
            for place, number in enumerate(sorted({1, num_workers}), start=1)
        },
        num_workers=num_workers,
        num_cores=count_cores(),
        load=load,
        has_gpu=training_args.device.type == "cuda",
        image_size=config.image_size,
        span=(config.num_frames - 1) * data_args.frame_stride + 1,
        shortest_side=shortest_side(clips.transform),
        clips_per_video=data_args.clips_per_video,
        clips_per_step=batch_size * training_args.gradient_accumulation_steps,
        step_seconds=step_seconds,
    )
    path = Path(bad_videos.path)
    return measured, read_lines(path) if path.exists() else []


def shortest_side(transform: ClipTransform) -> int:
    """Pixels, an even number, of the shortest side of videos large enough that no square window is enlarged."""
    factor = transform.central_factor if transform.crop_scale is None else transform.crop_scale[0] ** -0.5
    return 2 * math.ceil(transform.image_size * factor / 2)
