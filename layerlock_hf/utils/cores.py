"""The cores of this machine that a program may use."""

import os
from pathlib import Path


CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # microseconds per period that a container may use (cgroup v2)


def count_cores() -> int:
    """At least 1, also where the quota is a part of a core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if CPU_QUOTA.is_file():
        quota, period = CPU_QUOTA.read_text().split()
        cores = cores if quota == "max" else min(cores, max(1, int(quota) // int(period)))
    return cores
