"""Train attention readouts on a frozen encoder, all depths and learning rates from one pass, and test them.

python scripts/train_readout.py --model PATH_OR_HUB_ID --task classification|depth --data DATA --output_dir OUT
                                [--config scripts/recipes/readout-ssv2.yaml] [--SETTING VALUE ...]

Under `accelerate launch` or `torchrun` the batches are shared by all processes. The same command goes on where it was
stopped. OUT receives `results.json`, pictures (`sweep.png`, `curves.png`, `confusion.png` or `depth.png`), the losses
in `metrics.jsonl`, videos that cannot be read in `bad_videos.jsonl`, and in `model/` the encoder with the best
readout, which `AutoModelForVideoClassification` or `AutoModelForDepthEstimation` loads.

DATA names a data set, with options: EVALUATION_DATA.md beside this program says how data sets must lie.
"""

import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import set_seed

from layerlock_hf.data import BadData
from layerlock_hf.evaluation import Sweep, load_encoder, sweep_members, write_results
from layerlock_hf.evaluation.features import EncodedFeatures, FeatureStore, FixedClips, StoredFeatures
from layerlock_hf.evaluation.sets import SETS
from layerlock_hf.evaluation.tasks import TASK_CLASSES
from layerlock_hf.training.processes import run_and_exit
from pretrain import check_output
from readout_arguments import parse
