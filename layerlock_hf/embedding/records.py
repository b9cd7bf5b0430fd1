"""What a folder of vectors says about itself: the records of its ranks, and the manifest that is made of them."""

import fcntl
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..data.preparing.journal import check_identity
from ..utils.files import remove_left_over
from ..utils.records import write_record
from ..utils.version import VERSION
from .shards import FORMATS, TYPES, column_of, read_pieces


MANIFEST, DATA, RANKS = "manifest.json", "data", "ranks"
COUNTS = ("windows", "rows", "videos", "unreadable", "partial")
WRITE_ANEW = "the same `layerlock embed` command writes it anew"
MAKE_ANEW = "delete it, and the same `layerlock embed` command makes the vectors of this rank anew"
POSITION = {"turn": int, "lanes": [[int]]}
# The form of a manifest: of every value its type or its choices, and of a list that of all items
FORM = {
    "settings": {
        "model": str,
        "window": str,
        "stride": str,
        "frame_rate": int | float | None,
        "pool": str,
        "depths": [int],
        "num_frames": int,
        "image_size": int,
        "resize_factor": float,
        "ignores_aspect": bool,
        "bf16": bool,
        "format": tuple(FORMATS),
        "videos": {"num_videos": int, "sha256": str},
    },
    "model": {"name": str, "revision": str | None},
    "columns": dict,
    "steps": int,
    "world_size": int,
    "is_complete": bool,
    "counts": dict.fromkeys(COUNTS, int),
    "shards": [{"file": str, "rows": int, "bytes": int, "sha256": str}],
}
RANK_FORM = {
    **FORM,
    "settings": {**FORM["settings"], "videos_at_once": int},
    "position": POSITION,
    "shards": [{**FORM["shards"][0], "end": POSITION}],
}


