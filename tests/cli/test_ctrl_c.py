"""Ctrl-C while a program still imports, which takes it seconds."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest


SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
# Runs a program whose first import from elsewhere meets Ctrl-C
INTERRUPTED = """
import runpy, sys

class CtrlC:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"huggingface_hub", "matplotlib", "numpy", "transformers"}:
            raise KeyboardInterrupt

sys.meta_path.insert(0, CtrlC())
runpy.run_path(sys.argv[1], run_name="__main__")
"""


PROGRAMS = (
    *("pretrain", "probe", "train_readout", "inspect_data", "predict", "convert_4ds", "export", "compare"),
    *("prepare_videos", "demo"),
)


@pytest.mark.parametrize("name", PROGRAMS)
def test_imports_end_without_a_traceback(name):
    command = [sys.executable, "-c", INTERRUPTED, str(SCRIPTS / f"{name}.py")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", "")
