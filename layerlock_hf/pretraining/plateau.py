"""When the layers of a run have settled, by its checkpoints."""

import sys
from pathlib import Path

import torch
from tqdm import tqdm
from transformers.utils import logging

from ..analysis.plateau import MIN_CHECKPOINTS, spaced, summarise_plateau
from ..analysis.plateau_plot import plot_plateau
from ..evaluation import load_encoder
from ..evaluation.any_videos import clips_for, read_any_videos
from ..hub.documents import SETTINGS, STAGES, read_json, read_object
from ..training import mae
from ..training.checkpoints import FOLDER
from ..training.diagnostics import weight_norms
from ..training.schedules import scheduled_factors
from ..training.settling import NUM_CLIPS, Observation, SettlingRule, view_layers
from ..utils.outputs import check_output
from ..utils.records import write_record
from ..utils.similarity import MIN_CLIPS
from .planning import unchecked_arguments


logger = logging.get_logger(__name__)

RESULTS, PICTURE = "plateau.json", "plateau.png"
BATCH_SIZE = 8  # clips


def find_plateau(
    run: str | Path,
    data: str,
    output_dir: str | Path | None = None,
    rule: SettlingRule | None = None,
    max_frozen: int | None = None,
) -> dict:
    """When each layer of a run has settled, and the freeze schedule that follows.

    Examples:
        >>> find_plateau("runs/mae", "videos")["schedule"]  # doctest: +SKIP
        {'freeze_start': 840, 'freeze_interval': 60, 'num_freezes': 4}

    Args:
        run: folder of a run with checkpoints, best one that freezes nothing: frozen layers have settled by force.
        data: videos, as of `read_any_videos`; the first `NUM_CLIPS` are looked at.
        output_dir: folder for plateau.json and plateau.png; nothing is written by default.
        rule, max_frozen: see `summarise_plateau`.

    Raises:
        ValueError: naming what is wrong.
    """
    run = Path(run).expanduser()
    if output_dir is not None:
        check_output(Path(output_dir), [RESULTS, PICTURE])
    record = read_record(run)
    args = unchecked_arguments(record["settings"], record["max_steps"])
    checkpoints = {step_of(path): path for path in run.glob("checkpoint-*") if (path / "config.json").is_file()}
    reached = max(checkpoints, default=0)  # stages.json has those that were planned for later, too
    num_frozen = max((row["num_frozen"] for row in read_json(run / STAGES) or [] if row["start"] < reached), default=0)
    if num_frozen:
        logger.warning(
            f"{run} froze {num_frozen} layers, which count as settled from then on: better look at a run of none"
        )
    steps = spaced([step for step in checkpoints if step <= args.max_steps], args.max_steps)
    observations = {}
    if len(steps) >= MIN_CHECKPOINTS:
        observations = observe_checkpoints({step: checkpoints[step] for step in steps}, data, record["settings"])
    # Without switches, whose small warm-ups are gaps
    summary = summarise_plateau(observations, scheduled_factors(mae(1), args), rule, max_frozen)
    if output_dir is not None:
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_record(folder / RESULTS, summary)
        plot_plateau(summary, f"{run.resolve().name}: when have its layers settled?", folder / PICTURE)
    return summary


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint-N, or one that no run has."""
    name = FOLDER.fullmatch(checkpoint.name)
    return int(name[1]) if name else sys.maxsize


def read_record(run: Path) -> dict:
    """What a run recorded of itself.

    Raises:
        ValueError: if the folder holds no such record.
    """
    record = read_object(run / SETTINGS)
    if not isinstance(record.get("settings"), dict) or not isinstance(record.get("max_steps"), int):
        raise ValueError(f"RUN must be a folder of `layerlock pretrain`, got {run}: it has no {SETTINGS} of a run")
    return record


@torch.no_grad()
def observe_checkpoints(checkpoints: dict[int, Path], data: str, settings: dict) -> dict[int, Observation]:
    """All layers at each of these steps, of a run of these settings.

    Raises:
        ValueError: if no video can be read.
    """
    found, clips = {}, None
    for step, path in tqdm(checkpoints.items(), desc="checkpoints"):
        try:
            encoder = load_encoder(str(path))
        except ValueError as error:  # one that is being written, or deleted
            logger.warning(f"{path} is left out: {error}")
            continue
        if clips is None:
            clips = first_clips(encoder, data, settings)
        batches = (video.to(encoder.device).float() / 255 for video in clips.split(BATCH_SIZE))
        layers = view_layers(encoder.tap, encoder, batches, len(clips))
        found[step] = Observation.of(weight_norms(encoder.layers), layers)
    return found


def first_clips(encoder, data: str, settings: dict) -> torch.Tensor:
    """The middle clips of some videos, at the pace and scale of the run, as bytes: (n, T, C, H, W).

    Raises:
        ValueError: if too few can be read.
    """
    pace = {name: settings[name] for name in ("frame_stride", "frame_rate", "resize_factor") if name in settings}
    clips = clips_for(encoder, read_any_videos(data, max_videos=NUM_CLIPS), **pace)
    samples = [clips[index] for index in range(len(clips))]
    good = [sample["pixel_values_videos"][0] for sample in samples if "error" not in sample]
    if len(good) < MIN_CLIPS:
        first = next((f", the first because of: {one['error']}" for one in samples if "error" in one), "")
        raise ValueError(f"data must hold at least {MIN_CLIPS} readable videos, got {len(good)}{first}")
    return torch.stack(good)
