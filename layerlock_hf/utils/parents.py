"""Processes that end with the one that started them."""

import functools
import os
import signal
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


def _watch():
    while os.getppid() == PARENT:
        time.sleep(CHECK_INTERVAL_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)
