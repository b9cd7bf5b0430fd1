"""Predict with a trained readout: a folder of videos in, classes or depth out.

python scripts/predict.py MODEL VIDEOS OUT [--batch_size 8] [--num_workers 4] [--top_k 5] [--num_clips 1] [--bf16]

MODEL is a folder or an id on the Hub of a model for video classification or depth estimation, saved with its video
processor. VIDEOS is whatever pretraining takes: a folder, a list (.csv, .json, .jsonl, .parquet) or a tar of videos.

OUT/predictions.jsonl has one line per video, in the order of the list:
    {"path": ..., "labels": [{"label": ..., "score": ...}, ...]}                        of a model for classification
    {"path": ..., "depth": "NAME.mp4", "num_frames": ..., "metres": {"min", "median", "max"}}      of one for depth
    {"path": ..., "error": ..., "kind": ...}                              of a video that cannot be read, and why
If no video at all can be read, these lines are OUT/errors.jsonl. A video that is read in part only has a "note".
Scores of several clips of a video (--num_clips, from its beginning to its end) are averaged.

A depth video shows the input, its depth in colours, and the metres of the colours, from 0 to --max_depth. It is grey
where the model does not look: a readout sees the square in the middle that it was trained on. Where the frame rate of
a video varies, the depth video has its average. With --npz OUT/NAME.npz holds `depth` in metres as the model gave it,
float32 (T, S, S); `box`, the top, left, height and width of what it shows of the frames, in their pixels; and
`frame_size`, their height and width.

Videos are decoded in child processes, which a bad file may crash or hang. Files in OUT are whole or do not exist.
Exits with status 1 if the model cannot be loaded or no video can be read.
"""

import programs  # isort: skip  # before what takes long to import
import argparse
import functools
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForDepthEstimation, AutoModelForVideoClassification
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
from transformers.utils import logging

import layerlock_hf  # noqa: F401  (registers the models)
from layerlock_hf.data import DECODE_TIMEOUT, DecodingError, Isolated, fetch, load_videos, name_of, read_clip
from layerlock_hf.data.indexing import VIDEO_SUFFIXES
from layerlock_hf.evaluation.adapters.base import list_videos
from layerlock_hf.models.depth_windows import check_processor
from layerlock_hf.utils.cores import count_cores
from layerlock_hf.utils.files import put_in_place
from layerlock_hf.utils.hub_names import check_checkpoint
from outputs import check_output
from predict_depth import file_names, predict_depth


PREDICTIONS, ERRORS = "predictions.jsonl", "errors.jsonl"
NUM_TOLD = 10  # bad videos that are printed, of all that are in the file


class ClassifiedClips(torch.utils.data.Dataset):
    """The clips of each video of a list, made in a child process.

    An item is {"index", "clips": float (K, T, C, S, S), "note"}, or {"index", "error", "kind"}.
    """

    def __init__(self, videos, processor, num_clips: int):
        self.videos = videos
        self.processor = processor
        self.num_clips = num_clips
        self._read = Isolated(self._clips, DECODE_TIMEOUT)

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> dict:
        try:
            clips, note = self._read(fetch(self.videos[index]))
        except DecodingError as error:
            return {"index": index, "error": str(error), "kind": error.kind}
        return {"index": index, "clips": torch.from_numpy(clips), "note": note}

    def _clips(self, source: str | bytes) -> tuple[np.ndarray, str | None]:
        clips = []
        for number in range(self.num_clips):  # one after the other: together they may not fit into memory
            choose = functools.partial(self._indices, number=number)
            clip = read_clip(source, choose, frame_rate=self.processor.frame_rate)
            settings = {"do_sample_frames": True, "frame_stride": 1}  # repeats the last frame of a short one
            settings |= {"input_data_format": "channels_first", "pixel_aspect": clip.pixel_aspect}
            clips.append(self.processor(clip.frames, **settings)["pixel_values_videos"])
        return torch.cat(clips).numpy(), clip.note

    def _indices(self, length: int, number: int) -> list[int]:
        """The frames of one of the clips, of a video of so many frames."""
        if self.num_clips == 1:
            return self.processor.sample_frames(length)
        stride = self.processor.frame_stride
        last_start = max(0, length - (self.processor.num_frames - 1) * stride - 1)
        start = round(last_start * number / (self.num_clips - 1))
        return list(range(start, length, stride))[: self.processor.num_frames]


