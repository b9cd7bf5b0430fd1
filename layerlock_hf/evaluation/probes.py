"""Cheap probes of frozen features: nearest neighbours and ridge regression, without a training loop.

B clips, N tokens of the grid (t, h, w), D width.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F


STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
HELD_OUT = 0.2  # share of the samples that chooses the strength of a ridge regression
NUM_NEIGHBOURS = 10
TEMPERATURE = 0.07  # of the votes of neighbours (DINO's k-NN)
MAX_ROWS = 4096  # samples that a regression takes in at once
MAX_ASKED = 1024  # samples compared with all others at once, which bounds the memory


def probe_depths(num_layers: int) -> list[int]:
    """A quarter, half, three quarters and all of the layers."""
    return sorted({max(1, round(num_layers * share)) for share in (0.25, 0.5, 0.75, 1)})


@torch.no_grad()
def encode(encoder, clips: torch.Tensor, depths: list[int], batch_size: int = 32, pool: Callable | None = None):
    """Tokens of whole clips (B, T, C, H, W) of bytes: one float32 (B, N, D) per depth, or what `pool` makes of each
    batch of it. The clips go to the device of the encoder, the results come back."""
    batches = []
    for batch in clips.split(batch_size):
        taps = encoder.tap(batch.to(encoder.device).float() / 255, depths)
        batches.append([(tap if pool is None else pool(tap)).float().cpu() for tap in taps])
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


def mean_features(tokens: torch.Tensor) -> torch.Tensor:
    """The mean over all tokens: (B, N, D) -> (B, D)."""
    return tokens.mean(dim=1)


def clip_features(tokens: torch.Tensor, grid_size: tuple[int, int, int]) -> torch.Tensor:
    """The mean over all tokens, and the changes over time of the mean over space: (B, N, D) -> (B, t * D)."""
    frames = tokens.unflatten(1, grid_size).mean(dim=(2, 3))
    return torch.cat([mean_features(tokens), frames.diff(dim=1).flatten(1)], dim=1)


def place_features(tokens: torch.Tensor, grid_size: tuple[int, int, int]) -> torch.Tensor:
    """The means over every row and over every column of the grid: (B, N, D) -> (B, (h + w) * D)."""
    grid = tokens.unflatten(1, grid_size).mean(dim=1)
    return torch.cat([grid.mean(dim=2), grid.mean(dim=1)], dim=1).flatten(1)


def knn_accuracy(
    features: torch.Tensor,
    labels: torch.Tensor,
    test_features: torch.Tensor | None = None,
    test_labels: torch.Tensor | None = None,
    num_neighbours: int = NUM_NEIGHBOURS,
) -> float:
    """Share of samples whose nearest neighbours, by cosine of centred features, vote for their class.

    Without test samples, every sample is classified by all the others (leave-one-out).

    Args:
        features: (B, D).
        labels: (B,), classes counted from 0.
        test_features, test_labels: the samples to classify, both or neither.
        num_neighbours: neighbours that vote; fewer where there are fewer.
    """
    if (test_features is None) != (test_labels is None):
        raise ValueError("test_features and test_labels must be given together: give both or neither")
    leaves_out = test_features is None
    if len(features) < 1 + leaves_out:
        raise ValueError(f"features must hold at least {1 + leaves_out} samples, got {len(features)}")
    center = features.mean(dim=0)  # a mean that all share would bring all cosines close to 1
    known = F.normalize(features - center, dim=1)
    asked = known if leaves_out else F.normalize(test_features - center, dim=1)
    count = min(num_neighbours, len(features) - leaves_out)
    found = []
    for start in range(0, len(asked), MAX_ASKED):
        similarities = asked[start : start + MAX_ASKED] @ known.T
        if leaves_out:
            similarities[:, start : start + MAX_ASKED].fill_diagonal_(-torch.inf)
        found.append(similarities.topk(count, dim=1))
    nearest, ids = (torch.cat(parts) for parts in zip(*found, strict=True))
    votes = torch.zeros(len(asked), int(labels.max()) + 1)
    votes.scatter_add_(1, labels[ids], (nearest / TEMPERATURE).exp())
    return (votes.argmax(dim=1) == (labels if leaves_out else test_labels)).double().mean().item()


class Ridge:
    """Ridge regression on standardised features, for any number of strengths at once.

    It solves for a weight per feature or for one per sample, whichever are fewer.
    """

    def __init__(self, features: torch.Tensor, targets: torch.Tensor):
        self.mean, self.offset = features.mean(dim=0), targets.double().mean(dim=0)
        self.samples = None
        if features.shape[1] > len(features):
            centred = (features - self.mean).double()
            self.std = centred.square().mean(dim=0).sqrt() + 1e-6
            self.samples = centred / self.std
            self.gram = self.samples @ self.samples.T / len(features)
            self.moments = (targets.double() - self.offset) / len(features)
            return
        self.gram, self.moments = 0, 0
        # In parts that a cache holds: copies of the whole in double precision took most of the time
        for part, wanted in zip(features.split(MAX_ROWS), targets.split(MAX_ROWS), strict=True):
            part = (part - self.mean).double()
            self.gram = self.gram + part.T @ part / len(features)
            self.moments = self.moments + part.T @ (wanted.double() - self.offset) / len(features)
        self.std = self.gram.diagonal().sqrt() + 1e-6
        self.gram = self.gram / torch.outer(self.std, self.std)
        self.moments = torch.einsum("d...,d->d...", self.moments, 1 / self.std)

    def predict(self, features: torch.Tensor, strength: float) -> torch.Tensor:
        penalty = strength * torch.eye(len(self.gram), dtype=torch.float64)
        # Not `solve`: its pivoting took 30 times as long on two threads
        factor = torch.linalg.cholesky(self.gram + penalty)
        weights = torch.cholesky_solve(self.moments.view(len(factor), -1), factor).view_as(self.moments)
        if self.samples is not None:
            weights = torch.einsum("bd,b...->d...", self.samples, weights)
        weights = torch.einsum("d...,d->d...", weights, 1 / self.std)
        return (features - self.mean) @ weights.to(features.dtype) + self.offset


def fit_and_predict(features, targets, test_features, score: Callable) -> tuple[torch.Tensor, float]:
    """Predictions for the test features, and the score of the held-out last fifth of the samples.

    The strength is the one whose predictions for the held-out samples score best; the final fit is to all samples.
    """
    kept = round(len(features) * (1 - HELD_OUT))
    trial = Ridge(features[:kept], targets[:kept])
    scores = {
        strength: score(trial.predict(features[kept:], strength), targets[kept:]).item() for strength in STRENGTHS
    }
    best = max(scores, key=scores.get)
    return Ridge(features, targets).predict(test_features, best), scores[best]


def accuracy(scores: torch.Tensor, one_hot: torch.Tensor) -> torch.Tensor:
    """Share of samples whose highest score is that of their class: (B, K), (B, K) -> ()."""
    return (scores.argmax(dim=1) == one_hot.argmax(dim=1)).double().mean()


def linear_accuracy(
    features: torch.Tensor, labels: torch.Tensor, test_features: torch.Tensor, test_labels: torch.Tensor
) -> tuple[float, float]:
    """Accuracy of a ridge classifier on the test samples, and on held-out samples of those it was fitted to."""
    num_classes = int(max(labels.max(), test_labels.max())) + 1
    one_hot, test_one_hot = (F.one_hot(values, num_classes).double() for values in (labels, test_labels))
    predicted, validation = fit_and_predict(features, one_hot, test_features, accuracy)
    return accuracy(predicted, test_one_hot).item(), validation


def probe_accuracies(
    depths: Sequence[int],
    features: Sequence[torch.Tensor],
    labels: torch.Tensor,
    test_features: Sequence[torch.Tensor],
    test_labels: torch.Tensor,
) -> list[dict]:
    """What nearest neighbours and a ridge classifier make of the features of each depth.

    Args:
        depths: one per element of `features` and `test_features`.
        features, test_features: float32 (B, D) each.
        labels, test_labels: (B,).

    Returns:
        {"depth", "knn_top1", "ridge_top1"} for each depth.
    """
    # Tables of videos are often sorted by class: the ridge's held-out last fifth would have classes of its own
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return [
        {
            "depth": depth,
            "knn_top1": knn_accuracy(known, labels, asked, test_labels),
            "ridge_top1": linear_accuracy(known[order], labels[order], asked, test_labels)[0],
        }
        for depth, known, asked in zip(depths, features, test_features, strict=True)
    ]


def abs_rel(predicted: torch.Tensor, metres: torch.Tensor) -> torch.Tensor:
    """Mean of the error over the true depth: ()."""
    return ((predicted - metres).abs() / metres).mean()


def r2(predicted: torch.Tensor, metres: torch.Tensor) -> torch.Tensor:
    """Share of the variance that is explained: ()."""
    return 1 - (predicted - metres).square().sum() / (metres - metres.mean()).square().sum()
