"""Videos with labels or without, and their clips as an encoder sees them, for what looks at features alone."""

import torch

from ..data import DECODE_TIMEOUT, ClipTransform, load_videos
from ..data.addresses import check_classes
from .adapters import LabelledVideos, read_labelled
from .adapters.tables import shared_paths
from .labelled_clips import TestClips


def read_any_videos(
    data: str, dataset: str | None = None, split: str = "test", max_videos: int | None = None
) -> LabelledVideos:
    """The videos of a source, with their classes if it tells them; otherwise `class_names` is empty, and labels are 0.

    Args:
        data: of `dataset`, as for readouts; without it whatever `load_videos` reads, whose column label is the class.
        dataset: a key of `LABELLED`.
        split: of `dataset`, "train" or "test". Where it separates none, all is used.
        max_videos: at most so many, at random but always the same.

    Raises:
        ValueError: naming what cannot be read.
    """
    if dataset is None:
        videos = load_videos(data)
        names = list(videos["label"]) if "label" in videos.column_names else []
        check_classes(repr(data), names)
        names = list(map(str, names))
        class_names = sorted(set(names))
        labels = [class_names.index(name) for name in names] or [0] * len(videos)
        found = LabelledVideos(videos, labels, class_names)
    else:
        found = read_labelled(dataset, data, split, may_lack_split=True)
    if max_videos is None or max_videos >= len(found.labels):
        return found
    chosen = torch.randperm(len(found.labels), generator=torch.Generator().manual_seed(0))[:max_videos]
    chosen = chosen.sort().values.tolist()
    labels = [found.labels[index] for index in chosen]
    return LabelledVideos(found.videos.select(chosen), labels, found.class_names)


def check_disjoint(train: LabelledVideos, test: LabelledVideos):
    """Raise a `ValueError` if videos are in both."""
    shared = shared_paths(train.videos, test.videos)
    if shared:
        raise ValueError(
            f"train_data must share no videos with data, got {len(shared)}, such as {shared[0]}: leave it out to "
            "cross-validate"
        )


def clips_for(
    encoder,
    videos: LabelledVideos,
    num_clips: int = 1,
    frame_stride: int = 2,
    resize_factor: float = 1.15,
    decode_timeout: float = DECODE_TIMEOUT,
    frame_rate: float | None = None,
) -> TestClips:
    """The clips of videos, of the size and length that an encoder was made for.

    Args:
        encoder: as `load_encoder` gives it.
        videos: of `read_any_videos`.
        num_clips: of every video; a single one is its middle.
        frame_stride, resize_factor, decode_timeout, frame_rate: as of `TestClips` and `ClipTransform`.
    """
    config = encoder.config
    transform = ClipTransform(config.image_size, resize_factor)
    return TestClips(
        videos.videos,
        videos.labels,
        config.num_frames,
        frame_stride,
        transform,
        num_clips,
        decode_timeout=decode_timeout,
        frame_rate=frame_rate,
    )
