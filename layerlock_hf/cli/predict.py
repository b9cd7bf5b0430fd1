"""Predict with a trained readout: a folder of videos in, classes or depth out.

layerlock predict MODEL VIDEOS OUT [--batch_size 8] [--num_workers 4] [--top_k 5] [--num_clips 1] [--bf16]

MODEL is the folder or Hub id of a model for video classification or depth estimation, saved with its video
processor. VIDEOS is whatever pretraining takes: a folder, a list (.csv, .json, .jsonl, .parquet) or a tar of videos.

OUT/predictions.jsonl has one line per video, in the order of the list:
    {"path": ..., "labels": [{"label": ..., "score": ...}, ...]}                       from a classification model
    {"path": ..., "depth": "NAME.mp4", "num_frames": ..., "metres": {"min", "median", "max"}}       from a depth model
    {"path": ..., "error": ..., "kind": ...}                          for a video that cannot be read, and why
If no video at all can be read, these lines go to OUT/errors.jsonl. A video that is read only in part has a "note".
The scores of several clips of a video (--num_clips, from beginning to end) are averaged.

A depth video shows the input, its depth in colours, and a scale in metres from 0 to --max_depth. It is grey
where the model does not look: a readout sees the central square that it was trained on. If the frame rate of
a video varies, the depth video has its average. With --npz, OUT/NAME.npz holds `depth` in metres as predicted,
float32 (T, S, S); `box`, the top, left, height and width of the part of the frames it covers, in pixels; and
`frame_size`, their height and width.

Videos are decoded in child processes, so that a bad file cannot crash or hang the program. Files in OUT are never
partial. Exits with status 1 if the model cannot be loaded or no video can be read.
"""

import argparse
import math
import os
import sys
from pathlib import Path

import torch
from transformers.utils import logging

from ..evaluation.predict import (
    ERRORS,
    NUM_TOLD,
    PREDICTIONS,
    TASKS,
    Task,
    list_all,
    load_model,
    load_processor,
    task_of,
    write_predictions,
)
from ..evaluation.predict_depth import file_names
from ..utils.cores import count_cores
from ..utils.hub_names import check_checkpoint
from ..utils.outputs import check_output
from . import programs


def device(text: str) -> torch.device:
    """An argument that is a device on this machine."""
    try:
        found = torch.device(text)
        torch.zeros(1, device=found).item()  # PyTorch knows many that are not there, and "meta", which has no values
    except (RuntimeError, AssertionError, ImportError) as error:
        known = "cpu or cuda" if torch.cuda.is_available() else "cpu, as PyTorch finds no GPU here"
        raise argparse.ArgumentTypeError(f"must be a device on this machine ({known}), got {text!r}") from error
    return found


def metres(text: str) -> float:
    """An argument that is a distance."""
    try:
        distance = float(text)
    except ValueError:
        distance = math.nan
    if not 0 < distance < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of metres above 0, got {text!r}")
    return distance


def build_parser() -> argparse.ArgumentParser:
    parser = programs.Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", metavar="MODEL", help="Folder or Hub id of a trained readout.")
    parser.add_argument("videos", metavar="VIDEOS", help="Video, folder, list or tar.")
    parser.add_argument(
        "out",
        metavar="OUT",
        type=programs.folder,
        help="Folder to write to, without earlier predictions and outside VIDEOS.",
    )
    count = programs.whole(1)
    parser.add_argument("--batch_size", type=count, default=8, help="Clips per pass through the model (default 8).")
    parser.add_argument(
        "--num_workers",
        type=programs.whole(0),
        default=min(4, count_cores()),
        help="Processes that decode videos (0: the main process).",
    )
    parser.add_argument(
        "--device",
        type=device,
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="Device, as PyTorch names it.",
    )
    parser.add_argument("--bf16", action="store_true", help="Compute in bfloat16.")
    # Those of one task are only there if they are given
    absent = argparse.SUPPRESS
    classes = parser.add_argument_group("of models for classification")
    classes.add_argument("--top_k", type=count, default=absent, help="Labels per video (default 5).")
    classes.add_argument("--num_clips", type=count, default=absent, help="Clips per video (default 1).")
    depth = parser.add_argument_group("of models for depth")
    depth.add_argument(
        "--max_depth",
        type=metres,
        default=absent,
        help="Depth in metres of the last colour in depth videos (default 10).",
    )
    depth.add_argument("--npz", action="store_true", default=absent, help="Also write the depth in metres.")
    return parser


def settle_task(args: argparse.Namespace) -> Task:
    """The task of the model; the arguments are filled in with the options that only this task has.

    Raises:
        ValueError: as `task_of`, or if an option was given that this task does not have.
        OSError: as `task_of`.
    """
    task, architecture = task_of(args.model)
    for other in TASKS.values():
        for name in other.options:
            if name in args and name not in task.options:
                raise ValueError(f"--{name} has no effect on {args.model}, a {architecture}: leave it out")
    vars(args).update(task.options | vars(args))
    return task


def main(arguments: list[str]) -> int:
    args = build_parser().parse_args(arguments)
    logging.disable_progress_bar()
    if (args.out / PREDICTIONS).exists():
        raise SystemExit(f"error: OUT must be a folder without predictions, got {args.out}: choose another")
    if os.path.isdir(args.videos) and args.out.resolve().is_relative_to(Path(args.videos).resolve()):
        raise SystemExit(
            f"error: OUT must lie outside of VIDEOS, as videos may be written to it, got {args.out}: choose another"
        )
    with programs.errors_told("MODEL: "):
        args.model = check_checkpoint(args.model)
    with programs.errors_told():
        task = settle_task(args)
        processor = load_processor(args.model)
        check_output(args.out, (), "OUT")
        videos = list_all(args.videos)
        names = file_names(videos) if task.suffixes else []
        check_output(args.out, (name + suffix for name in names for suffix in task.suffixes), "OUT")
        model = load_model(args.model, task)
    predictions = task.predict(model.to(args.device), processor, videos, args)
    try:
        kinds, told = write_predictions(predictions, videos, args.out)
    except OSError as error:  # of a disk that is full, say; errors of any other kind would be ours
        raise SystemExit(f"error: OUT: cannot write to {args.out}: {error.strerror}") from error
    num_read = len(videos) - len(told)
    if num_read:
        print(f"{num_read} of {len(videos)} videos are in {args.out / PREDICTIONS}")
    else:
        print(f"no video can be read: {args.out / ERRORS} says why")
    if told:
        print(f"{kinds.total()} cannot be read: {', '.join(f'{kind} {num}' for kind, num in kinds.most_common())}")
        print("\n".join(f"  {line}" for line in [*told[:NUM_TOLD], *["..."] * (len(told) > NUM_TOLD)]))
    return 0 if num_read else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
