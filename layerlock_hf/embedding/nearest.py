"""Which of many vectors are most like any of a few: by faiss where it is installed, else by NumPy.

n vectors, q queries, D width.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
from transformers.utils import logging

from ..data.clips import one_line


logger = logging.get_logger(__name__)


def unit_means(vectors: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The mean over steps of time and places, of length 1: (n, ..., D) -> (n, D). `shape` is (steps, ..., D)."""
    means = vectors.reshape(-1, math.prod(shape[:-1]), shape[-1]).mean(axis=1, dtype=np.float32)
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), np.finfo(np.float32).tiny)


@functools.cache
def find_nearest() -> Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]:
    """A function from queries (q, D), vectors (n, D) and a number to the scores and indices of so many vectors whose
    product with any query is largest: by faiss where it is installed and can be loaded, else by NumPy."""
    try:
        from faiss import METRIC_INNER_PRODUCT, knn
    except Exception as error:  # whatever its libraries raise
        if not isinstance(error, ModuleNotFoundError) or error.name != "faiss":
            logger.warning(f"NumPy compares the vectors, as faiss cannot be loaded: {one_line(error)}")
        return nearest_by_numpy

    def nearest_by_faiss(queries: np.ndarray, vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        scores, indices = knn(queries, vectors, count, metric=METRIC_INNER_PRODUCT)
        best = np.full(len(vectors), -np.inf, np.float32)
        np.maximum.at(best, indices.ravel(), scores.ravel())
        return _largest(best, count)

    return nearest_by_faiss


def nearest_by_numpy(queries: np.ndarray, vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    return _largest((vectors @ queries.T).max(axis=1), count)


def _largest(scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The best first, and of equals the one that comes first."""
    indices = np.argsort(-scores, kind="stable")[:count]
    return scores[indices], indices