@contextmanager
def locked(path: Path, refusal: str | None = None) -> Iterator[None]:
    """A lock that no two processes hold at once, and that goes with its process.

    Args:
        path: a file beside what is locked, which stays.
        refusal: what to say where another process holds it, instead of waiting.

    Raises:
        ValueError: with the refusal.
    """
    with open(path, "w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
        except OSError as error:
            raise ValueError(refusal) from error
        yield


def fault_in(found, form, name: str = "") -> str | None:
    """The first thing in a record that does not have the form it must have; None if there is none."""
    if isinstance(form, dict):
        if not isinstance(found, dict):
            return f"{name or 'it'} is no object"
        lacking = [key for key in form if key not in found]
        parts = [(found.get(key), part, f"{name}.{key}".lstrip(".")) for key, part in form.items()]
        faults = (f"it lacks {f'{name}.{key}'.lstrip('.')}" for key in lacking)
    elif isinstance(form, list):
        if not isinstance(found, list):
            return f"{name} is no list"
        parts, faults = [(item, form[0], f"{name}[{place}]") for place, item in enumerate(found)], iter(())
    else:
        is_right = found in form if isinstance(form, tuple) else isinstance(found, form)
        is_truth = isinstance(found, bool) and form is not bool  # which Python takes for a whole number
        return None if is_right and not is_truth else f"{name} is {found!r}"
    return next(faults, None) or next(filter(None, (fault_in(*part) for part in parts)), None)


def contradictions_in(record: dict) -> Iterator[str]:
    """What cannot be in a manifest, or in the record of a rank, that has the form it must have."""
    depths, columns, steps, counts = record["settings"]["depths"], record["columns"], record["steps"], record["counts"]
    if not depths or columns.keys() != set(map(column_of, depths)):
        yield f"columns are {list(columns)}, and depths {depths}"
    for name, shape in columns.items():
        if fault_in(shape, [int]) or min(shape, default=0) < 1:
            yield f"columns.{name} is {shape!r}"
    if steps < 1:
        yield f"steps is {steps}"
    rows = [shard["rows"] for shard in record["shards"]]
    if min(rows, default=1) < 1 or sum(rows) != counts["rows"] or counts["rows"] != counts["windows"] * steps:
        yield f"shards have {sum(rows)} rows, counts.rows is {counts['rows']}, and counts.windows {counts['windows']}"


def contradictions_in_rank(record: dict, name: str) -> Iterator[str]:
    """Likewise, of the record of the rank that has this name."""
    yield from contradictions_in(record)
    settings, shards, position = record["settings"], record["shards"], record["position"]
    num_lanes, num_done = settings["videos_at_once"], record["counts"]["videos"]
    places = {"position": position, **{f"shards[{number}].end": shard["end"] for number, shard in enumerate(shards)}}
    for place, there in places.items():
        lanes = there["lanes"]
        if not 0 <= there["turn"] < len(lanes) == num_lanes or any(len(lane) != 2 or min(lane) < 0 for lane in lanes):
            yield f"{place} is {there}"
    if num_done != sum(lane[0] for lane in position["lanes"]):
        yield f"counts.videos is {num_done}, and position {position}"
    rank, world_size = int(name.partition("-")[0]), record["world_size"]
    if name != name_of_rank(rank, world_size):
        yield f"world_size is {world_size}"
    share = num_videos_of(rank, record)
    if num_done > share or num_done < share and record["is_complete"]:
        yield f"counts.videos is {num_done} of {share}, and is_complete {record['is_complete']}"
    if num_done < share and [position] != [shard["end"] for shard in shards[-1:]]:
        yield "position is not where the last shard ends"


def num_videos_of(rank: int, record: dict) -> int:
    """How many videos a rank has to do."""
    return len(range(rank, record["settings"]["videos"]["num_videos"], record["world_size"]))


def _read(path: Path, form: dict, contradictions: Callable[[dict], Iterator[str]], advice: str) -> dict:
    try:
        record = json.loads(path.read_text())
        fault = fault_in(record, form) or next(contradictions(record), None)
    except RecursionError:
        fault = "it is nested too deeply"
    except ValueError as error:
        fault = str(error) if path.stat().st_size else "it is empty"
    if fault:
        raise ValueError(f"{path} is damaged, or of another version of layerlock_hf ({fault}): {advice}")
    return record


def read_record(folder: Path, name: str) -> dict:
    """What a rank has done so far.

    Raises:
        ValueError: if the record is damaged.
    """
    path = folder / RANKS / f"{name}.json"
    return _read(path, RANK_FORM, lambda record: contradictions_in_rank(record, name), MAKE_ANEW)


def read_records(folder: Path) -> list[dict]:
    """What the ranks have done so far.

    Raises:
        ValueError: if the folder holds no such thing, or one that is damaged.
    """
    paths = sorted((folder / RANKS).glob("*.json"))
    if not paths:
        raise ValueError(f"{folder} holds no vectors: give the OUT of `layerlock embed`")
    return [read_record(folder, path.stem) for path in paths]


def read_manifest(folder: Path) -> dict:
    """The manifest, or what will become it, as far as the ranks are.

    Raises:
        ValueError: as `read_records`.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return merged(read_records(folder))
    return _read(path, FORM, contradictions_in, WRITE_ANEW)


def write_manifest(folder: Path, world_size: int) -> dict | None:
    """The manifest of all ranks, once all are complete; None before. Whoever comes last writes it."""
    with locked(folder / RANKS / ".merging"):
        records = read_records(folder)
        if len(records) < world_size or not all(record["is_complete"] for record in records):
            return None
        manifest = merged(records)
        remove_left_over(folder / MANIFEST)
        write_record(folder / MANIFEST, manifest)
    return manifest


def merged(records: Sequence[dict]) -> dict:
    """The manifest of several ranks."""
    common = {name: value for name, value in records[0].items() if name not in ("position", "counts", "shards")}
    counts = {name: sum(record["counts"][name] for record in records) for name in COUNTS}
    shards = [
        {name: value for name, value in shard.items() if name != "end"}
        for record in records
        for shard in record["shards"]
    ]
    is_complete = all(record["is_complete"] for record in records)
    return {**common, "is_complete": is_complete, "counts": counts, "shards": shards, "version": VERSION}


def check_same_model(made: dict, name: str, fingerprint: str, advice: str):
    """Raise a `ValueError` with this advice unless a model is the one that made a manifest, or a record."""
    made_by = made["model"]["name"]
    if made["settings"]["model"] == fingerprint:
        return
    if made_by == name:
        raise ValueError(
            f"model must be as it was when it made the vectors, but the weights or the configuration of {name} have "
            f"changed: {advice}"
        )
    raise ValueError(
        f"model must be {made_by}, which made the vectors, got {name}, whose weights or configuration differ: {advice}"
    )


def check_shapes(made: dict, steps: int, shapes: dict[str, list[int]], damaged: str):
    """Raise a `ValueError` unless vectors are of the shapes that the model which made them gives.

    Args:
        made: a manifest, or a record.
        steps: of a window.
        shapes: of columns that there are.
        damaged: what is wrong with `made` otherwise, and what to do.
    """
    wanted = {"steps": steps, **shapes}
    for name, found in {"steps": made["steps"], **{name: made["columns"][name] for name in shapes}}.items():
        if found != wanted[name]:
            raise ValueError(f"{name} must be {wanted[name]}, as this model gives vectors, got {found}: {damaged}")


def check_settings(folder: Path, world_size: int, about: dict):
    """Raise a `ValueError` if the folder holds vectors that other settings made, or as many ranks as are not these.

    Args:
        about: what goes into the record, see `RankWriter`.
    """
    for path in sorted((folder / RANKS).glob("*.json")):
        record, settings = read_record(folder, path.stem), about["settings"]
        if record["world_size"] != world_size:
            raise ValueError(
                f"world_size must be {record['world_size']}, with which {folder} was begun, got {world_size}: give "
                "that, or choose another OUT"
            )
        check_same_model(record, about["model"]["name"], settings["model"], "give that, or choose another OUT")
        then, now = record["settings"]["videos"], settings["videos"]
        if then != now:
            raise ValueError(
                f"VIDEOS must be those that {folder} was begun with, but the list has changed (it had "
                f"{then['num_videos']} videos and has {now['num_videos']}; names and sizes count): choose another OUT"
            )
        check_identity(str(folder), record["settings"], settings)
        check_shapes(record, about["steps"], about["columns"], f"{path} is damaged: {MAKE_ANEW}")


def describe_progress(folder: Path, rank: int, world_size: int) -> str:
    """How many windows of a rank are in the folder, in words."""
    name = name_of_rank(rank, world_size)
    if not (folder / RANKS / f"{name}.json").is_file():
        return f"nothing is in {folder} yet"
    record = read_record(folder, name)
    share = num_videos_of(rank, record)
    which = f" of rank {rank}" if world_size > 1 else ""
    counts = record["counts"]
    return f"{counts['windows']:,} windows of {counts['videos']:,} of {share:,} videos{which} are in {folder}"


def name_of_rank(rank: int, world_size: int) -> str:
    return f"{rank:05d}-of-{world_size:05d}"


def read_shards(out: str | Path, columns: Sequence[str] | None = None) -> Iterator[dict]:
    """The columns of one shard after the other, whatever their format.

    Args:
        out: a folder that `embed` wrote, or is writing.
        columns: names of those to read; all by default.

    Returns:
        Of every shard the columns by their names: "video", a list of n names; "depth_K", float32 (n, ...), of the
        shape in the manifest; the others (n,). A time that is unknown is NaN.

    Raises:
        ValueError: if the folder holds no vectors, or what is damaged, or a column is unknown.
    """
    folder = Path(out).expanduser()
    manifest = read_manifest(folder)
    shapes = manifest["columns"]
    there = ["video", *TYPES, *shapes]
    columns = there if columns is None else list(columns)
    if unknown := [name for name in columns if name not in there]:
        raise ValueError(f"columns must be among {', '.join(there)}, got {unknown[0]}")
    for shard in manifest["shards"]:
        path, kind = folder / shard["file"], manifest["settings"]["format"]
        for piece in read_pieces(path, kind, columns, shard["rows"]):
            vectors = {name: piece[name] for name in columns if name in shapes}
            for name, values in vectors.items():
                if values[0].size != math.prod(shapes[name]):
                    raise ValueError(
                        f"columns.{name} must have as many values as {path}, {values[0].size}, got {shapes[name]}: "
                        f"the manifest is damaged: {WRITE_ANEW}"
                    )
                vectors[name] = values.reshape(-1, *shapes[name])
            yield {**piece, **vectors}
