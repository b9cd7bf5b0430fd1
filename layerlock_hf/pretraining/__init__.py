"""Whole runs of pretraining: their settings, their trainer from a recipe, what they leave, and the demonstration."""

from .build import build_trainer
from .run import pretrain


__all__ = ["build_trainer", "pretrain"]
