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

import copy
import hashlib
import json
import platform
import shlex
import sys
import time
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
from layerlock_hf.evaluation.features import EncodedFeatures, FeatureStore, FixedClips, StoredFeatures, pooled_features
from layerlock_hf.evaluation.probes import probe_accuracies
from layerlock_hf.evaluation.readouts import READOUTS
from layerlock_hf.evaluation.results import build_results, write_results
from layerlock_hf.training.processes import check_shared_folder, run_and_exit, start_processes
from pretrain import check_output, message_of
from readout_arguments import ClipArguments, EncoderArguments, parse
from readout_report import draw, save_model, summarize
from readout_sets import SETS, report_of_bad_videos


RESULTS = "results.json"
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
    return args.dataset_name or (Path(args.data).name if args.dataset in GENERAL else args.dataset)


def fingerprint(encoder: nn.Module) -> str:
    """Of the configuration and all weights, wherever they were loaded from."""
    config = {name: value for name, value in encoder.config.to_dict().items() if name != "_name_or_path"}
    digest = hashlib.blake2b(json.dumps(config, sort_keys=True, default=str).encode(), digest_size=16)
    for name, values in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(values.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sources_of(encoder: nn.Module, sets, args: ClipArguments) -> dict:
    """What is read and shown, whatever it is called."""
    contents = hashlib.blake2b(json.dumps(sets.contents()).encode(), digest_size=16).hexdigest()
    where = [args.dataset, args.data, args.test_data]
    return {"data": where, "contents of the data": contents, "encoder": fingerprint(encoder)}


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


def features_and_clips(encoder, sets, task, args: ClipArguments, sweep_args, depths: list[int], identity: dict):
    """How features are had, and the clips of training and of the test."""
    if args.feature_cache is not None:
        state, stores = PartialState(), []
        for name, clips, per_item in (
            ("train", sets.fixed_clips(), 1),
            ("test", sets.test_clips(), args.num_test_clips),
        ):
            store = FeatureStore(Path(args.feature_cache) / name, clips, depths, identity)
            batch_size = max(1, sweep_args.clips_at_once(state.num_processes) // per_item)
            with torch.autocast(state.device.type, torch.bfloat16, enabled=sweep_args.bf16):
                store.fill(EncodedFeatures(encoder), task.collate_test, batch_size, sweep_args.num_workers)
            stores.append(store)
        read_features, (fixed, test) = StoredFeatures(state.device), stores
    else:
        read_features, fixed, test = EncodedFeatures(encoder), sets.fixed_clips(), sets.test_clips()
    if args.augment:
        return read_features, sets.training_clips(), test
    bad_videos = report_of_bad_videos(args, len(fixed))
    return read_features, FixedClips(fixed, sweep_args.num_examples, sweep_args.seed, bad_videos), test


def probe(sets, task, training, test, read_features, depths: list[int], args: ClipArguments, sweep_args) -> list[dict]:
    """What mean features tell without any training: of the middle of every training video, and of the test clips."""
    fixed = sets.fixed_clips() if args.augment else training.items
    size = max(1, sweep_args.clips_at_once(PartialState().num_processes) // args.num_test_clips)
    parts = [
        pooled_features(clips, read_features, depths, task.collate_test, size, sweep_args.num_workers)
        for clips in (fixed, test)
    ]
    return probe_accuracies(depths, *parts[0], *parts[1])


def main(arguments: list[str]):
    started = time.monotonic()
    try:
        encoder_args, args, sweep_args = parse(arguments)
        use_cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
        start_processes(use_cpu, None, TIMEOUT_S)
        output, state = Path(args.output_dir), PartialState(cpu=use_cpu)
        if state.is_main_process:
            check_output(output)
        check_shared_folder(output)
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
        settings = asdict(encoder_args) | asdict(args) | asdict(sweep_args)
        settings = {name: value for name, value in settings.items() if name not in INCIDENTAL + ABOUT_SOURCES}
        sources = sources_of(encoder, sets, args)
        clips = {name: value for name, value in asdict(args).items() if name in settings}
        read_features, training, test = features_and_clips(
            encoder, sets, task, args, sweep_args, depths, sources | clips
        )
        # Which readouts share a checkpoint depends on how many are trained at once
        identity = settings | sources | {"max_parallel_readouts": sweep_args.max_parallel_readouts}
        sweep = Sweep(task, read_features, members, sweep_args, training, test, output, identity)
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
                "seconds": time.monotonic() - started,
            }
            test_set, baselines = sets.test_set(sweep.errors), sets.baselines(sweep.errors)
            results = build_results(
                args.task, judged, test_set, config.num_hidden_layers, baselines, about, probes=probes
            )
            write_results(results, output / RESULTS)
            draw(results, sweep, encoder, config, sets, output)
            save_model(results, sweep, encoder, config, sets, args)
            summarize(results)
    except (ValueError, StrictDataclassError) as error:
        raise SystemExit(f"error: {error}") from error
    except BadData as error:
        raise SystemExit(f"error: {message_of(error)}") from None


if __name__ == "__main__":
    run_and_exit(lambda: main(sys.argv[1:]))
