"""Train readouts on a frozen encoder, all depths and learning rates from one pass, and test them.

python scripts/train_readout.py --model PATH_OR_HUB_ID --task classification|depth --data DATA --output_dir OUT
                                [--config scripts/recipes/readouts/ssv2.yaml] [--SETTING VALUE ...]

DATA names a data set, with options: EVALUATION_DATA.md beside this program says how data sets must lie. Under
`accelerate launch` or `torchrun` all processes share each batch. The same command goes on where it was stopped.

OUT receives `results.json`, pictures (`sweep.png`, `curves.png`, and `confusion.png` or `depth.png`), the losses in
`metrics.jsonl`, videos that cannot be read in `bad_videos.jsonl`, the weights of all readouts, and in `model/` the
encoder with the best of them, which `AutoModelForVideoClassification` or `AutoModelForDepthEstimation` loads (of
attention readouts, the default of `--readout`).
"""

import programs  # noqa: F401  # isort: skip
import copy
import os
import platform
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import set_seed

import layerlock_hf
from layerlock_hf.data import BadData
from layerlock_hf.evaluation import Sweep, load_encoder, sweep_members
from layerlock_hf.evaluation.readouts import READOUTS
from layerlock_hf.evaluation.results import build_results, write_results
from layerlock_hf.evaluation.sweep import METRICS
from layerlock_hf.utils.processes import check_shared_folder, run_and_exit, start_processes
from outputs import check_output, is_lost_worker, message_of, message_of_lost_worker
from readout_arguments import SIZED, ClipArguments, EncoderArguments, parse
from readout_features import features_and_clips, fill, probe, sources_of
from readout_report import draw, save_model, summarize
from readout_sets import BAD_VIDEOS, SETS


RESULTS = "results.json"
REPORTS = (METRICS, BAD_VIDEOS)
GENERAL = ("table", "folder", "rgbd")  # kinds of data sets rather than data sets
# What the settings of `results.json` leave out: which encoder and videos, and what changes no result
ABOUT_SOURCES = ("model", "random_weights", "data", "test_data", "dataset", "dataset_name")
INCIDENTAL = (
    "output_dir",
    "num_workers",
    "logging_steps",
    "eval_steps",
    "save_steps",
    "micro_batch_size",
    "max_parallel_readouts",
    "feature_cache",
    "decode_timeout",
    "max_bad_fraction",
    "probes",
)
# What changes nothing without --augment
AUGMENTATION = ("flip_probability", "jitter_strength", "jitter_probability", "gray_probability")
VERSIONS = {
    "layerlock_hf": layerlock_hf.__version__,
    "transformers": transformers.__version__,
    "torch": torch.__version__,
    "python": platform.python_version(),
}
# Seconds that processes wait for each other: long enough for one that has more features to make than the others
TIMEOUT_S = 3600


def name_of(args: ClipArguments) -> str:
    """What results call the data set."""
    if args.dataset_name is not None:
        return args.dataset_name
    path, *options = args.data.split("?", 1)
    name = "?".join([Path(path).resolve().name if args.dataset in GENERAL else args.dataset, *options])
    return name if args.test_data is None else f"{name}, tested on {args.test_data}"


def settings_of(encoder_args: EncoderArguments, args: ClipArguments, sweep_args, config) -> dict:
    """What the numbers depend on, for `results.json`: defaults that depend on the encoder as they were used."""
    settings = asdict(encoder_args) | asdict(args) | asdict(sweep_args)
    settings |= {name: getattr(config, name) for name in ("image_size", "num_frames")}
    settings |= {name: getattr(config, name) for name, kinds in SIZED.items() if encoder_args.readout in kinds}
    left_out = INCIDENTAL + ABOUT_SOURCES + (() if args.augment else AUGMENTATION)
    return {name: value for name, value in settings.items() if name not in left_out}


def load(args: EncoderArguments, seed: int) -> nn.Module:
    set_seed(seed)  # for weights that are drawn
    try:
        return load_encoder(args.model, args.random_weights, args.image_size, args.num_frames)
    except ValueError as error:
        raise ValueError(f"model: {error}") from error


def readout_config(encoder: nn.Module, args: EncoderArguments):
    """Of the readouts: the encoder's, with the sizes asked for."""
    config = copy.deepcopy(encoder.config)
    sizes = ("readout_hidden_size", "readout_num_attention_heads")
    config.update({name: getattr(args, name) for name in sizes if getattr(args, name) is not None})
    config.check_readout()
    return config


def main(arguments: list[str]):
    try:
        encoder_args, args, sweep_args = parse(arguments)
        args.check_paths()
        use_cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
        start_processes(use_cpu, None, TIMEOUT_S)
        output, state = Path(args.output_dir), PartialState(cpu=use_cpu)
        if state.is_main_process:
            check_output(output, REPORTS)
            if args.feature_cache is not None:
                check_output(Path(args.feature_cache), (), "feature_cache")
        check_shared_folder(output)
        if state.device.type == "cuda":  # there, not all kernels add up in the same order every time
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
        encoder = load(encoder_args, sweep_args.seed).to(state.device)
        config = readout_config(encoder, encoder_args)
        sets = SETS[args.task](args, sweep_args, config)
        task = sets.task(READOUTS[encoder_args.readout])
        members = sweep_members(sweep_args, config.num_hidden_layers)
        depths = sorted({member.depth for member in members})
        num_weights = sum(parameter.numel() for parameter in task.build_readout().parameters())
        if state.is_main_process:
            print(
                f"{len(members)} readouts of {num_weights:,} parameters at depths {depths} of "
                f"{config.num_hidden_layers}, {sweep_args.num_steps} steps"
            )
        settings = settings_of(encoder_args, args, sweep_args, config)
        sources = sources_of(encoder, sets, args)
        read_features, training, test, stores = features_and_clips(encoder, sets, args, sweep_args, depths, sources)
        # Which readouts share a checkpoint depends on how many are trained at once
        identity = settings | sources | {"max_parallel_readouts": sweep_args.max_parallel_readouts}
        sweep = Sweep(task, read_features, members, sweep_args, training, test, output, identity, sets.baselines)
        fill(stores, encoder, task, sweep_args)
        judged = sweep.run()
        probes = None
        if args.probes:
            probes = probe(sets, task, training, test, read_features, depths, args, sweep_args)
        if state.is_main_process:
            about = {
                "dataset": name_of(args),
                "model": encoder_args.model + " (random weights)" * encoder_args.random_weights,
                "command": shlex.join(["train_readout.py", *arguments]),
                "settings": settings,
                "versions": VERSIONS,
                "num_train": sets.num_train,
                "seconds": sweep.seconds,
            }
            results = build_results(
                args.task,
                judged,
                sets.test_set(sweep.errors),
                config.num_hidden_layers,
                sweep.judged_baselines,
                about,
                probes=probes,
            )
            write_results(results, output / RESULTS)
            draw(results, sweep, encoder, config, sets, output)
            save_model(results, sweep, encoder, config, sets, args)
            summarize(results)
    except (ValueError, StrictDataclassError) as error:
        raise SystemExit(f"error: {error}") from error
    except BadData as error:
        raise SystemExit(f"error: {message_of(error)}") from None
    except RuntimeError as error:
        if not is_lost_worker(error):
            raise
        raise SystemExit(f"error: {message_of_lost_worker(error)}: fewer num_workers need less") from None


if __name__ == "__main__":
    run_and_exit(lambda: main(sys.argv[1:]))
