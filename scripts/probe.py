"""Probe frozen encoders on procedural clips: what the objects do (one of eight motions), and how far things are.

python scripts/probe.py --models layerlock=RUN mae=RUN --data FOLDER --output probes.json

FOLDER holds `train` and `test`, each a procedural dataset with depth. Every model is probed at a quarter, half, three
quarters and all of its layers, and so is one with random weights. All probes are ridge regressions on standardised
features. A held-out fifth of the training videos chooses their strength and the layer whose test scores are reported.
"""

import argparse
import csv
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModel, set_seed
from transformers.utils import logging

import layerlock_hf  # noqa: F401  (registers the model with AutoModel)
from layerlock_hf.data import center_crop, read_clip
from layerlock_hf.data.procedural import MOTIONS, read_depth
from layerlock_hf.evaluation import abs_rel, clip_features, encode, fit_and_predict, linear_accuracy, probe_depths, r2


def load_clips(folder: Path, config, resize_factor: float):
    """All clips of a dataset, one after the other in each video: clips (B, T, C, H, W), labels (B,), depth (B, N)."""
    with (folder / "videos.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    clips, labels, depths = [], [], []
    for row in rows:
        frames = read_clip(str(folder / row["path"]), lambda available: list(range(available))).frames
        frames = center_crop(frames, config.image_size, resize_factor)
        depth = center_crop(read_depth(folder / row["depth"])[:, None], config.image_size, resize_factor)
        for start in range(0, len(frames) - config.num_frames + 1, config.num_frames):
            clips.append(frames[start : start + config.num_frames])
            labels.append(int(row["label"]))
            depths.append(depth[start : start + config.num_frames, 0])
    box = (config.tubelet_size, config.patch_size, config.patch_size)
    token_depths = F.avg_pool3d(torch.stack(depths).unsqueeze(1), box).flatten(1)
    return torch.stack(clips), torch.tensor(labels), token_depths


def probe(model, train, test, depths: list[int]) -> dict:
    """Scores on the test clips at each depth, and those of the depths that do best on held-out training clips."""
    (clips, labels, metres), (test_clips, test_labels, test_metres) = train, test
    grid_size = model.grid_size(clips)
    rows = []
    for depth, tokens, test_tokens in zip(
        depths, encode(model, clips, depths), encode(model, test_clips, depths), strict=True
    ):
        motion, motion_validation = linear_accuracy(
            clip_features(tokens, grid_size), labels, clip_features(test_tokens, grid_size), test_labels
        )
        predicted, depth_validation = fit_and_predict(
            tokens.flatten(0, 1), metres.flatten(), test_tokens.flatten(0, 1), lambda a, b: -abs_rel(a, b)
        )
        rows.append(
            {
                "layer": depth,
                "motion_accuracy": motion,
                "depth_abs_rel": abs_rel(predicted, test_metres.flatten()).item(),
                "depth_r2": r2(predicted, test_metres.flatten()).item(),
                "motion_accuracy_held_out": motion_validation,
                "depth_abs_rel_held_out": -depth_validation,
            }
        )
    motion = max(rows, key=lambda row: row["motion_accuracy_held_out"])
    distance = min(rows, key=lambda row: row["depth_abs_rel_held_out"])
    return {
        "motion_accuracy": motion["motion_accuracy"],
        "motion_layer": motion["layer"],
        "depth_abs_rel": distance["depth_abs_rel"],
        "depth_r2": distance["depth_r2"],
        "depth_layer": distance["layer"],
        "layers": rows,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=FOLDER", help="Models to probe.")
    parser.add_argument("--data", type=Path, required=True, help="Folder of the datasets train and test.")
    parser.add_argument("--resize_factor", type=float, default=1.15, help="As in pretraining.")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the scores.")
    args = parser.parse_args()
    logging.disable_progress_bar()
    models = dict(item.split("=", 1) for item in args.models)
    config = AutoConfig.from_pretrained(next(iter(models.values())))
    train, test = (load_clips(args.data / split, config, args.resize_factor) for split in ("train", "test"))
    print(f"{len(train[0])} clips to fit the probes, {len(test[0])} to test them", flush=True)
    depths = probe_depths(config.num_hidden_layers)

    scores = {}
    for name in [*models, "random"]:
        if name == "random":
            set_seed(0)
            model = AutoModel.from_config(config)
        else:
            model = AutoModel.from_pretrained(models[name])
        scores[name] = probe(model.eval(), train, test, depths)
        for row in scores[name]["layers"]:
            print(
                f"  {name:10} layer {row['layer']:2}: motion {row['motion_accuracy']:6.1%}, "
                f"AbsRel {row['depth_abs_rel']:.3f}, R2 {row['depth_r2']:6.3f}",
                flush=True,
            )
    # What needs no encoder: the most frequent motion, the mean depth
    counts = test[1].bincount(minlength=len(MOTIONS))
    mean = train[2].mean().expand_as(test[2])
    scores["constant"] = {
        "motion_accuracy": counts.max().item() / len(test[1]),
        "depth_abs_rel": abs_rel(mean, test[2]).item(),
        "depth_r2": r2(mean, test[2]).item(),
    }
    args.output.write_text(json.dumps(scores, indent=1) + "\n")


if __name__ == "__main__":
    main()