def classify(model, processor, videos, args) -> Iterator[tuple[int, dict]]:
    """The number and the prediction of each video, in order."""
    clips = ClassifiedClips(videos, processor, args.num_clips)
    loader = torch.utils.data.DataLoader(
        clips, batch_size=args.batch_size, num_workers=args.num_workers, collate_fn=list
    )
    for items in loader:
        read = [item for item in items if "clips" in item]
        rows = iter(best_labels(model, [item["clips"] for item in read], args))
        for item in items:
            index = item.pop("index")
            if "clips" not in item:
                yield index, item
            else:
                yield index, {"labels": next(rows), **({"note": item["note"]} if item["note"] else {})}


def best_labels(model, videos: list[torch.Tensor], args) -> list[list[dict]]:
    """The most likely labels of each video, from its clips (K, T, C, H, W)."""
    if not videos:
        return []
    config, scores = model.config, []
    for clips in torch.cat(videos).split(args.batch_size):
        with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16, enabled=args.bf16):
            logits = model(pixel_values_videos=clips.to(model.device)).logits.float()
        is_multi_label = config.problem_type == "multi_label_classification"
        scores.append((logits.sigmoid() if is_multi_label else logits.softmax(dim=-1)).cpu())
    means = torch.cat(scores).split([len(clips) for clips in videos])
    best = [scores.mean(dim=0).topk(min(args.top_k, config.num_labels)) for scores in means]
    return [
        [
            {"label": config.id2label[label], "score": round(score, 6)}
            for score, label in zip(values.tolist(), labels.tolist(), strict=True)
        ]
        for values, labels in best
    ]


@dataclass(frozen=True)
class Task:
    """What a kind of model is for.

    Args:
        model_class: loads it.
        predict: makes its predictions.
        options: that it alone has, with their defaults.
        suffixes: of the files that each video may get.
    """

    model_class: type
    predict: Callable
    options: dict
    suffixes: tuple[str, ...] = ()


# By the end of the name of the model's class
TASKS = {
    "ForVideoClassification": Task(AutoModelForVideoClassification, classify, {"top_k": 5, "num_clips": 1}),
    "ForDepthEstimation": Task(
        AutoModelForDepthEstimation, predict_depth, {"max_depth": 10.0, "npz": False}, (".mp4", ".npz")
    ),
}


def settle_task(args: argparse.Namespace) -> Task:
    """What the model is for, by its configuration alone; its options are filled into the arguments.

    Raises:
        ValueError: if it is none of the models that predict, or an option was given that it has not.
        OSError: if it cannot be found.
    """
    architecture = (AutoConfig.from_pretrained(args.model).architectures or ["model of unknown class"])[0]
    task = next((task for ending, task in TASKS.items() if architecture.endswith(ending)), None)
    if task is None:
        raise ValueError(f"{args.model} is a {architecture}; give a readout for classification or depth")
    for other in TASKS.values():
        for name in other.options:
            if name in args and name not in task.options:
                raise ValueError(f"--{name} has no effect on a {architecture}, which {args.model} is: leave it out")
    vars(args).update(task.options | vars(args))
    return task


def load_processor(name: str):
    """
    Raises:
        ValueError: unless there is one of ours.
    """
    try:
        processor = AutoVideoProcessor.from_pretrained(name)
    except (OSError, ValueError, ImportError):  # there is none, or another, which may need what is not installed
        processor = None
    check_processor(processor)
    return processor


def load_model(name: str, task: Task):
    """
    Raises:
        ValueError: if it lacks trained weights, or they are damaged or of another model.
        OSError: if there are none.
    """
    try:
        model, info = task.model_class.from_pretrained(name, output_loading_info=True, ignore_mismatched_sizes=True)
    except SafetensorError as error:
        raise ValueError(f"the weights of {name} are damaged ({error}): copy them anew") from error
    except StrictDataclassError as error:
        raise ValueError(f"the config.json of {name} is damaged: {error}") from error
    if info["missing_keys"]:
        raise ValueError(f"{name} lacks weights, such as {sorted(info['missing_keys'])[0]}; give a trained readout")
    for weight, found, wanted in sorted(info["mismatched_keys"]):
        raise ValueError(
            f"{name} has a config.json of another model: {weight} must be {tuple(wanted)} by it, got {tuple(found)}; "
            "copy both anew from where it was trained"
        )
    return model.eval()


