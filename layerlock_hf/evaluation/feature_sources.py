"""Features of clips for readouts: from the encoder or from files, which belong to one encoder and dataset."""

import hashlib
import json
from pathlib import Path

import torch
from accelerate import PartialState
from torch import nn

from ..utils.weight_hash import hash_weights
from .arguments import ClipArguments
from .features import EncodedFeatures, FeatureStore, FixedClips, StoredFeatures, pooled_features
from .probes import probe_accuracies
from .splits import report_of_bad_videos


# What features of clips without augmentation depend on, and those of the test besides
CLIP_SETTINGS = ("frame_stride", "frame_rate", "resize_factor", "ignores_aspect", "is_still")
TEST_SETTINGS = ("num_test_clips", "max_test_clips")
TRAINING_CONTENTS, TEST_CONTENTS = "contents of the training data", "contents of the test data"


def fingerprint(encoder: nn.Module) -> str:
    """Of the configuration and all weights, wherever they were loaded from."""
    config = json.loads(encoder.config.to_json_string(use_diff=False), object_hook=_without_origin)
    return hash_weights(encoder, hashlib.blake2b(json.dumps(config, sort_keys=True).encode(), digest_size=16))


def _without_origin(config: dict) -> dict:
    return {name: value for name, value in config.items() if name not in ("_name_or_path", "transformers_version")}


def sources_of(encoder: nn.Module, sets, args: ClipArguments) -> dict:
    """What is read and shown, whatever it is called."""
    train, test = (hashlib.blake2b(json.dumps(part).encode(), digest_size=16).hexdigest() for part in sets.contents())
    return {
        "data": [args.dataset, args.data],
        "test_data": args.test_data,
        TRAINING_CONTENTS: train,
        TEST_CONTENTS: test,
        "encoder": fingerprint(encoder),
    }


def features_and_clips(encoder, sets, args: ClipArguments, sweep_args, depths: list[int], sources: dict):
    """How features are had, the clips of training and of the test, and what is to be filled first."""
    if args.feature_cache is not None:
        read_features = StoredFeatures(PartialState().device)
        fixed, test = stores = _stores(sets, args, sweep_args, depths, sources)
    else:
        read_features, fixed, test, stores = EncodedFeatures(encoder), sets.fixed_clips(), sets.test_clips(), ()
    if args.augment:
        return read_features, sets.training_clips(), test, stores
    bad_videos = report_of_bad_videos(args, len(fixed))
    return read_features, FixedClips(fixed, sweep_args.num_examples, sweep_args.seed, bad_videos), test, stores


def _stores(
    sets, args: ClipArguments, sweep_args, depths: list[int], sources: dict
) -> tuple[FeatureStore, FeatureStore]:
    """Of all clips of training and of the test."""
    folder = Path(args.feature_cache)
    common = {name: sources[name] for name in ("encoder", "data")} | {"bf16": sweep_args.bf16}
    common |= {name: getattr(args, name) for name in CLIP_SETTINGS}
    of_train = {TRAINING_CONTENTS: sources[TRAINING_CONTENTS]}
    of_test = {name: getattr(args, name) for name in TEST_SETTINGS}
    of_test |= {name: sources[name] for name in ("test_data", TEST_CONTENTS)}
    return (
        FeatureStore(folder / "train", sets.fixed_clips(), depths, common | of_train),
        FeatureStore(folder / "test", sets.test_clips(), depths, common | of_test),
    )


def fill(stores, encoder, task, sweep_args):
    """Make the features that are missing."""
    state = PartialState()
    batch_size = max(1, sweep_args.clips_at_once(state.num_processes) // task.num_test_clips)
    for store in stores:
        with torch.autocast(state.device.type, torch.bfloat16, enabled=sweep_args.bf16):
            store.fill(EncodedFeatures(encoder), task.collate_test, batch_size, sweep_args.num_workers)


def probe(sets, task, training, test, read_features, depths: list[int], args: ClipArguments, sweep_args):
    """What mean features tell without any training: of the middle of every training video, and of the test clips.

    None but to the main process.
    """
    fixed = sets.fixed_clips() if args.augment else training.items
    state = PartialState()
    size = max(1, sweep_args.clips_at_once(state.num_processes) // args.num_test_clips)
    with torch.autocast(state.device.type, torch.bfloat16, enabled=sweep_args.bf16):
        parts = [
            pooled_features(clips, read_features, depths, task.collate_test, size, sweep_args.num_workers)
            for clips in (fixed, test)
        ]
    return probe_accuracies(depths, *parts[0], *parts[1]) if state.is_main_process else None
