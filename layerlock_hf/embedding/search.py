"""The windows of embedded videos that are most like a clip, by cosine similarity.

n windows, q of the query, D width.
"""

import functools
import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from ..data import DECODE_TIMEOUT, DecodingError
from .setup import Setup, set_up_again
from .writing import SPAN, column_of, read_manifest


CHUNK = 64 * 2**20  # bytes of vectors that lie in memory at once
BATCH = 8  # windows of the query per pass through the encoder
ABOUT = ("video", "window", *SPAN)


@dataclass(frozen=True)
class Hit:
    """A window that was found.

    Attributes:
        score: cosine similarity to the window of the query that it is most like.
        video, window, start_seconds, end_seconds, first_frame, num_frames: as in the shards.
    """

    score: float
    video: str
    window: int
    start_seconds: float
    end_seconds: float
    first_frame: int
    num_frames: int


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        query: the windows of the clip that were looked for, as hits of score 1.
        hits: the nearest windows, best first.
        num_searched: windows that were looked at.
        depth: at which vectors were compared.
        note: what of the videos could not be searched, None if nothing.
    """

    query: list[Hit]
    hits: list[Hit]
    num_searched: int
    depth: int
    note: str | None


def search(
    out: str | Path,
    query: str,
    top: int = 10,
    query_window: float | None = None,
    depth: int | None = None,
    model: str | None = None,
    device: str | torch.device = "cpu",
) -> Found:
    """Find the windows of embedded videos that are most like any window of a clip.

    Args:
        out: a folder that `embed` wrote, or is writing.
        query: a video.
        top: number of windows to find.
        query_window: look only for the window of the clip that shows this time, in seconds.
        depth: whose vectors are compared; by default the last that there is.
        model: what made the vectors, if it is no longer where it was.
        device: of the encoder.

    Raises:
        ValueError: if the folder holds no vectors, the model is gone or has changed, or the query cannot be read.
    """
    out = Path(out).expanduser()
    manifest = read_manifest(out)
    depths = manifest["settings"]["depths"]
    depth = depths[-1] if depth is None else depth
    if depth not in depths:
        raise ValueError(f"depth must be one of those in {out}, {', '.join(map(str, depths))}, got {depth}")
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    there = [shard for shard in manifest["shards"] if (out / shard["file"]).is_file()]
    if not there:
        raise ValueError(f"{out} holds no shards of vectors: let `layerlock embed` go on, or give another folder")
    setup = set_up_again(model or manifest["model"]["name"], manifest["settings"], depth, device)
    windows, vectors = read_query(setup, query, query_window)
    hits, num_searched = [], 0
    for shard in there:
        found, num_windows = nearest_in(out / shard["file"], vectors, manifest, depth, top)
        hits = heapq.nsmallest(top, [*hits, *found], key=lambda hit: (-hit.score, hit.video, hit.window))
        num_searched += num_windows
    return Found(windows, hits, num_searched, depth, note_of_missing(manifest, len(there)))


def note_of_missing(manifest: dict, num_there: int) -> str | None:
    """What of the videos is not in the shards that are there."""
    missing, notes = len(manifest["shards"]) - num_there, []
    if missing:
        notes.append(f"{missing} of {len(manifest['shards'])} shards are missing: bring them back")
    if not manifest["is_complete"]:
        notes.append(
            f"not all videos are embedded yet ({manifest['counts']['videos']} are): let `layerlock embed` go on"
        )
    return "; ".join(notes) or None


def read_query(setup: Setup, query: str, at: float | None = None) -> tuple[list[Hit], np.ndarray]:
    """The windows of a clip, all or the one that shows a time, and their vectors (q, D), of length 1.

    Raises:
        ValueError: if it cannot be read, or has no such time.
    """
    windows, clips, vectors = [], [], []
    shape = (setup.encoder.num_steps, *setup.encoder.shape)

    def encode():
        if clips:
            vectors.append(unit_means(setup.encoder(torch.stack(clips))[0], shape))
            clips.clear()

    try:
        for cut in setup.open(query, DECODE_TIMEOUT).windows():
            first, last = cut.spans[0], cut.spans[-1]
            span = {**first, "end_seconds": last["end_seconds"]}
            span["num_frames"] = last["first_frame"] + last["num_frames"] - first["first_frame"]
            if at is not None and not span["start_seconds"] <= at < span["end_seconds"]:
                continue
            windows.append(Hit(1.0, query, cut.number, **span))
            clips.append(torch.from_numpy(cut.clip))
            if len(clips) == BATCH:
                encode()
            if at is not None:
                break
    except DecodingError as error:
        raise ValueError(f"query {query} cannot be read: {error}") from error
    encode()
    if not windows:
        raise ValueError(f"query_window must be a time of {query}, in seconds, got {at}: no window shows it")
    return windows, np.concatenate(vectors)


def unit_means(vectors: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The mean over steps of time and places, of length 1: (n, ..., D) -> (n, D). `shape` is (steps, ..., D)."""
    means = vectors.reshape(-1, math.prod(shape[:-1]), shape[-1]).mean(axis=1, dtype=np.float32)
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def nearest_in(path: Path, queries: np.ndarray, manifest: dict, depth: int, top: int) -> tuple[list[Hit], int]:
    """The best windows of a shard, and how many it has.

    Raises:
        ValueError: if it cannot be read.
    """
    steps, column = manifest["steps"], column_of(depth)
    shape = (steps, *manifest["columns"][column])
    nearest, hits, num_windows = find_nearest(), [], 0
    for rows in _chunks(path, [*ABOUT, column], steps, math.prod(shape) * 4):
        vectors = unit_means(rows.column(column).flatten().to_numpy(), shape)
        num_windows += len(vectors)
        scores, found = nearest(queries, vectors, min(top, len(vectors)))
        for score, index in zip(scores.tolist(), found.tolist(), strict=True):
            first, last = (
                {name: rows.column(name)[row].as_py() for name in ABOUT}
                for row in (index * steps, index * steps + steps - 1)
            )
            end = last["first_frame"] + last["num_frames"]
            whole = {"end_seconds": last["end_seconds"], "num_frames": end - first["first_frame"]}
            hits.append(Hit(score=score, **(first | whole)))
    return hits, num_windows


def _chunks(path: Path, columns: list[str], steps: int, window_bytes: int) -> Iterator:
    """Record batches of whole windows."""
    size = steps * max(1, CHUNK // window_bytes)
    try:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(size, columns=columns)
    except (OSError, ValueError) as error:  # PyArrow's are these
        raise ValueError(f"{path} cannot be read: {error}: embed the videos anew") from error


@functools.cache
def find_nearest() -> Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]:
    """A function from queries (q, D), vectors (n, D) and a number to the scores and indices of so many vectors whose
    product with any query is largest: by faiss where it is installed, which takes less time, else by NumPy."""
    try:
        import faiss
    except ImportError:
        return nearest_by_numpy

    def nearest_by_faiss(queries: np.ndarray, vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        scores, indices = faiss.knn(queries, vectors, count, metric=faiss.METRIC_INNER_PRODUCT)
        best = np.full(len(vectors), -np.inf, np.float32)
        np.maximum.at(best, indices.ravel(), scores.ravel())
        return _largest(best, count)

    return nearest_by_faiss


def nearest_by_numpy(queries: np.ndarray, vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    return _largest((vectors @ queries.T).max(axis=1), count)


def _largest(scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    indices = np.argpartition(-scores, count - 1)[:count]
    return scores[indices], indices
