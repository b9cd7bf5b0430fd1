"""Features of clips at several depths: made by the encoder when they are needed, or once and kept on disk.

B clips, n items of K clips each, t steps of time, S tokens of one step, D width.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from ..data import MAX_ATTEMPTS
from ..data.order import ClipOrder
from ..data.reports import BadData, BadVideos
from ..utils.files import write_aside
from ..utils.handing_over import Loader
from .metrics import in_order


IDENTITY = "features.json"
FILES_PER_FOLDER = 1000
ABOUT_ITEMS = ("labels", "size")  # what is kept with the features

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
        items: by index {"pixel_values_videos": uint8 (K, T, C, H, W), "labels", "index"} and maybe "size", or
            {"index", "error", ...} for one that cannot be read.
        depths: of the features; a folder that holds more will do.
        identity: what the features depend on.

    Attributes:
        failed: the items that could not be read, by index. Every `fill` tries them again.

    Raises:
        ValueError: if the folder holds features that depend on something else, or other depths.
    """

    def __init__(self, folder: Path, items: Dataset, depths: Sequence[int], identity: dict):
        self.folder, self.items, self.depths = folder, items, list(depths)
        self.failed: dict[int, dict] = {}
        self._held_depths = self.depths
        self._identity = json.loads(json.dumps(identity | {"num_items": len(items)}))
        if (folder / IDENTITY).exists():
            self._check_held()

    def _check_held(self):
        path = self.folder / IDENTITY
        try:
            held = json.loads(path.read_text())
            self._held_depths = held.pop("depths")
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path} is damaged: delete {self.folder}, or name another folder") from error
        changed = [name for name in {**self._identity, **held} if held.get(name) != self._identity.get(name)]
        if changed:
            raise ValueError(
                f"{self.folder} holds features of another run ({changed[0]} differs): delete it, or name another "
                "folder"
            )
        lacking = sorted(set(self.depths) - set(self._held_depths))
        if lacking:
            raise ValueError(
                f"{self.folder} holds features after {self._held_depths} layers, but none after {lacking}: delete "
                "it, or name another folder"
            )

    def fill(self, read_features: ReadFeatures, collate: Callable, batch_size: int, num_workers: int = 0):
        """Make what is missing, each process its share. What was made before a stop is kept.

        Args:
            read_features: of batches of clips.
            collate: makes batches of items, as `Task.collate_test`.
            batch_size: items that a process encodes at once.
            num_workers: data workers of each process.

        Raises:
            ValueError: if the disk is too small.
        """
        state = PartialState()
        if state.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            with write_aside(self.folder / IDENTITY) as aside:
                aside.write_text(json.dumps(self._identity | {"depths": self._held_depths}))
        state.wait_for_everyone()
        # Shared out before it is looked what is there already: that changes while others write
        mine = range(state.process_index, len(self.items), state.num_processes)
        missing = [index for index in mine if not self._is_whole(index)]
        loader = Loader(
            self.items, sampler=missing, batch_size=batch_size, collate_fn=collate, num_workers=num_workers
        )
        is_space_checked = False
        for batch in tqdm(loader, desc=self.folder.name, disable=not state.is_main_process):
            self.failed |= {item["index"]: item for item in batch["failed"]}
            if len(batch["index"]):
                features = read_features(batch, self._held_depths)
                if not is_space_checked:
                    self._check_space(batch, features, len(missing) * state.num_processes)
                    is_space_checked = True
                self._write(batch, features)
        self.failed = {index: item for failed in gather_object([self.failed]) for index, item in failed.items()}

    def _check_space(self, batch: dict, features: list[torch.Tensor], num_missing: int):
        num_bytes = batch["labels"].nbytes + sum(values.numel() * torch.bfloat16.itemsize for values in features)
        needed, free = num_bytes / len(batch["index"]) * num_missing, shutil.disk_usage(self.folder).free
        if needed > free:
            raise ValueError(
                f"{self.folder}: features of {num_missing} items take about {needed / 1e9:.1f} GB, but only "
                f"{free / 1e9:.1f} GB are free: choose fewer depths or another disk"
            )

    def _write(self, batch: dict, features: list[torch.Tensor]):
        per_item = len(features[0]) // len(batch["index"])
        for place, index in enumerate(batch["index"].tolist()):
            clips = slice(place * per_item, (place + 1) * per_item)
            content = {
                str(depth): values[clips].bfloat16().cpu().contiguous()
                for depth, values in zip(self._held_depths, features, strict=True)
            }
            about = {name: batch[name][place].contiguous() for name in ABOUT_ITEMS if name in batch}
            path = self._path_of(index)
            path.parent.mkdir(exist_ok=True)
            with write_aside(path) as aside:
                save_file(content | about, aside)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        """{"features": bfloat16 (K, t, S, D) by depth, "labels", "index"}, or the item that could not be read."""
        if index in self.failed:
            return self.failed[index]
        with safe_open(self._path_of(index), "pt") as file:
            features = {depth: file.get_tensor(str(depth)) for depth in self.depths}
            about = {name: file.get_tensor(name) for name in ABOUT_ITEMS if name in file.keys()}
        return {"features": features, "index": index, **about}

    def _path_of(self, index: int) -> Path:
        return self.folder / f"{index // FILES_PER_FOLDER:05d}" / f"{index:08d}.safetensors"

    def _is_whole(self, index: int) -> bool:
        """Whether there is a file, of the length that its header tells."""
        try:
            with safe_open(self._path_of(index), "pt"):
                return True
        except (FileNotFoundError, SafetensorError):
            return False


def pooled_features(
    items: Dataset,
    read_features: ReadFeatures,
    depths: Sequence[int],
    collate: Callable,
    batch_size: int,
    num_workers: int = 0,
) -> tuple[list[torch.Tensor], torch.Tensor] | None:
    """The mean over all tokens of all clips of an item, for every item that can be read; all processes share the work.

    Args:
        items: as for a `FeatureStore`, or one.
        read_features: of batches of `collate`.
        depths: of the features.
        collate: makes a batch of test items.
        batch_size: items that a process reads at once.
        num_workers: of each process.

    Returns:
        Features, float32 (n, D) per depth, and labels (n,), in the order of the items; None but to the main process.

    Raises:
        ValueError: if no item can be read.
    """
    state = PartialState()
    share = range(state.process_index, len(items), state.num_processes)
    loader = Loader(items, sampler=share, batch_size=batch_size, collate_fn=collate, num_workers=num_workers)
    parts, errors = [], {}
    for batch in tqdm(loader, desc="features", leave=False, disable=not state.is_main_process):
        errors |= {item["index"]: item["error"] for item in batch["failed"]}
        if len(batch["index"]):
            means = [features.float().mean(dim=(1, 2)) for features in read_features(batch, depths)]
            means = torch.stack(means, dim=1).unflatten(0, (len(batch["index"]), -1)).mean(dim=1)
            parts.append({"index": batch["index"], "labels": batch["labels"], "features": means.cpu()})
    gathered = [(parts, errors)]
    if state.num_processes > 1:
        gathered = [None] * state.num_processes if state.is_main_process else None
        torch.distributed.gather_object((parts, errors), gathered)
    if not state.is_main_process:
        return None
    parts = [part for parts, _ in gathered for part in parts]
    if not parts:
        errors = {index: error for _, errors in gathered for index, error in errors.items()}
        raise ValueError(f"none of {len(items)} items can be read, the first because of: {errors[min(errors)]}")
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
        raise BadData(
            f"{MAX_ATTEMPTS} videos in a row cannot be read, the last ({item['name']}) because of: {item['error']}"
        )
