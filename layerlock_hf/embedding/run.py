"""Vectors of all windows of all videos of a source, by one frozen encoder."""

import contextlib
import hashlib
import json
from pathlib import Path

import torch
from transformers.utils import logging

from ..data import BadVideos, check_present, name_of
from ..evaluation.predict import list_all
from ..utils.outputs import check_output
from .arguments import EmbedArguments
from .making import ShardMaker
from .records import DATA, RANKS, check_settings, locked, read_record, write_manifest
from .setup import name_of_model, set_up
from .shards import column_of
from .writing import RankWriter


logger = logging.get_logger(__name__)

BAD_VIDEOS = "bad_videos"


def embed(
    videos: str,
    out: str | Path,
    model: str,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    device: str | torch.device = "cpu",
    verify: bool = False,
    **settings,
) -> dict:
    """Write vectors of windows of videos, in shards, and a manifest; what is there already is not made again.

    Shards that are missing or have another size than they had are.

    Args:
        videos: a video, or whatever `load_videos` reads.
        out: the folder to write to.
        model: folder or Hub id of an encoder, as of `load_encoder`.
        rank: which share of the videos is done, from 0 on.
        world_size: number of shares. They do not communicate.
        num_workers: processes that decode while the encoder runs.
        device: of the encoder.
        verify: look at every byte of the shards that are there, not only at their sizes.
        settings: of `EmbedArguments`.

    Returns:
        The manifest or, while other ranks are not complete, the record of this one: "counts", "shards" and more.

    Raises:
        ValueError: if the model or the videos cannot be found, a setting is impossible, or `out` holds vectors that
            other settings made, or whose records are damaged.
    """
    arguments = EmbedArguments(**settings)
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be at least 0 and less than world_size={world_size}, got {rank}")
    out = Path(out).expanduser()
    check_output(out, (), "OUT")
    listed = list_all(videos)
    check_present(listed, videos)
    setup = set_up(model, arguments, device)
    common = {name: getattr(arguments, name) for name in ("batch_size", "videos_at_once", "windows_per_shard")}
    common |= {"format": arguments.format, "videos": {"num_videos": len(listed), "sha256": digest_of(listed)}}
    about = {
        "settings": setup.settings | common,
        "model": {"name": name_of_model(model), "revision": setup.revision},
        "columns": {column_of(depth): list(setup.encoder.shape) for depth in setup.settings["depths"]},
        "steps": setup.encoder.num_steps,
        "world_size": world_size,
    }
    # Only now, as locks stay; and a rank that was refused meanwhile may have removed OUT, empty as it was
    for folder in (out / DATA, out / RANKS):
        check_output(folder, (), "OUT")
    with locked(out / RANKS / f".{rank:05d}", f"another process is at work on rank {rank} of {out}: wait for it"):
        check_settings(out, world_size, about)
        share = range(rank, len(listed), world_size)
        lanes = [share[lane :: arguments.videos_at_once] for lane in range(arguments.videos_at_once)]
        writer = RankWriter(out, rank, world_size, about, len(lanes))
        name = f"{BAD_VIDEOS}-{writer.name}.jsonl" if world_size > 1 else f"{BAD_VIDEOS}.jsonl"
        bad_videos = BadVideos(str(out / name), max(1, len(share)), max_bad_fraction=1)
        parts = (listed, lanes, setup, arguments, bad_videos)
        for number in writer.damaged(verify):
            logger.warning(f"shard {number} of rank {rank} is missing or damaged: it is made anew")
            maker = ShardMaker(*parts, writer.counts, writer.start_of(number))
            with contextlib.closing(maker.shards(num_workers)) as shards:
                rows = next(shards, [])
            writer.rewrite(number, rows, maker.position)
        if not writer.is_complete:
            maker = ShardMaker(*parts, writer.counts, writer.position)
            for rows in maker.shards(num_workers):
                writer.write(rows, maker.counts, maker.position)
            writer.finish(maker.counts, maker.position)
    return write_manifest(out, world_size) or read_record(out, writer.name)


def digest_of(videos) -> str:
    """Of the names and sizes in a list, so that another list is told."""
    digest = hashlib.sha256()
    for index, row in enumerate(videos):
        path = Path(name_of(row, index))
        size = path.stat().st_size if path.is_file() else row.get("size")
        digest.update(json.dumps([str(path), size]).encode())
    return digest.hexdigest()
