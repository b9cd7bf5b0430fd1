import subprocess
import sys

import pytest


PROGRAM = """
import os, signal
from layerlock_hf.data.preparing.mapping import map_in_processes

os.register_at_fork(after_in_parent=lambda: signal.raise_signal(signal.SIGINT))
try:
    list(map_in_processes(abs, iter(range(-9, 0)), 2))
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.slow
def test_a_signal_during_a_fork_is_answered_after_it():
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert run.stdout == "interrupted\n", run.stderr
