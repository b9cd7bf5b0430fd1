"""Code that runs as it stands in a model card, given a file `video.mp4`."""

import re
from dataclasses import dataclass

from .words import keywords


@dataclass(frozen=True)
class Snippet:
    """Code, and a sentence about it."""

    text: str
    code: str
    language: str = "python"


@dataclass(frozen=True)
class Source:
    """Where snippets load a model from.

    Args:
        name: its repository on the Hub, or "." for the folder that the snippet runs in.
        revision: tag or branch; None for the main one.
        has_processor: whether a video processor lies beside the model.
        has_code: whether the code of the model does.
    """

    name: str
    revision: str | None
    has_processor: bool
    has_code: bool

    def arguments(self, *more: str) -> str:
        """Of `from_pretrained`."""
        revision = [] if self.revision is None else [f'revision="{self.revision}"']
        return ", ".join([f'"{self.name}"', *revision, *more])

    @property
    def processor(self) -> str:
        """Code that makes the video processor."""
        if self.has_processor:
            return f"layerlock_hf.LayerLockVideoProcessor.from_pretrained({self.arguments()})"
        return "layerlock_hf.LayerLockVideoProcessor.from_config(model.config)"


def features(source: Source) -> list[Snippet]:
    """Features of a video, with the package and without it."""
    where = "from within this folder" if source.name == "." else "from anywhere"
    snippets = [
        Snippet(
            f"Features of a video, with the package `layerlock_hf` installed, {where}:",
            f"""import layerlock_hf
from transformers import AutoModel

model = AutoModel.from_pretrained({source.arguments()})
processor = {source.processor}
clip = processor("video.mp4").pixel_values_videos  # (1, frames, colours, height, width), from 0 to 1
features = model(clip).last_hidden_state  # (1, tokens, width); tokens are ordered by time, height, width
""",
        )
    ]
    if source.has_processor and source.has_code:
        trusted = source.arguments("trust_remote_code=True")
        snippets.append(
            Snippet(
                "The same without the package. This runs the Python files of this repository, so read them first, and "
                "name a commit as `revision` to be sure to get what you read:",
                f"""from transformers import AutoModel
from transformers.models.auto.video_processing_auto import AutoVideoProcessor  # this one needs no torchvision

model = AutoModel.from_pretrained({trusted})
processor = AutoVideoProcessor.from_pretrained({trusted})
clip = processor("video.mp4").pixel_values_videos
features = model(clip).last_hidden_state
""",
            )
        )
    return snippets


def classification(source: Source) -> Snippet:
    """The classes of a video."""
    return Snippet(
        "The likeliest classes of a video:",
        f"""import layerlock_hf  # registers the model
from transformers import pipeline

classify = pipeline("video-classification", model="{source.name}")
for guess in classify("video.mp4"):
    print(guess["label"], guess["score"])
""",
    )


def depth(source: Source) -> Snippet:
    """The depth of a video."""
    return Snippet(
        "The depth of every frame of a video:",
        f"""import layerlock_hf  # registers the model and the pipeline
from transformers import pipeline

estimate = pipeline("video-depth-estimation", model="{source.name}")
metres = estimate("video.mp4")["predicted_depth"]  # (frames, height, width), NaN where the model does not look
print(metres.nanmean())
""",
    )


def new_readout(source: Source) -> Snippet:
    """The first step of a new head on the frozen encoder."""
    return Snippet(
        "A new head for ten classes on the frozen encoder, and its loss, to train it with:",
        f"""import torch
import layerlock_hf
from transformers import AutoModelForVideoClassification

model = AutoModelForVideoClassification.from_pretrained({source.arguments("num_labels=10")})
processor = {source.processor}
clip = processor("video.mp4").pixel_values_videos
loss = model(clip, labels=torch.tensor([3])).loss
loss.backward()
""",
    )


def reconstruction(source: Source, config, stage: dict, settings: dict) -> Snippet | None:
    """The loss that the model was last trained with, or None if that needs more than the model.

    Args:
        config: of the model.
        stage: the row of `stages.json`.
        settings: of the run.
    """
    layer = re.fullmatch(r"layer_(\d+)", stage["target"])
    if stage["target"] == "pixels":
        kind = "Pixels"
        given = {"normalize": settings.get("normalize_pixels"), "loss": settings.get("pixel_loss")}
        target = f"Pixels({keywords(given)})"
    elif layer:
        kind, target = "Latents", f"Latents({layer[1]})"
    else:
        return None
    masks = {name: value for name, value in settings.items() if re.match("mask(_|$)", name)}
    return Snippet(
        "The loss of the last stage of pretraining on a video: what the model makes of the tokens it is not shown.",
        f"""import torch
import layerlock_hf
from layerlock_hf import {kind}, Objective, Stage
from layerlock_hf.data import MaskArguments
from transformers import AutoModelForPreTraining

model = AutoModelForPreTraining.from_pretrained({source.arguments()})
processor = {source.processor}
clip = processor("video.mp4").pixel_values_videos
masks = MaskArguments({keywords(masks)}).build()(model.config.grid_size, positions=[0], seed=0)
shown, hidden = map(list, zip(*masks, strict=True))
objective = Objective(read_at={config.decoder_depths[-1]}, target={target})
stage = Stage(start=0, num_frozen={stage["num_frozen"]}, objectives=(objective,))
with torch.no_grad():
    print(model(clip, shown, hidden, stage).loss)
""",
    )
