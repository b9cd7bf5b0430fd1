"""A look at the data of a run before it starts: what the model sees, what each step of loading costs, what to change.

python scripts/inspect_data.py --config RECIPE --train_data VIDEOS --output_dir OUT [--SETTING VALUE ...]

Takes the settings of pretrain.py, and makes the first clips of that run step by step. OUT receives `clips.png` (clips
with their masks, video and time) and `times.png`; the times, the clips per second that data workers make, advice and
the bad videos among those met are printed. Nothing is trained, and no file of a run in OUT is changed.
"""

import programs  # noqa: F401  # isort: skip
import argparse
import math
import os
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
from huggingface_hub.errors import StrictDataclassError

from inspect_data_advice import Measured, advice
from inspect_data_plots import plot_clips, plot_times
from inspect_data_steps import clips_per_second, look_at_clips, time_batches
from layerlock_hf.data import (
    BadData,
    BatchAugmentation,
    ClipTransform,
    PretrainingCollator,
)
from layerlock_hf.utils.cores import count_cores
from outputs import check_output, message_of, print_table, read_lines
from pretrain import REPORTS, build_clips, model_config
from pretrain_arguments import parse


CLIPS, TIMES = "clips.png", "times.png"
NUM_SHOWN = 8  # clips of the picture
NUM_POSITIONS = 10**9  # of the run, more than are ever drawn


def parser_of_this_program() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--num_clips", type=int, default=16, help="Clips whose steps are timed (default 16).")
    parser.add_argument("--seconds", type=float, default=5.0, help="For which workers are timed (default 5).")
    parser.add_argument(
        "--step_seconds",
        type=float,
        help="Of a step of pretrain.py by this recipe on one process; its --rehearse true tells.",
    )
    return parser


def read_settings(arguments: list[str]):
    """The settings of this program and those of the run.

    Raises:
        ValueError: naming the culprit.
    """
    own, rest = parser_of_this_program().parse_known_args(arguments)
    for name, value in vars(own).items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}; give more than 0")
    return own, parse(rest, also=vars(own))


def inspect(arguments: list[str], scratch: Path) -> tuple[Measured, list[dict], Path]:
    """Measure and write the picture of the clips; return the measurements, the bad videos met, and OUT.

    Raises:
        ValueError: for the user, as of pretrain.py.
    """
    own, (model_args, _, data_args, mask_args, _, training_args) = read_settings(arguments)
    if data_args.decode_device != "cpu":
        raise ValueError(f"decode_device is {data_args.decode_device}: only decoding on the CPU can be timed in steps")
    output = Path(training_args.output_dir)
    check_output(output, REPORTS)
    config = model_config(model_args)
    data_args.max_bad_fraction = 1.0
    clips = build_clips(data_args, training_args, config, NUM_POSITIONS, scratch / "bad_videos.jsonl")
    videos, bad_videos = clips.videos, clips.bad_videos
    batch_transform = BatchAugmentation(config.image_size, config.num_frames) if clips.augment_on_device else None
    collator = PretrainingCollator(config.grid_size, mask_args.build(), training_args.seed)

    load = os.getloadavg()[0]
    looks = look_at_clips(clips, data_args.decode_timeout, own.num_clips, bad_videos)
    if not looks:
        reasons = [f"{row['path']} ({row['reason']})" for row in read_lines(Path(bad_videos.path))[:3]]
        raise ValueError(f"train_data: none of {len(videos)} videos can be decoded, among them {'; '.join(reasons)}")
    plot_clips(looks[:NUM_SHOWN], collator, config, output / CLIPS)
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
            number: clips_per_second(clips, collator, batch_size, 1000 * place, number, own.seconds)
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
        step_seconds=own.step_seconds,
    )
    path = Path(bad_videos.path)
    return measured, read_lines(path) if path.exists() else [], output


def shortest_side(transform: ClipTransform) -> int:
    """Pixels, an even number, of the shortest side of videos large enough that no square window is enlarged."""
    factor = transform.central_factor if transform.crop_scale is None else transform.crop_scale[0] ** -0.5
    return 2 * math.ceil(transform.image_size * factor / 2)


def main(arguments: list[str]):
    try:
        with tempfile.TemporaryDirectory() as scratch:
            measured, bad_videos, output = inspect(arguments, Path(scratch))
    except (ValueError, StrictDataclassError) as error:
        raise SystemExit(f"error: {error}") from None
    except BadData as error:
        raise SystemExit(f"error: {message_of(error)}") from None
    sentences = advice(measured)
    plot_times(measured, sentences[0], output / TIMES)
    rows = []
    for step, seconds in measured.seconds().items():
        low, median, high = (f"{1000 * value:.3f}" for value in np.percentile(seconds, (25, 50, 75)))
        rows.append(
            {
                "step": step,
                "mean_ms": 1000 * float(np.mean(seconds)),
                "median": median,
                "quartiles": f"{low} to {high}",
            }
        )
    print_table(rows)
    print(f"of {len(measured.looks)} clips\n")
    for number, rate in measured.rates.items():
        print(f"{rate:.1f} clips/s by {number} worker{'s' * (number != 1)}")
    print()
    for sentence in sentences:
        print(textwrap.fill(sentence, 100, subsequent_indent="  "))
    if bad_videos:
        print("\nBad videos among those met (pretrain.py lists all that it meets in bad_videos.jsonl):")
    for row in bad_videos:
        print(f"  {'used' if row['used'] else 'replaced'}: {row['path']}: {row['reason']}")
    print(f"\nLook at {output / CLIPS} and {output / TIMES}")


if __name__ == "__main__":
    main(sys.argv[1:])
