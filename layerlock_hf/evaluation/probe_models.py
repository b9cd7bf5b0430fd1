"""Frozen encoders and their controls, probed side by side on procedural clips."""

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from transformers import set_seed

from ..utils.cores import count_cores
from .controls import FrameDifferences, OneFrame, constant_scores, labelled_scores, train_with_labels
from .encoders import load_encoder
from .ladder import RUNGS, climb
from .probe_clips import ProbeClips, load_clips
from .probe_plots import ONE_FRAME
from .probes import probe_depths


MAX_AT_ONCE = 2  # encoders that are read at the same time: the tokens of each take about a gigabyte
SCENES = {"easy": "easy_", "full": ""}  # scenes of the rungs -> how the names of their datasets begin


class InHalfPrecision:
    """An encoder that computes in bfloat16: about twice as fast where the processor has instructions for it."""

    def __init__(self, encoder):
        self.encoder, self.device, self.grid_size = encoder, encoder.device, encoder.grid_size

    def tap(self, video: torch.Tensor, depths: list[int]) -> list[torch.Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16):
            return self.encoder.tap(video, depths)


def load_sets(folder: Path, config, resize_factor: float) -> dict[str, tuple[ProbeClips, ProbeClips]]:
    """The clips to fit probes to and to test them, of all scenes that there are."""
    sets = {}
    for scenes, beginning in SCENES.items():
        folders = [folder / f"{beginning}{split}" for split in ("train", "test")]
        if beginning and not all((path / "videos.csv").is_file() for path in folders):
            titles = ", ".join(rung.title for rung in RUNGS if rung.scenes == scenes)
            print(f"no {beginning}train and {beginning}test in {folder}: not asked are {titles}")
            continue
        fit, test = (load_clips(path, config, resize_factor, num_workers=count_cores()) for path in folders)
        # Easy scenes may show nothing but the room
        sets[scenes] = (fit.in_sight, test.in_sight) if beginning else (fit, test)
        print(f"{scenes} scenes: {len(sets[scenes][0])} clips to fit the probes, {len(sets[scenes][1])} to test them")
    return sets


def climb_side_by_side(climbers: dict, sets: dict) -> dict[str, dict]:
    """The scores of all, each (encoder, depths). By threads, for operations this small share cores badly."""

    def timed(name: str) -> dict:
        start = time.perf_counter()
        encoder, depths = climbers[name]
        scores = climb(encoder, sets, depths)
        print(f"  {name}: {time.perf_counter() - start:.0f} s", flush=True)
        return scores

    at_once = min(count_cores(), MAX_AT_ONCE)
    threads = max(1, count_cores() // at_once)
    with ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        return dict(zip(climbers, pool.map(timed, climbers), strict=True))


def load_models(models: dict[str, str]) -> dict:
    """The encoders by name, which see clips of one size."""
    encoders = {name: load_encoder(folder) for name, folder in models.items()}
    shapes = {name: (encoder.config.num_frames, encoder.config.image_size) for name, encoder in encoders.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"models must see clips of one length and size, got {shapes}: probe them one by one")
    return encoders


def probe_models(
    models: dict[str, str],
    data: Path,
    resize_factor: float = 1.15,
    num_ceiling_steps: int | None = None,
    ceiling_data: Iterable[Path] = (),
    bf16: bool = False,
) -> dict[str, dict]:
    """The scores of models and controls by name.

    Args:
        models: folders or Hub ids of encoders by name.
        data: folder of the procedural datasets `train` and `test`, and `easy_train` and `easy_test`.
        resize_factor: as in pretraining.
        num_ceiling_steps: for which a ViT is trained with the labels, too; none by default.
        ceiling_data: more datasets to train it on.
        bf16: encode in bfloat16.

    Raises:
        ValueError: if a model or the data cannot be read, or the models see clips of different sizes.
    """
    encoders = load_models(models)
    config = next(iter(encoders.values())).config
    set_seed(0)
    encoders["random"] = load_encoder(next(iter(models.values())), random_weights=True)
    sets = load_sets(data, config, resize_factor)
    more = [load_clips(folder, config, resize_factor, count_cores()) for folder in ceiling_data]
    depths = probe_depths(config.num_hidden_layers)

    if bf16:
        encoders = {name: InHalfPrecision(encoder) for name, encoder in encoders.items()}
    climbers = {name: (encoder, depths) for name, encoder in encoders.items()}
    climbers |= {f"{name}{ONE_FRAME}": (OneFrame(encoders[name]), depths) for name in models}
    climbers["differences"] = (FrameDifferences(config), [0])
    scores = climb_side_by_side(climbers, sets)
    scores["constant"] = {}
    for scenes, (fit, test) in sets.items():
        scores["constant"] |= constant_scores(fit, test, [rung for rung in RUNGS if rung.scenes == scenes])
    if num_ceiling_steps:
        fit, test = sets["full"]
        rungs = [rung for rung in RUNGS if rung.scenes == "full"]
        model, rungs = train_with_labels(config, ProbeClips.joined([fit, *more]), num_ceiling_steps, rungs)
        scores["ceiling"] = labelled_scores(model, rungs, test)
    return scores
