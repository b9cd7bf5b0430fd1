"""What windows are read with: an encoder, a plan, and the settings by which the same is had again."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ..data import ClipTransform
from ..evaluation.encoders import load_encoder
from ..evaluation.feature_sources import fingerprint
from .arguments import EmbedArguments
from .encoding import WindowEncoder, find_depths, transform_for
from .reading import WindowReader
from .records import WRITE_ANEW, check_same_model, check_shapes
from .shards import column_of
from .windows import Plan, make_plan


@dataclass(frozen=True)
class Setup:
    """How vectors are made.

    Attributes:
        settings: all that they depend on but the videos, as the manifest keeps it.
        encoder: reads them from clips.
        plan: how videos are cut.
        transform: what is shown of a frame.
        revision: of a model from the Hub.
    """

    settings: dict
    encoder: WindowEncoder
    plan: Plan
    transform: ClipTransform
    revision: str | None

    def open(self, source: str | bytes, decode_timeout: float) -> WindowReader:
        """The windows of a video, as `WindowReader` has them."""
        num_steps, frame_rate = self.encoder.num_steps, self.settings["frame_rate"]
        return WindowReader(source, self.plan, num_steps, self.transform, frame_rate, decode_timeout)


def set_up(model: str, arguments: EmbedArguments, device: str | torch.device) -> Setup:
    """
    Raises:
        ValueError: if the model cannot be loaded, or a setting does not fit it.
    """
    encoder = load_encoder(model, image_size=arguments.image_size, num_frames=arguments.num_frames)
    config = encoder.config
    stride = arguments.stride or arguments.window
    plan = make_plan(arguments.window, stride, arguments.frame_rate, config.num_frames)
    transform = transform_for(model, config.image_size)
    depths = find_depths(arguments.depths, config.num_hidden_layers)
    settings = {
        "model": fingerprint(encoder),
        "window": arguments.window,
        "stride": stride,
        "frame_rate": arguments.frame_rate,
        "pool": arguments.pool,
        "depths": depths,
        "num_frames": config.num_frames,
        "image_size": config.image_size,
        "resize_factor": transform.central_factor,
        "ignores_aspect": transform.ignores_aspect,
        "bf16": arguments.bf16,
    }
    reads = WindowEncoder(encoder.to(device), depths, arguments.pool, arguments.bf16)
    # Not every configuration comes from the Hub
    return Setup(settings, reads, plan, transform, getattr(config, "_commit_hash", None))


def set_up_again(made: dict, model: str | None, depth: int, device: str | torch.device) -> Setup:
    """As it was, but for a single depth.

    Args:
        made: the manifest.
        model: what made the vectors, where it is no longer where it was.
        depth: the one.
        device: of the encoder.

    Raises:
        ValueError: if the model cannot be loaded, or is not the one that made the vectors, or the manifest has other
            shapes than it gives.
    """
    names = ("window", "stride", "frame_rate", "pool", "num_frames", "image_size", "bf16")
    settings, name = made["settings"], model or made["model"]["name"]
    arguments = EmbedArguments(depths=[depth], **{name: settings[name] for name in names})
    setup = set_up(name, arguments, device)
    advice = "give a copy of the one that made them as --model, or embed the videos anew"
    check_same_model(made, name_of_model(name), setup.settings["model"], advice)
    shapes = {column_of(depth): list(setup.encoder.shape)}
    check_shapes(made, setup.encoder.num_steps, shapes, f"the manifest is damaged: {WRITE_ANEW}")
    transform = ClipTransform(
        settings["image_size"], settings["resize_factor"], ignores_aspect=settings["ignores_aspect"]
    )
    return Setup(setup.settings, setup.encoder, setup.plan, transform, setup.revision)


def name_of_model(model: str) -> str:
    """By which it is found from any folder."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.is_dir() else str(model)
