"""The clips that pictures are made of."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ..data import ClipTransform, load_videos, name_of
from ..evaluation.online import center_clips
from ..hub.words import public_name
from ..models import LayerLockViTConfig
from ..pretraining.arguments import DataArguments
from ..pretraining.planning import settings_of
from .spreading import spread


NUM_CLIPS = 16  # whose features are compared; some of them are shown


@dataclass(frozen=True)
class Clips:
    """The middle of some videos, evenly spread over a source.

    Attributes:
        frames: bytes (B, T, C, H, W).
        names: of the videos.
        sources: that they are of.
    """

    frames: torch.Tensor
    names: list[str]
    sources: str


def find_clips(settings: dict, config: LayerLockViTConfig, data: str | None, sources: list[str]) -> Clips:
    """Clips as the encoder of a run sees them.

    Args:
        settings: of the run.
        config: of its model.
        data: the source to read, as for `load_videos`; None for the run's own.
        sources: the run's own, as it has recorded them. Only what lies on this machine is read: what is called
            `videos` here may be a data set of somebody else on the Hub.

    Raises:
        ValueError: saying what is missing.
    """
    arguments = settings_of(DataArguments, {"train_data": sources, **settings})
    if data is not None:
        videos, shown = load_videos(data), [data]
    else:
        shown = [source for source in sources if Path(source).expanduser().exists()]
        if not shown:
            named = ", ".join(sources) or "no name is on record"
            raise ValueError(f"the run's own videos ({named}) are not here: give others by --data VIDEOS")
        videos = load_videos(shown, arguments.train_split, arguments.video_column, arguments.video_root)
    rows = spread(range(len(videos)), NUM_CLIPS)
    scale = ClipTransform(config.image_size, arguments.resize_factor, arguments.crop_scale).central_factor
    frames, kept = center_clips(
        videos.select(rows),
        torch.tensor(rows),
        config.num_frames,
        arguments.frame_stride,
        config.image_size,
        scale,
        arguments.frame_rate,
    )
    names = [public_name(name_of(videos[row], row)) for row in kept.tolist()]
    return Clips(frames, names, ", ".join(map(public_name, shown)))
