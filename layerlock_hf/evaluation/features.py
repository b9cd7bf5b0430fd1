"""Features of clips at several depths: made by the encoder when they are needed, or once and kept on disk.

B clips, n items of K clips each, t steps of time, S tokens of one step, D width.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..data import MAX_ATTEMPTS
from ..data.order import ClipOrder
from ..data.reports import BadData, BadVideos
from .metrics import in_order


IDENTITY = "features.json"
FILES_PER_FOLDER = 1000

# From a batch and depths to the features at each depth, (B, t, S, D), without autograd
ReadFeatures = Callable[[dict, Sequence[int]], list[torch.Tensor]]


class EncodedFeatures:
    """Features of batches of clips, from a frozen encoder with the verbs `tap` and `grid_size`."""

    def __init__(self, encoder: nn.Module):
        self.encoder = encoder

    @torch.no_grad()
    def __call__(self, batch: dict, depths: Sequence[int]) -> list[torch.Tensor]:
        """Of "pixel_values_videos", uint8 (B, T, C, H, W)."""
        video = batch["pixel_values_videos"].to(self.encoder.device, non_blocking=True).float() / 255
        num_steps = self.encoder.grid_size(video)[0]
        return [tokens.unflatten(1, (num_steps, -1)) for tokens in self.encoder.tap(video, list(depths))]


class StoredFeatures:
    """Features of batches that hold them, as those of items of a `FeatureStore` do; float32 on `device`."""

    def __init__(self, device: torch.device):
        self.device = device

    def __call__(self, batch: dict, depths: Sequence[int]) -> list[torch.Tensor]:
        """Of "features", bfloat16 (B, t, S, D) by depth."""
        return [batch["features"][depth].to(self.device, non_blocking=True).float() for depth in depths]


class FeatureStore(Dataset):
    """The items of a data set of clips, with features in bfloat16 on disk in place of pixels: a file per item.

    Args:
        folder: of the files.
        items: by index {"pixel_values_videos": uint8 (K, T, C, H, W), "labels", "index"}, or {"index", "error", ...}
            for one that cannot be read.
        depths: of the features.
        identity: what the features depend on.

    Attributes:
        failed: the items that could not be read, by index. Every `fill` tries them again.

    Raises:
        ValueError: if the folder holds features that depend on something else.
    """

    def __init__(self, folder: Path, items: Dataset, depths: Sequence[int], identity: dict):
        self.folder, self.items, self.depths = folder, items, list(depths)
        self.failed: dict[int, dict] = {}
        self._identity = identity | {"depths": self.depths, "num_items": len(items)}
        path = folder / IDENTITY
        if path.exists() and json.loads(path.read_text()) != json.loads(json.dumps(self._identity)):
            raise ValueError(f"{folder} holds features of other clips, depths or weights; delete it, or name another")

    def fill(self, read_features: ReadFeatures, collate: Callable, batch_size: int, num_workers: int = 0):
        """Make what is missing, each process its share. What was made before a stop is kept.

        Args:
            read_features: of batches of clips.
            collate: makes batches of items, as `Task.collate_test`.
            batch_size: items that a process encodes at once.
            num_workers: data workers of each process.
        """
        state = PartialState()
        if state.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            aside = self.folder / f"{IDENTITY}.new"
            aside.write_text(json.dumps(self._identity))
            os.replace(aside, self.folder / IDENTITY)
        state.wait_for_everyone()
        # Shared out before it is looked what is there already: that changes while others write
        mine = range(state.process_index, len(self.items), state.num_processes)
        loader = DataLoader(
            self.items,
            sampler=[index for index in mine if not self._path_of(index).exists()],
            batch_size=batch_size,
            collate_fn=collate,
            num_workers=num_workers,
        )
        for batch in tqdm(loader, desc=self.folder.name, disable=not state.is_main_process):
            self.failed |= {item["index"]: item for item in batch["failed"]}
            if len(batch["index"]):
                self._write(batch, read_features(batch, self.depths))
        self.failed = {index: item for failed in _gather(self.failed) for index, item in failed.items()}

    def _write(self, batch: dict, features: list[torch.Tensor]):
        per_item = len(features[0]) // len(batch["index"])
        for place, index in enumerate(batch["index"].tolist()):
            clips = slice(place * per_item, (place + 1) * per_item)
            content = {
                str(depth): values[clips].bfloat16().cpu().contiguous()
                for depth, values in zip(self.depths, features, strict=True)
            }
            path = self._path_of(index)
            path.parent.mkdir(exist_ok=True)
            aside = path.with_suffix(".new")
            save_file(content | {"labels": batch["labels"][place].contiguous()}, aside)
            os.replace(aside, path)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        """{"features": bfloat16 (K, t, S, D) by depth, "labels", "index"}, or the item that could not be read."""
        if index in self.failed:
            return self.failed[index]
        with safe_open(self._path_of(index), "pt") as file:
            features = {depth: file.get_tensor(str(depth)) for depth in self.depths}
            return {"features": features, "labels": file.get_tensor("labels"), "index": index}

    def _path_of(self, index: int) -> Path:
        return self.folder / f"{index // FILES_PER_FOLDER:05d}" / f"{index:08d}.safetensors"


def _gather(value) -> list:
    """The values of all processes."""
    state = PartialState()
    gathered = [value] * state.num_processes
    if state.num_processes > 1:
        torch.distributed.all_gather_object(gathered, value)
    return gathered


def pooled_features(
    items: Dataset,
    read_features: ReadFeatures,
    depths: Sequence[int],
    collate: Callable,
    batch_size: int,
    num_workers: int = 0,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The mean over all tokens of all clips of an item, for every item that can be read; all processes share the work.

    Args:
        items: as for a `FeatureStore`, or one.
        read_features: of batches of `collate`.
        depths: of the features.
        collate: makes a batch of test items.
        batch_size: items that a process reads at once.
        num_workers: of each process.

    Returns:
        Features, float32 (n, D) per depth, and labels (n,), in the order of the items.

    Raises:
        ValueError: if no item can be read.
    """
    state = PartialState()
    share = range(state.process_index, len(items), state.num_processes)
    loader = DataLoader(items, sampler=share, batch_size=batch_size, collate_fn=collate, num_workers=num_workers)
    parts, errors = [], {}
    for batch in tqdm(loader, desc="features", leave=False, disable=not state.is_main_process):
        errors |= {item["index"]: item["error"] for item in batch["failed"]}
        if len(batch["index"]):
            means = [features.float().mean(dim=(1, 2)) for features in read_features(batch, depths)]
            means = torch.stack(means, dim=1).unflatten(0, (len(batch["index"]), -1)).mean(dim=1)
            parts.append({"index": batch["index"], "labels": batch["labels"], "features": means.cpu()})
    gathered = _gather((parts, errors))
    parts = [part for parts, _ in gathered for part in parts]
    if not parts:
        errors = {index: error for _, errors in gathered for index, error in errors.items()}
        raise ValueError(f"none of {len(items)} items can be read; the first says: {errors[min(errors)]}")
    rows = in_order(parts)
    return list(rows["features"].unbind(dim=1)), rows["labels"]


