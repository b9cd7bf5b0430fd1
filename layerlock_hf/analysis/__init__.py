"""What a run costs, and what became of it: costs, and representations by depth."""

from .cost import Machine, PlannedRun, plan_cost
from .cost_check import compare_with_log
from .gpus import GPUS, find_gpu


__all__ = ["GPUS", "Machine", "PlannedRun", "compare_with_log", "find_gpu", "plan_cost"]
