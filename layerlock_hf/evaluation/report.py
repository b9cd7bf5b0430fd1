"""What a sweep leaves when it is done: pictures, and the encoder with the best readout."""

import copy
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForDepthEstimation, AutoModelForVideoClassification

from ..evaluation import Sweep
from ..models import AttentionReadout, LayerLockVideoProcessor
from ..models.modeling_layerlock_readout import depth_of_boxes
from ..utils.outputs import read_lines
from .arguments import ClipArguments
from .features import EncodedFeatures
from .plots import DepthClip, plot_confusion, plot_curves, plot_depth, plot_sweep
from .protocol import SweepPoint
from .sweep import METRICS


MODEL = "model"
AUTO_CLASSES = {"classification": AutoModelForVideoClassification, "depth": AutoModelForDepthEstimation}
NUM_FILMS = 4


def best_readout(results: dict, sweep: Sweep) -> tuple[SweepPoint, nn.Module]:
    """The point that did best, and its readout."""
    best = results["best"]
    points = [point for points in sweep.rounds for point in points]
    point = next(m for m in points if (m.depth, m.learning_rate) == (best["depth"], best["learning_rate"]))
    return point, sweep.load_readout(point)


def draw(results: dict, sweep: Sweep, encoder: nn.Module, config, sets, output: Path):
    """The sweep, its curves, and what the best readout says."""
    plot_sweep(results, output / "sweep.png")
    plot_curves(read_lines(output / METRICS), results["task"], output / "curves.png")
    if results["task"] == "depth":
        point, readout = best_readout(results, sweep)
        plot_depth(film(encoder, readout, point, config, sets.test_clips(), sweep.errors), output / "depth.png")
    else:
        plot_confusion(results, output / "confusion.png")


@torch.no_grad()
def film(encoder, readout: nn.Module, point: SweepPoint, config, clips, errors: dict[int, str]) -> list[DepthClip]:
    """A few test clips with what the readout says of them."""
    names, shown = clips.names(), []
    readable = [index for index in range(len(clips)) if index not in errors]
    for index in readable[:: -(-len(readable) // NUM_FILMS)]:
        item = clips[index]
        if "error" not in item:
            (features,) = EncodedFeatures(encoder)(item, [point.depth])
            predicted = depth_of_boxes(readout.to(features.device)(features), config)[0].cpu()
            shown.append(DepthClip(names[index], item["pixel_values_videos"][0], item["labels"], predicted))
    return shown


def save_model(results: dict, sweep: Sweep, encoder: nn.Module, config, sets, args: ClipArguments):
    """The encoder with the best readout, and the processor that makes clips as the test does."""
    folder = Path(args.output_dir) / MODEL
    point, readout = best_readout(results, sweep)
    if not isinstance(readout, AttentionReadout):
        print(f"no {folder}: its classes have the readout attention; the weights of all readouts lie beside it")
        return
    config = copy.deepcopy(config)
    config.readout_depth = point.depth
    if args.task == "classification":
        config.id2label = dict(enumerate(sets.train.class_names))
        config.label2id = {name: index for index, name in config.id2label.items()}
    model = AUTO_CLASSES[args.task].from_config(config)
    model.encoder.load_state_dict(encoder.state_dict())
    getattr(model, f"{args.task}_readout").load_state_dict(readout.state_dict())
    model.save_pretrained(folder)
    size = config.image_size * args.resize_factor
    if args.ignores_aspect:
        size = {"height": size, "width": size}
    processor = LayerLockVideoProcessor.from_config(
        config, size=size, frame_stride=args.frame_stride, frame_rate=args.frame_rate
    )
    processor.save_pretrained(folder)
