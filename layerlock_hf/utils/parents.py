"""Processes that end with the one that started them."""

import ctypes
import functools
import os
import signal
import sys
import threading
import time


# Known before anything slow is imported, in which time a launcher may be killed
PARENT = os.getppid()
CHECK_INTERVAL_S = 1.0
GRACE_S = 60.0  # to save a checkpoint, once SIGTERM has asked for it


@functools.cache  # asked for by every run of a process
def end_without_parent():
    """Let this process end when its parent has gone, which cannot tell it any more: first by SIGTERM, to save what
    there is, and a minute later for good.

    A launcher that is killed, for instance because memory ran out, leaves its processes behind. They would go on, or
    wait half an hour for each other, and keep the memory and the GPUs that the next start needs.
    """
    threading.Thread(target=_watch, daemon=True).start()


def end_with(parent: int):
    """On Linux: have the system kill this process when its parent dies, even in the middle of a call into C.

    What it inherited, such as ports, goes with it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(0)


def _watch():
    while os.getppid() == PARENT:
        time.sleep(CHECK_INTERVAL_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)
