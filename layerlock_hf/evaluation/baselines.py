"""What can be predicted without looking at the pixels. A readout that is no better has learned nothing from them.

n test items, K classes, T frames.
"""

import torch

from ..models.modeling_layerlock_readout import MAX_DEPTH, MIN_DEPTH, is_known_depth


ASPECT_BANDWIDTH = 0.05  # of log sizes: videos count as alike within about 5%
NUM_BINS = 10_000  # of a millimetre each


def class_frequencies(train_labels: list[int], num_classes: int, num_test: int) -> torch.Tensor:
    """The shares of the classes in training, for every test video alike: (n, K). The likeliest is the majority class.

    Raises:
        ValueError: without training videos.
    """
    counts = _class_counts(torch.zeros(len(train_labels), dtype=torch.long), train_labels, 1, num_classes)
    return (counts / counts.sum()).expand(num_test, num_classes)


def frame_shape_probabilities(
    train_sizes: list[tuple[int, int]],
    train_labels: list[int],
    test_sizes: list[tuple[int, int]] | torch.Tensor,
    num_classes: int,
    uses_size: bool = False,
) -> torch.Tensor:
    """Classes of videos by the shape of their frames alone: (n, K).

    The shares of the classes among training videos of a like shape, with Gaussian weights (width `ASPECT_BANDWIDTH`)
    of the difference in log(width / height), or in both log sizes. Where no shape is alike, the nearest decides.

    Args:
        train_sizes, test_sizes: (height, width) in pixels, as displayed; (n, 2).
        train_labels: classes counted from 0.
        num_classes: K.
        uses_size: whether the size tells too, not the aspect ratio alone.

    Raises:
        ValueError: without training videos, or for a size that is none.
    """
    shapes, place = torch.unique(_log_shape(train_sizes, uses_size), dim=0, return_inverse=True)
    counts = _class_counts(place, train_labels, len(shapes), num_classes)
    distances = torch.cdist(_log_shape(test_sizes, uses_size), shapes, compute_mode="donot_use_mm_for_euclid_dist")
    likeness = (-0.5 * (distances / ASPECT_BANDWIDTH).square()).softmax(dim=1)
    scores = likeness @ counts
    return scores / scores.sum(dim=1, keepdim=True)


def _log_shape(sizes: list[tuple[int, int]] | torch.Tensor, uses_size: bool) -> torch.Tensor:
    pixels = torch.as_tensor(sizes, dtype=torch.float64).view(-1, 2)
    if (pixels <= 0).any():
        raise ValueError("sizes must be above 0")
    logs = pixels.log()
    return logs if uses_size else logs[:, 1:] - logs[:, :1]


def _class_counts(places: torch.Tensor, labels: list[int], num_places: int, num_classes: int) -> torch.Tensor:
    if not labels or len(places) != len(labels):
        raise ValueError(
            f"labels must be one per training video, and at least one, got {len(labels)} for {len(places)} videos"
        )
    cells = places * num_classes + torch.tensor(labels)
    return torch.bincount(cells, minlength=num_places * num_classes).view(num_places, num_classes).double()


class TrainingDepth:
    """The known depth of training clips: its mean, its median, and its mean at every pixel.

    Predictions are (H, W), in metres, and the same for every frame; `expand` them to the shape of the truth. Of the
    constants, the median suits relative errors better than the mean does.
    """

    def __init__(self):
        self._sum = self._num = None  # (H, W)
        self._histogram = torch.zeros(NUM_BINS, dtype=torch.float64)

    def add(self, metres: torch.Tensor):
        """Clips (..., H, W) in metres; all of one height and width."""
        frames = metres.detach().cpu().double().flatten(0, -3)
        if self._sum is None:
            self._sum = torch.zeros(frames.shape[1:], dtype=torch.float64)
            self._num = torch.zeros_like(self._sum)
        if frames.shape[1:] != self._sum.shape:
            raise ValueError(
                f"metres must have maps of {tuple(self._sum.shape)} like those before, got {tuple(frames.shape[1:])}"
            )
        is_known = is_known_depth(frames)
        self._sum += torch.where(is_known, frames, 0).sum(dim=0)
        self._num += is_known.sum(dim=0)
        self._histogram += torch.histc(frames[is_known], NUM_BINS, 0, MAX_DEPTH)

    def baselines(self) -> dict[str, torch.Tensor]:
        """`mean_depth`, `median_depth` (to a millimetre) and `mean_depth_map`, each (H, W).

        A pixel whose depth is never known has the mean of all in the map.

        Raises:
            ValueError: if no depth is known.
        """
        if self._sum is None or not self._num.sum():
            raise ValueError(f"no training clip has a depth between {MIN_DEPTH} and {MAX_DEPTH} m")
        mean = self._sum.sum() / self._num.sum()
        shares = self._histogram.cumsum(dim=0) / self._histogram.sum()
        median = (torch.searchsorted(shares, 0.5).double() + 0.5) * (MAX_DEPTH / NUM_BINS)
        return {
            "mean_depth": mean.expand(self._sum.shape),
            "median_depth": median.expand(self._sum.shape),
            "mean_depth_map": torch.where(self._num > 0, self._sum / self._num, mean),
        }
