"""Tiny models in folders as they are to become repositories, and results of readouts."""

import json
from pathlib import Path

from transformers import PreTrainedModel, VideoMAEConfig

from layerlock_hf import (
    LayerLockVideoProcessor,
    LayerLockViTConfig,
    LayerLockViTForDepthEstimation,
    LayerLockViTForPretraining,
    LayerLockViTForVideoClassification,
    LayerLockViTModel,
    TransformersEncoder,
    TransformersEncoderConfig,
    TransformersEncoderForDepthEstimation,
    TransformersEncoderForVideoClassification,
)


CLIP = {"image_size": 16, "num_frames": 4}
VIDEO_MAE = VideoMAEConfig(
    hidden_size=32,
    num_hidden_layers=5,
    num_attention_heads=2,
    intermediate_size=64,
    patch_size=4,
    tubelet_size=2,
    **CLIP,
)
READOUT = {"readout_hidden_size": 24, "readout_num_attention_heads": 3, "decoding_patch_size": [2, 4, 4]}
NAMES = ["left", "right", "up", "down", "in", "out_of", "round", "still"]
OURS = [
    LayerLockViTModel,
    LayerLockViTForPretraining,
    LayerLockViTForVideoClassification,
    LayerLockViTForDepthEstimation,
]
THEIRS = [TransformersEncoder, TransformersEncoderForVideoClassification, TransformersEncoderForDepthEstimation]
STAGES = [
    {"start": 0, "num_frozen": 0, "target": "pixels", "trainable_parameters": 58_000},
    {"start": 600, "num_frozen": 2, "target": "layer_2", "trainable_parameters": 37_000},
]
SETTINGS = {
    "repo_id": "org/layerlock-tiny",
    "run_id": "5eed",
    "recipe": "demo",
    "command": "layerlock pretrain --config demo --train_data /home/ann/videos --output_dir=/scratch/ann/run_7",
    "settings": {"method": "mae", "mask": "future", "mask_past": 1, "mask_ratio": None, "normalize_pixels": True},
    "data": {"sources": ["/home/ann/videos", "https://ann:secret@example.org/list.csv?key=1"], "num_videos": 1500},
    "versions": {"layerlock_hf": "0.1.0", "torch": "2.13.0"},
    "hardware": {"device": "NVIDIA H200", "num_processes": 2, "num_cores": 16},
    "progress": {"step": 1200, "max_steps": 1200, "clips": 19200, "seconds": 312.4, "total_flops": 1.2e15},
}


def _interval(value, low, high):
    return {"value": value, "low": low, "high": high}


def _accuracies(*top1):
    others = {"top5": _interval(0.8, 0.7, 0.9), "mean_class_accuracy": _interval(0.4, 0.3, 0.5)}
    return {"top1": _interval(*top1), **others}


def _errors(*abs_rel):
    return {
        "abs_rel": _interval(*abs_rel),
        "delta1": _interval(0.8, 0.7, 0.9),
        "rmse": _interval(0.6, 0.5, 0.7),
    }


def _point(depth, metrics):
    member = {"depth": depth, "depth_fraction": 0.95 if depth == 5 else 0.5, "learning_rate": 1e-3}
    return {**member, "metrics": metrics, "is_chosen_on": "test"}


def _results(task, best, fixed, baselines):
    member = {name: best[name] for name in ("depth", "depth_fraction", "learning_rate")}
    main = next(iter(best["metrics"]))
    return {
        "task": task,
        "dataset": "motions, tested on /home/ann/test.csv",
        "model": "/home/ann/run_7",
        "command": "layerlock readout --model /home/ann/run_7 --data /home/ann/labels.csv --output_dir out",
        "settings": {"is_still": False},
        "versions": {"torch": "2.13.0"},
        "seconds": 12.5,
        "num_train": 400,
        "num_test": 80,
        "failed": [],
        "intervals": {"confidence": 0.95, "num_resamples": 1000, "seed": 0, "units": "items", "num_units": 80},
        "members": [{**member, "metrics": {main: best["metrics"][main]["value"]}}] * 4,
        "best": best,
        "fixed_depth": fixed,
        "per_depth": [best],
        "baselines": baselines,
    }


CLASSES = _results(
    "classification",
    _point(3, _accuracies(0.4, 0.3, 0.5)),
    _point(5, _accuracies(0.35, 0.25, 0.45)),
    {
        "majority": _accuracies(0.125, 0.125, 0.125),
        "clock_time": {"top1": _interval(0.1, 0.1, 0.1), "top5": _interval(0.2, None, None)},
    },
) | {
    "per_class": [{"name": name, "num": 10, "accuracy": 0.4} for name in NAMES],
    "confusion": [[10] * len(NAMES)] * len(NAMES),
    "probes": [
        {"depth": 3, "knn_top1": 0.2, "ridge_top1": 0.38},
        {"depth": 4, "knn_top1": 0.3, "ridge_top1": 0.42},
    ],
}
DEPTH = _results("depth", _point(3, _errors(0.15, 0.14, 0.16)), None, {"mean_depth": _errors(0.3, 0.29, 0.31)})


def save(
    folder: Path, kind: type[PreTrainedModel], sizes: dict, with_processor: bool = True, **files
) -> PreTrainedModel:
    """Write a tiny model of a class, and JSON files by their names without .json."""
    if kind in THEIRS:
        config = TransformersEncoderConfig(encoder_config=VIDEO_MAE, **CLIP, readout_depth=3, **READOUT)
    else:
        config = LayerLockViTConfig.from_preset("tiny", **sizes, **READOUT, readout_depth=3)
    config.id2label = dict(enumerate(NAMES))
    config.label2id = {name: index for index, name in config.id2label.items()}
    model = kind(config)
    model.save_pretrained(folder)
    if with_processor:
        LayerLockVideoProcessor.from_config(config, size=18, frame_stride=2).save_pretrained(folder)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return model
