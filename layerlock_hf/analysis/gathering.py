"""One pass of clips through an encoder: what all measures at all depths need, in bounded memory.

B clips of a batch, n of all, D width. A clip leaves its mean token, a few tokens and the norms of all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from ..evaluation import TestClips, encode, mean_features
from ..evaluation.tasks import Task
from ..utils.handing_over import Loader
from .decodability import keep_patches, random_places
from .gratings import Gratings
from .tokens import TokenStatistics


@dataclass(frozen=True)
class Gathered:
    """What clips left.

    Attributes:
        tokens: statistics per depth.
        patches: the mean token of the clips with all but one patch black, (n, D) per depth, if that was asked for.
        labels: classes, (n,).
        videos: the index of the video that each clip is of, (n,).
        failed: {"name", "error", ...} of videos that could not be read.
    """

    tokens: list[TokenStatistics]
    patches: list[torch.Tensor] | None
    labels: torch.Tensor
    videos: torch.Tensor
    failed: list[dict]

    @property
    def means(self) -> list[torch.Tensor]:
        """The mean token of every clip, (n, D) per depth."""
        return [statistics.means for statistics in self.tokens]


@torch.no_grad()
def gather(
    encoder,
    clips: TestClips,
    depths: Sequence[int],
    batch_size: int = 8,
    num_workers: int = 0,
    occludes: bool = False,
    title: str = "clips",
) -> Gathered:
    """Encode all clips.

    Args:
        encoder: as `load_encoder` gives it.
        clips: of videos; those that cannot be read are left out.
        depths: where it is read.
        batch_size: videos that are encoded at once.
        num_workers: processes that read videos.
        occludes: whether clips are encoded once more with a single patch left.
        title: of the progress bar.

    Raises:
        ValueError: if no video can be read.
    """
    tokens = [TokenStatistics(len(clips) * clips.num_windows) for _ in depths]
    parts, labels, videos, failed = [], [], [], []
    collate = Task(encoder.config).collate_test
    for batch in tqdm(Loader(clips, batch_size=batch_size, collate_fn=collate, num_workers=num_workers), desc=title):
        failed += batch["failed"]
        if not len(batch["index"]):
            continue
        video = batch["pixel_values_videos"].to(encoder.device)
        for statistics, values in zip(tokens, encoder.tap(video.float() / 255, list(depths)), strict=True):
            statistics.add(values)
        labels.append(batch["labels"].repeat_interleave(clips.num_windows))
        videos.append(batch["index"].repeat_interleave(clips.num_windows))
        if occludes:
            first = batch["index"][:, None] * clips.num_windows
            numbers = (first + torch.arange(clips.num_windows)).flatten().tolist()
            hidden = keep_patches(video, random_places(video, numbers))
            parts.append(encode(encoder, hidden, list(depths), len(hidden), mean_features))
    if not labels:
        raise ValueError(f"data: none of {len(clips)} videos can be read, the first because of: {failed[0]['error']}")
    patches = [torch.cat(values) for values in zip(*parts, strict=True)] if occludes else None
    return Gathered(tokens, patches, torch.cat(labels), torch.cat(videos), failed)


def gather_gratings(
    encoder,
    kind: Gratings,
    numbers: torch.Tensor,
    depths: Sequence[int],
    batch_size: int = 8,
    occludes: bool = False,
    title: str = "gratings",
) -> tuple[list[torch.Tensor], list[torch.Tensor] | None]:
    """The mean token of these gratings, (n, D) per depth, and if asked for that of the same with one patch left of
    every grating in them; otherwise None."""
    config = encoder.config
    whole, hidden = [], []
    for batch in tqdm(numbers.split(batch_size), desc=title):
        clips = kind.clips(batch, config.num_frames, config.image_size)
        whole.append(encode(encoder, clips, list(depths), batch_size, mean_features))
        if occludes:
            clips = keep_patches(clips, random_places(clips, batch.tolist(), kind.num_parts))
            hidden.append(encode(encoder, clips, list(depths), batch_size, mean_features))
    whole, hidden = ([torch.cat(values) for values in zip(*parts, strict=True)] for parts in (whole, hidden))
    return whole, hidden if occludes else None
