"""What a readout is trained for and how it is tested: one object per task, with the same verbs.

B clips of a batch, n test items of K clips each, Q queries, O outputs of a query.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import default_collate

from ..models.modeling_layerlock_readout import depth_loss, depth_of_boxes, is_known_depth
from .metrics import MEASURES, SampleScores, mean_probabilities, score_classes, score_depth
from .readouts import attention


IN_BATCHES = ("pixel_values_videos", "features", "labels", "index", "size")  # of what test items hold


class Task:
    """Labels of the batches that a task counts, learns from or is tested on lie where its outputs do.

    Args:
        config: of the readout: sizes of the features and of the readout.
        num_test_clips: clips K of a test item.
        readout: makes one from the configuration, the number of queries and that of their outputs (`READOUTS`).
    """

    def __init__(self, config, num_test_clips: int = 1, readout: Callable[..., nn.Module] = attention):
        self.config = config
        self.num_test_clips = num_test_clips
        self.readout = readout

    def build_readout(self) -> nn.Module:
        """A readout with fresh weights.

        Raises:
            ValueError: if this kind of readout is not for the task.
        """
        raise NotImplementedError

    def collate(self, samples: list[dict]) -> dict:
        """A batch of training samples."""
        return default_collate(samples)

    def collate_test(self, items: list[dict]) -> dict:
        """A batch of test items: clips (n * K, ...), "labels" and "index" (n,); in "failed" those without clips."""
        failed = [item for item in items if "error" in item]
        items = [{name: item[name] for name in IN_BATCHES if name in item} for item in items if "error" not in item]
        batch = default_collate(items) if items else {"index": []}
        for name in ("pixel_values_videos", "features"):
            if name in batch:
                batch[name] = _flatten_clips(batch[name])
        return batch | {"failed": failed}

    def count(self, batch: dict) -> torch.Tensor:
        """How many labels of a batch count, ()."""
        raise NotImplementedError

    def loss(self, outputs: torch.Tensor, batch: dict) -> torch.Tensor:
        """The sum of the losses over the labels that count: (B, Q, O) -> ()"""
        raise NotImplementedError

    def test(self, outputs: torch.Tensor, batch: dict) -> SampleScores:
        """A row per test item, of what its clips gave, (n * K, Q, O)."""
        raise NotImplementedError


def _flatten_clips(values):
    if isinstance(values, dict):
        return {key: value.flatten(0, 1) for key, value in values.items()}
    return values.flatten(0, 1)


class Classification(Task):
    """Classes from one answer for a clip, by cross-entropy (LayerLock, secs. A.4.1 and A.4.2)."""

    name = "classification"
    metrics = MEASURES[name]

    def __init__(
        self,
        config,
        num_classes: int,
        num_test_clips: int = 1,
        readout: Callable[..., nn.Module] = attention,
    ):
        super().__init__(config, num_test_clips, readout)
        self.num_classes = num_classes

    def build_readout(self) -> nn.Module:
        return self.readout(self.config, 1, self.num_classes)

    def count(self, batch: dict) -> torch.Tensor:
        return torch.tensor(len(batch["labels"]))

    def loss(self, outputs: torch.Tensor, batch: dict) -> torch.Tensor:
        return F.cross_entropy(outputs.squeeze(1), batch["labels"], reduction="sum")

    def test(self, outputs: torch.Tensor, batch: dict) -> SampleScores:
        logits = outputs.squeeze(1).unflatten(0, (-1, self.num_test_clips))
        return score_classes(mean_probabilities(logits), batch["labels"], batch["index"])


class Depth(Task):
    """Metres from one query per box of pixels, by squared error (LayerLock, sec. A.4.3)."""

    name = "depth"
    metrics = MEASURES[name]

    def build_readout(self) -> nn.Module:
        t, h, w = self.config.decoding_grid_size
        frames, rows, columns = self.config.decoding_patch_size
        return self.readout(self.config, t * h * w, frames * rows * columns)

    def count(self, batch: dict) -> torch.Tensor:
        return is_known_depth(batch["labels"]).sum()

    def loss(self, outputs: torch.Tensor, batch: dict) -> torch.Tensor:
        return depth_loss(depth_of_boxes(outputs, self.config), batch["labels"], num_items_in_batch=1)

    def test(self, outputs: torch.Tensor, batch: dict) -> SampleScores:
        return score_depth(depth_of_boxes(outputs, self.config), batch["labels"], batch["index"])


TASK_CLASSES = {task.name: task for task in (Classification, Depth)}
