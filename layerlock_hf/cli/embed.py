"""Embed videos of any length with any encoder: a vector for every window, frame or token, with its time.

layerlock embed VIDEOS OUT --model MODEL [--window 2s] [--stride 1s] [--depths 0.95] [--pool window]

VIDEOS is a video, or whatever pretraining takes: a folder, a list (.csv, .json, .jsonl, .parquet), shards. MODEL is
the folder or Hub id of an encoder: ours, or any ViT of Transformers for video, or for images, which sees the frames
one by one.

OUT/data/*.parquet has a row for every vector: video, window, step, start_seconds, end_seconds, first_frame, num_frames
and depth_K, the vector after K layers; with --format safetensors these are tensors. OUT/manifest.json says what made
them, and comes when all is done. OUT/bad_videos.jsonl lists the videos that cannot be read, or only in part, and why.

If it is stopped or killed, the same command continues where it was, and ends with the same bytes. It makes files anew
that are missing, or whose size has changed; --verify compares every byte. On several GPUs or machines, give each its
own --rank out of --world_size and the same OUT, or start it with torchrun, accelerate launch or SLURM, which set both.
Ranks do not communicate. Exits with status 1 if no video at all can be read.
"""

import argparse
import os
import sys
from dataclasses import asdict

import torch
from transformers.utils import logging

from ..embedding import EmbedArguments, embed
from ..embedding.records import describe_progress
from ..embedding.run import BAD_VIDEOS
from ..utils.cores import count_cores
from . import programs
from .predict import device
from .run_errors import run_errors_told
from .shares import GO_ON, goes_on_later, launch_number, parse_share, parser_of, slurm_share


def share() -> tuple[int, int]:
    """Rank and world size as torchrun and accelerate tell them, else SLURM.

    Raises:
        ValueError: naming the variable that is missing or no number; and as of `slurm_share`.
    """
    if "RANK" in os.environ:
        return launch_number("RANK"), launch_number("WORLD_SIZE", 1)
    return slurm_share()


def default_device() -> torch.device:
    """The GPU of this process, if there is one.

    Raises:
        ValueError: if LOCAL_RANK, which tells it, is no number.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", launch_number("LOCAL_RANK", default="0", instead="--device"))


def parse(arguments: list[str]) -> tuple[EmbedArguments, argparse.Namespace]:
    parser = parser_of(EmbedArguments, __doc__)
    parser.add_argument("videos", metavar="VIDEOS", help="Video, folder, list or shards.")
    parser.add_argument("out", metavar="OUT", type=programs.folder, help="Folder to write to.")
    parser.add_argument("--model", required=True, help="Folder or Hub id of an encoder.")
    parser.add_argument(
        "--num_workers",
        type=programs.whole(0),
        default=min(4, count_cores()),
        help="Processes that decode while the encoder runs (0: the main process).",
    )
    parser.add_argument("--device", type=device, help="Device, as PyTorch names it (default: a GPU if there is one).")
    parser.add_argument(
        "--verify", action="store_true", help="Compare every byte of files that are there, and make damaged ones anew."
    )
    settings, where = parse_share(parser, arguments, share, "do", "torchrun, accelerate or SLURM")
    where.device = where.device or default_device()
    return settings, where


def main(arguments: list[str]) -> int:
    with programs.errors_told():
        settings, where = parse(arguments)
    logging.disable_progress_bar()
    with (
        programs.errors_told(),
        run_errors_told("num_workers", f"; {GO_ON}"),
        goes_on_later(where.out, lambda: describe_progress(where.out, where.rank, where.world_size)),
    ):
        done = embed(**vars(where), **asdict(settings))
    counts = done["counts"]
    files = len(done["shards"])
    print(
        f"{counts['rows']} vectors of {counts['windows']} windows of {counts['videos']} videos are in {where.out}: "
        f"{files} shard{'s' * (files != 1)}"
    )
    bad = {"unreadable": counts["unreadable"], "read in part": counts["partial"]}
    if any(bad.values()):
        told = ", ".join(f"{count} {what}" for what, count in bad.items() if count)
        print(f"{told}: {where.out / BAD_VIDEOS}*.jsonl says why")
    if "position" in done:
        print(f"other ranks of {where.world_size} are not complete: the last one writes the manifest")
    return 0 if counts["rows"] or not counts["videos"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
