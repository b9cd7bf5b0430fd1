"""Evaluating frozen features: encoders of any kind, probes, and a readout during pretraining."""

from .depth_clips import DepthTestClips, DepthTrainingClips, count_windows
from .encoders import load_encoder
from .labelled_clips import TestClips, TrainingClips
from .ladder import RUNGS, Rung, climb
from .online import OnlineReadout, center_clips, labelled_videos
from .probe_clips import ProbeClips, load_clips
from .probes import (
    Ridge,
    abs_rel,
    accuracy,
    clip_features,
    encode,
    fit_and_predict,
    knn_accuracy,
    linear_accuracy,
    mean_features,
    place_features,
    probe_depths,
    r2,
)
from .protocol import SweepArguments, sweep_points
from .sweep import Sweep


__all__ = [
    "DepthTestClips",
    "DepthTrainingClips",
    "OnlineReadout",
    "ProbeClips",
    "RUNGS",
    "Ridge",
    "Rung",
    "Sweep",
    "SweepArguments",
    "TestClips",
    "TrainingClips",
    "abs_rel",
    "accuracy",
    "center_clips",
    "climb",
    "clip_features",
    "count_windows",
    "encode",
    "fit_and_predict",
    "knn_accuracy",
    "labelled_videos",
    "linear_accuracy",
    "load_clips",
    "load_encoder",
    "mean_features",
    "place_features",
    "probe_depths",
    "r2",
    "sweep_points",
]
