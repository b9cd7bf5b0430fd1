"""Probe frozen encoders on procedural clips: where an object is, how it moves and where it will be, which of eight
motions the objects share, and how far everything is.

python scripts/probe.py --models layerlock=RUN mae=RUN --data FOLDER --output probes.json

FOLDER holds `train` and `test`, each a procedural dataset with depth, and for the first rungs of the ladder
`easy_train` and `easy_test`: one object before a camera that stands still. Every model is read at a quarter, half,
three quarters and all of its layers, by ridge regression and by a small readout by attention. A held-out fifth of
the training videos chooses the layer. Beside the models stand controls: the same ViT with random weights (`random`),
the models seeing the middle frame of every clip alone (`NAME_one_frame`), differences of frames without an encoder
(`differences`), the mean of all answers (`constant`) and, with `--ceiling STEPS`, the ViT trained with the labels
(`ceiling`).

Writes the scores with 95% intervals over videos, and a picture of them beside.
"""

import programs  # isort: skip
import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from transformers import set_seed
from transformers.utils import logging

from layerlock_hf.evaluation import RUNGS, ProbeClips, climb, load_clips, load_encoder, probe_depths
from layerlock_hf.evaluation.controls import (
    FrameDifferences,
    OneFrame,
    constant_scores,
    labelled_scores,
    train_with_labels,
)
from layerlock_hf.utils.cores import count_cores
from outputs import check_output
from probe_plots import CONTROLS, ONE_FRAME, is_control, plot_probes, print_probes


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


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The arguments; `models` is from names to folders.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=FOLDER", help="Models to probe.")
    parser.add_argument("--data", type=programs.folder, required=True, help="Folder of the datasets train and test.")
    parser.add_argument("--resize_factor", type=float, default=1.15, help="As in pretraining.")
    parser.add_argument("--output", type=programs.folder, required=True, help="JSON file for the scores.")
    parser.add_argument(
        "--ceiling", type=int, metavar="STEPS", help="Also train the ViT with labels, for so many steps."
    )
    parser.add_argument(
        "--ceiling_data",
        type=programs.folder,
        nargs="*",
        default=[],
        help="More datasets to train it on; depth is optional.",
    )
    parser.add_argument("--bf16", action="store_true", help="Encode in bfloat16: faster on processors that can.")
    args = parser.parse_args(arguments)
    models = {}
    for item in args.models:
        name, _, folder = item.partition("=")
        if not (name and folder):
            raise ValueError(f"models must be NAME=FOLDER, got {item!r}: for instance mae=runs/mae")
        if name in models or is_control(name):
            raise ValueError(
                f"models: {name} is named twice, or as a control ({', '.join(CONTROLS)}, NAME{ONE_FRAME}): choose "
                "another name"
            )
        models[name] = folder
    args.models = models
    if args.output.suffix != ".json" or args.output.is_dir():
        raise ValueError(f"output must be a file that ends in .json, got {args.output}: the picture goes beside it")
    check_output(args.output.parent, [args.output.name, args.output.with_suffix(".png").name], "output")
    if args.ceiling is not None and args.ceiling < 1:
        raise ValueError(f"ceiling must be at least 1 step, got {args.ceiling}")
    if args.ceiling_data and args.ceiling is None:
        raise ValueError("ceiling_data is set but ceiling is not: without it no ViT is trained")
    return args


def load_models(models: dict[str, str]) -> dict:
    """The encoders by name, which see clips of one size."""
    encoders = {name: load_encoder(folder) for name, folder in models.items()}
    shapes = {name: (encoder.config.num_frames, encoder.config.image_size) for name, encoder in encoders.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"models must see clips of one length and size, got {shapes}: probe them one by one")
    return encoders


def main(arguments: list[str] | None = None):
    with programs.errors_told():
        args = parse(arguments)
        logging.disable_progress_bar()
        encoders = load_models(args.models)
        config = next(iter(encoders.values())).config
        set_seed(0)
        encoders["random"] = load_encoder(next(iter(args.models.values())), random_weights=True)
        sets = load_sets(args.data, config, args.resize_factor)
        more = [load_clips(folder, config, args.resize_factor, count_cores()) for folder in args.ceiling_data]
    depths = probe_depths(config.num_hidden_layers)

    if args.bf16:
        encoders = {name: InHalfPrecision(encoder) for name, encoder in encoders.items()}
    climbers = {name: (encoder, depths) for name, encoder in encoders.items()}
    climbers |= {f"{name}{ONE_FRAME}": (OneFrame(encoders[name]), depths) for name in args.models}
    climbers["differences"] = (FrameDifferences(config), [0])
    scores = climb_side_by_side(climbers, sets)
    scores["constant"] = {}
    for scenes, (fit, test) in sets.items():
        scores["constant"] |= constant_scores(fit, test, [rung for rung in RUNGS if rung.scenes == scenes])
    if args.ceiling:
        fit, test = sets["full"]
        rungs = [rung for rung in RUNGS if rung.scenes == "full"]
        model, rungs = train_with_labels(config, ProbeClips.joined([fit, *more]), args.ceiling, rungs)
        scores["ceiling"] = labelled_scores(model, rungs, test)
    args.output.write_text(json.dumps(scores, indent=1) + "\n")
    plot_probes(scores, args.output.with_suffix(".png"))
    print_probes(scores)


if __name__ == "__main__":
    main()