class FixedClips(Dataset):
    """Training without augmentation: the one clip of every item, epoch after epoch, each in another order.

    Args:
        items: by index, of one clip each (K = 1), or {"index", "name", "kind", "error"} for one that cannot be read,
            which is reported and replaced by another.
        num_samples: clips of the run.
        seed: of the order.
        bad_videos: the report.

    Raises:
        BadData: when indexed, if too many items cannot be read.
    """

    def __init__(self, items: Dataset, num_samples: int, seed: int, bad_videos: BadVideos):
        self.items, self.num_samples, self.bad_videos = items, num_samples, bad_videos
        self.order = ClipOrder(len(items), seed=seed)

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, position: int) -> dict:
        """The sample at a position: the item without the dimension of its clips."""
        item = self._item_at(position)
        sample = {"labels": item["labels"]}
        if "features" in item:
            sample["features"] = {depth: values[0] for depth, values in item["features"].items()}
        else:
            sample["pixel_values_videos"] = item["pixel_values_videos"][0]
        return sample

    def _item_at(self, position: int) -> dict:
        for attempt in range(MAX_ATTEMPTS):
            index = self.order.replacement(position, attempt) if attempt else self.order.video_at(position)
            item = self.items[index]
            if "error" not in item:
                return item
            self.bad_videos.add(item["name"], item["error"], used=False, kind=item["kind"])
        raise BadData(f"{MAX_ATTEMPTS} videos in a row cannot be read; the last, {item['name']}: {item['error']}")
