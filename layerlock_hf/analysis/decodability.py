"""What a linear classifier reads from features, and what is left if it sees a single patch (arXiv 2601.09040).

n clips, D width, K targets; B clips (T, C, H, W) of a batch.
"""

import contextlib
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence

import torch

from ..utils.packages import importing


NUM_FOLDS = 3
MAX_ITERATIONS = 1000
PATCH_SIZE = 16  # of what a clip keeps, in pixels


def check_scikit_learn():
    """Raise `PackageUnusable` where scikit-learn, which logistic regression is left to, cannot be imported."""
    with importing("scikit-learn", "logistic probes", "analysis"):
        import sklearn.linear_model  # noqa: F401


def _classifier():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=MAX_ITERATIONS))


@contextlib.contextmanager
def _fitting() -> Iterator[None]:
    """Threads and warnings while regressions are fitted."""
    from threadpoolctl import threadpool_limits  # which scikit-learn requires

    # Matrices this small on two threads took 20 to 50 times as long as on one
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.filterwarnings("ignore", "lbfgs failed to converge")  # the protocol ends there, too
        warnings.filterwarnings("ignore", "The least populated class")  # of few gratings some relations are rare
        yield


def _score(features, labels, test_features, test_labels) -> float:
    if len(set(labels.tolist())) == 1:  # which a regression refuses
        return float((test_labels == labels[0]).mean())
    return _classifier().fit(features, labels).score(test_features, test_labels)


def probe_accuracy(
    features: torch.Tensor, labels: torch.Tensor, test_features: torch.Tensor, test_labels: torch.Tensor
) -> float:
    """Accuracy of logistic regression on standardised features (n, D), fitted to some clips and tested on others."""
    with _fitting():
        return _score(features.numpy(), labels.numpy(), test_features.numpy(), test_labels.numpy())


def cross_validated_accuracy(
    features: torch.Tensor, labels: torch.Tensor, videos: Sequence[int] | torch.Tensor | None = None
) -> float:
    """The same by 3-fold cross-validation, the folds stratified by class; clips of one video lie in one fold.

    Args:
        features: (n, D).
        labels: classes, (n,); or of several targets, (n, K), whose accuracies are averaged.
        videos: which video each clip is of, (n,); by default each has its own.

    Raises:
        ValueError: if no class has a clip for every fold.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    kind = StratifiedKFold if videos is None else StratifiedGroupKFold
    folds = kind(NUM_FOLDS, shuffle=True, random_state=0)
    groups = None if videos is None else torch.as_tensor(videos).numpy()
    values, scores = features.numpy(), []
    with _fitting():
        for target in labels.reshape(len(labels), -1).T.numpy():
            for fit, test in folds.split(values, target, groups):
                scores.append(_score(values[fit], target[fit], values[test], target[test]))
    return sum(scores) / len(scores)


def check_folds(labels: Sequence[int], class_names: Sequence[str]):
    """Raise a `ValueError` unless every class that there is has a video for each fold; `labels` is one per video."""
    for label, num_videos in sorted(Counter(labels).items()):
        if num_videos < NUM_FOLDS:
            raise ValueError(
                f"data must have at least {NUM_FOLDS} videos of every class to cross-validate probes, got "
                f"{num_videos} of {class_names[label]}: give more, or train_data to fit them to"
            )


def majority_share(labels: torch.Tensor) -> float:
    """Accuracy of always naming the commonest class: (n,), or the mean over targets of (n, K)."""
    targets = labels.reshape(len(labels), -1).T
    return sum(target.bincount().max().item() / len(target) for target in targets) / len(targets)


def occlusion_drop(accuracy: float, accuracy_of_patches: float) -> float:
    """OccDrop: the share of an accuracy that is lost if a single patch of every clip is seen.

    The paper does not say what the probe of the occluded clips is fitted to. Here it is occluded clips, as its small
    drops suggest: a probe of whole clips would meet features that it has never seen.
    """
    return (accuracy - accuracy_of_patches) / accuracy if accuracy else float("nan")


def _num_places(height: int, width: int) -> int:
    return (height // PATCH_SIZE) * (width // PATCH_SIZE)


def check_room(height: int, width: int, parts: int = 1):
    """Raise a `ValueError` if a clip has no second place for a patch, so that nothing would be hidden."""
    if _num_places(height, width) < 2 or not _num_places(height, width // parts):
        raise ValueError(
            f"clips must have room for two patches of {PATCH_SIZE} x {PATCH_SIZE} pixels for OccDrop, got {height} x "
            f"{width}: leave out the measures of occ_drop"
        )


def keep_patches(clips: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Turn all but a patch of 16 x 16 pixels black, the same in every frame: (B, T, C, H, W) -> (B, T, C, H, W).

    Args:
        clips: of pixels.
        places: which patch of each clip, counted row by row, (B, 1); or one for the left and one for the right half of
            the clip, (B, 2).
    """
    parts, (height, width) = places.shape[1], clips.shape[-2:]
    check_room(height, width, parts)
    is_kept = torch.zeros(len(clips), 1, 1, height, width, dtype=torch.bool)
    strip = width // parts
    columns = strip // PATCH_SIZE
    for part in range(parts):
        for clip, place in enumerate(places[:, part].tolist()):
            top, left = place // columns * PATCH_SIZE, part * strip + place % columns * PATCH_SIZE
            is_kept[clip, ..., top : top + PATCH_SIZE, left : left + PATCH_SIZE] = True
    return clips * is_kept.to(clips.device)


def random_places(clips: torch.Tensor, indices: Sequence[int], parts: int = 1) -> torch.Tensor:
    """A patch for each clip of a batch, (B, parts), that depends on nothing but the clip's index."""
    draws = [torch.rand(parts, generator=torch.Generator().manual_seed(index)) for index in indices]
    return (torch.stack(draws) * _num_places(clips.shape[-2], clips.shape[-1] // parts)).long()
