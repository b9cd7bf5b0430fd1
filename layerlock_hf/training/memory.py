"""Peak memory of this process, on the accelerator or on the CPU."""

import re
from pathlib import Path

import torch


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
