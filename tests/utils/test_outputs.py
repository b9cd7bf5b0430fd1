"""Folders to write to: that they are checked, and that a program leaves no empty ones behind."""

import subprocess
import sys

import pytest

from layerlock_hf.utils.outputs import check_output


CHECK = """
import sys
from pathlib import Path
from layerlock_hf.utils.outputs import check_output

for name in sys.argv[1:]:
    check_output(Path(name), ())
assert all(Path(name).is_dir() for name in sys.argv[1:])
Path(sys.argv[1], "kept", "a.txt").touch()
raise KeyboardInterrupt
"""


@pytest.mark.slow
def test_folders_that_stay_empty_are_removed(tmp_path):
    for name in ("", "kept", "there"):
        (tmp_path / name).mkdir(exist_ok=True)
    command = [sys.executable, "-c", CHECK, ".", "kept", "there", "new", "a/b/c", "a/d"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "KeyboardInterrupt" in result.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.txt", "kept", "there"]


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="OUT: cannot write to .*file/out: Not a directory: choose another folder"):
        check_output(tmp_path / "file" / "out", (), "OUT")
