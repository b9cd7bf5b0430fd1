"""Predictions of trained readouts for videos: classes, or depth."""

import functools
import os
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

from ..data import DECODE_TIMEOUT, DecodingError, Isolated, fetch, load_videos, name_of, read_clip
from ..data.indexes import VIDEO_SUFFIXES
from ..models.depth_windows import check_processor
from ..utils.files import put_in_place
from ..utils.records import json_text
from .adapters.base import list_videos
from .predict_depth import predict_depth


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


def task_of(name: str) -> tuple[Task, str]:
    """What a model is for and the name of its class, by its configuration alone.

    Raises:
        ValueError: if it is not a model for prediction.
        OSError: if it cannot be found.
    """
    architecture = (AutoConfig.from_pretrained(name).architectures or ["model of unknown class"])[0]
    task = next((task for ending, task in TASKS.items() if architecture.endswith(ending)), None)
    if task is None:
        raise ValueError(f"{name} is a {architecture}: give a readout for classification or depth")
    return task, architecture


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
        raise ValueError(f"the weights of {name} are damaged ({error}): copy them again") from error
    except StrictDataclassError as error:
        raise ValueError(f"the config.json of {name} is damaged: {error}") from error
    if info["missing_keys"]:
        raise ValueError(f"{name} lacks weights, such as {sorted(info['missing_keys'])[0]}: give a trained readout")
    for weight, found, wanted in sorted(info["mismatched_keys"]):
        raise ValueError(
            f"{name} has the config.json of another model, by which {weight} must be {tuple(wanted)}, got "
            f"{tuple(found)}: copy both again from where it was trained"
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
            file.write(json_text({"path": path, **prediction}, ensure_ascii=False) + "\n")
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