def list_all(source: str):
    """The videos of a source, which may be a single one."""
    if os.path.isfile(source) and Path(source).suffix.lower() in VIDEO_SUFFIXES:
        return list_videos([source], [0], [""]).videos
    return load_videos(source)


def write_predictions(predictions, videos, folder: Path) -> tuple[Counter, list[str]]:
    """Write the lines, with a progress bar; count the errors by kind, and tell of each.

    Where there are only errors, no predictions are left that would be in the way of another try.
    """
    kinds, told = Counter(), []
    part = folder / f"{PREDICTIONS}.part"
    with part.open("w", encoding="utf-8") as file, tqdm(total=len(videos), unit="video") as progress:
        for index, prediction in predictions:
            path = name_of(videos[index], index)
            file.write(json.dumps({"path": path, **prediction}, ensure_ascii=False) + "\n")
            if "error" in prediction:
                kinds[prediction["kind"]] += 1
                told.append(f"{path}: {prediction['error']}")
                progress.set_postfix(bad=kinds.total())
            progress.update()
    if len(told) == len(videos):
        put_in_place(part, folder / ERRORS)
    else:
        put_in_place(part, folder / PREDICTIONS)
        (folder / ERRORS).unlink(missing_ok=True)  # of an earlier try
    return kinds, told


def device(text: str) -> torch.device:
    """An argument that is a device of this machine."""
    try:
        found = torch.device(text)
        torch.zeros(1, device=found).item()  # PyTorch knows many that are not there, and "meta", which has no values
    except (RuntimeError, AssertionError, ImportError) as error:
        known = "cpu or cuda" if torch.cuda.is_available() else "cpu, for PyTorch finds no GPU here"
        raise argparse.ArgumentTypeError(f"must be a device of this machine ({known}), got {text!r}") from error
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", metavar="MODEL", help="Folder or id on the Hub.")
    parser.add_argument("videos", metavar="VIDEOS", help="Video, folder, list or tar.")
    parser.add_argument(
        "out", metavar="OUT", type=programs.folder, help="Folder without predictions so far, outside of VIDEOS."
    )
    count = programs.whole(1)
    parser.add_argument("--batch_size", type=count, default=8, help="Clips per pass through the model (default 8).")
    parser.add_argument(
        "--num_workers",
        type=programs.whole(0),
        default=min(4, count_cores()),
        help="Processes that decode; 0 is this one.",
    )
    parser.add_argument(
        "--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu", help="As PyTorch has it."
    )
    parser.add_argument("--bf16", action="store_true", help="Compute in bfloat16.")
    # Those of one task are only there if they are given
    absent = argparse.SUPPRESS
    classes = parser.add_argument_group("of models for classification")
    classes.add_argument("--top_k", type=count, default=absent, help="Labels per video (default 5).")
    classes.add_argument("--num_clips", type=count, default=absent, help="Clips per video (default 1).")
    depth = parser.add_argument_group("of models for depth")
    depth.add_argument("--max_depth", type=metres, default=absent, help="Metres of the last colour (default 10).")
    depth.add_argument("--npz", action="store_true", default=absent, help="Write the metres of depth, too.")
    return parser


def main(arguments: list[str] | None = None) -> int:
    args = build_parser().parse_args(arguments)
    logging.disable_progress_bar()
    if (args.out / PREDICTIONS).exists():
        raise SystemExit(f"error: {args.out} holds predictions already; give another folder")
    if os.path.isdir(args.videos) and args.out.resolve().is_relative_to(Path(args.videos).resolve()):
        raise SystemExit(
            f"error: OUT must lie outside of VIDEOS, for it may get videos, got {args.out}: choose another"
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
    sys.exit(main())
