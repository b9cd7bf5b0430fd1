"""The windows of embedded videos that are most like a clip, by cosine similarity.

n windows, q of the query, D width.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..data import DECODE_TIMEOUT, DecodingError
from .nearest import find_nearest, unit_means
from .records import read_manifest
from .setup import Setup, set_up_again
from .shards import SPAN, column_of, read_pieces


CHUNK = 64 * 2**20  # bytes of vectors that lie in memory at once
BATCH = 8  # windows of the query per pass through the encoder


@dataclass(frozen=True)
class Hit:
    """A window that was found.

    Attributes:
        score: cosine similarity to the window of the query that it is most like.
        video, window, start_seconds, end_seconds, first_frame, num_frames: as in the shards; times that are unknown,
            as of folders of pictures, are NaN.
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
        num_searched: windows that were compared.
        depth: at which vectors were compared.
        note: what of the videos could not be searched, None if nothing.
        is_whole: whether all frames of the videos that were searched are known to decode.
    """

    query: list[Hit]
    hits: list[Hit]
    num_searched: int
    depth: int
    note: str | None
    is_whole: bool


def search(
    out: str | Path,
    query: str,
    top: int = 10,
    query_window: float | None = None,
    depth: int | None = None,
    model: str | None = None,
    device: str | torch.device = "cpu",
    one_per_video: bool = False,
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
        one_per_video: find of every video the best window alone.

    Raises:
        ValueError: if the folder holds no vectors, or what is damaged, the model is gone or has changed, or the query
            cannot be read.
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
    setup = set_up_again(manifest, model, depth, device)
    windows, vectors = read_query(setup, query, query_window)
    hits, num_searched = [], 0
    for shard in there:
        found, num_windows = nearest_in(out / shard["file"], vectors, manifest, depth, top, one_per_video)
        hits = best_of([*hits, *found], top, one_per_video)
        num_searched += num_windows
    is_whole = manifest["is_complete"] and not manifest["counts"]["partial"]
    return Found(windows, hits, num_searched, depth, note_of_missing(manifest, len(there)), is_whole)


def best_of(hits: Iterable[Hit], top: int, one_per_video: bool) -> list[Hit]:
    """The best hits, best first."""
    hits = sorted(hits, key=lambda hit: (-hit.score, hit.video, hit.window))
    if one_per_video:
        firsts = {}
        for hit in hits:
            firsts.setdefault(hit.video, hit)
        hits = list(firsts.values())
    return hits[:top]


def note_of_missing(manifest: dict, num_there: int) -> str | None:
    """What of the videos is not in the shards that are there."""
    missing, notes = len(manifest["shards"]) - num_there, []
    if missing:
        advice = "the same `layerlock embed` command makes them anew"
        notes.append(f"{missing} of {len(manifest['shards'])} shards are missing: {advice}")
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
            begin, end = cut.extent
            if at is not None and math.isnan(begin):
                raise ValueError(
                    f"query_window must be left out for {query}, got {at:g}: pictures have no times unless vectors "
                    "are made with a frame_rate"
                )
            if at is not None and not begin <= at < end:
                continue
            first, last = cut.spans[0], cut.spans[-1]
            span = {**first, "end_seconds": last["end_seconds"]}
            span["num_frames"] = last["first_frame"] + last["num_frames"] - first["first_frame"]
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


def nearest_in(
    path: Path, queries: np.ndarray, manifest: dict, depth: int, top: int, one_per_video: bool
) -> tuple[list[Hit], int]:
    """The best windows of a shard, and how many it has.

    Raises:
        ValueError: if it is missing or damaged.
    """
    steps, column, kind = manifest["steps"], column_of(depth), manifest["settings"]["format"]
    shape = (steps, *manifest["columns"][column])
    nearest, hits, num_windows = find_nearest(), [], 0
    size = steps * max(1, CHUNK // (math.prod(shape) * 4))  # rows of whole windows
    for rows in read_pieces(path, kind, ("video", "window", *SPAN, column), size):
        vectors = unit_means(rows[column], shape)
        num_windows += len(vectors)
        count = len(vectors) if one_per_video else min(top, len(vectors))
        scores, found = nearest(queries, vectors, count)
        if one_per_video:
            _, firsts = np.unique(np.array(rows["video"])[found * steps], return_index=True)
            firsts = np.sort(firsts)[:top]
            scores, found = scores[firsts], found[firsts]
        hits += [_hit(rows, index * steps, steps, score) for score, index in zip(scores.tolist(), found, strict=True)]
    return hits, num_windows


def _hit(rows: dict, start: int, steps: int, score: float) -> Hit:
    """The window whose rows begin there."""
    end = start + steps - 1
    first, last = ({name: rows[name][row].item() for name in ("window", *SPAN)} for row in (start, end))
    num_frames = last["first_frame"] + last["num_frames"] - first["first_frame"]
    whole = first | {"end_seconds": last["end_seconds"], "num_frames": num_frames}
    return Hit(score=score, video=rows["video"][start], **whole)
