"""Whole runs of pretraining: their settings, their trainer from a recipe, what they leave, and the demonstration."""

from .building import build_trainer
from .running import pretrain


__all__ = ["build_trainer", "pretrain"]
