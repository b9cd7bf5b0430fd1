"""Memory of this process, on the accelerator or on the CPU: its peak, and what is left."""

import os
import re
from pathlib import Path

import psutil
import torch


CONTAINER = Path("/sys/fs/cgroup")  # of version 2, where a container sees its own


def reset_peak_memory(device: torch.device):
    """Start measuring the peak anew. Where the system does not allow it, the peak is that of the whole process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, Linux
    except OSError:
        return


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory in GiB: of tensors on a CUDA device, of the resident process elsewhere; NaN where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    status = Path("/proc/self/status")
    peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    return int(peak.group(1)) / 2**20 if peak else float("nan")


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process may still take there: its share, where several run on one CPU. None where unknown."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu":
        return None
    free = psutil.virtual_memory().available
    limit = CONTAINER / "memory.max"
    if limit.is_file() and limit.read_text().strip() != "max":
        statistics = dict(line.split() for line in (CONTAINER / "memory.stat").read_text().splitlines())
        used = int((CONTAINER / "memory.current").read_text()) - int(
            statistics["inactive_file"]
        )  # given back on demand
        free = min(free, int(limit.read_text()) - used)
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
