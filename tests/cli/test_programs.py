"""What all programs share: how they end, and arguments that name folders and counts."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from layerlock_hf.cli import programs


SCRIPTS = Path(programs.__file__).parent


def test_output_that_nobody_reads_any_more(tmp_path):
    """As in `pretrain.py ... | head -n 1`: the run goes on."""
    code = (
        "import programs\nfor number in range(10000): print(f'line {number}', flush=True)\n"
        f"open({str(tmp_path / 'done')!r}, 'w').close()"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], cwd=SCRIPTS, **pipes) as process:
        assert process.stdout.readline() == b"line 0\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0 and (tmp_path / "done").exists()


def test_errors_in_one_line(tmp_path):
    with (
        pytest.raises(SystemExit, match=f"^error: No such file or directory: {tmp_path}/nope$"),
        programs.errors_told(),
    ):
        (tmp_path / "nope").read_text()
    with pytest.raises(SystemExit, match="^error: two lines$"), programs.errors_told():
        raise ValueError("two\n   lines")


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--jsonn", "unrecognized arguments: --jsonn: did you mean --json?"),
        ("--output-dir=a", "unrecognized arguments: --output-dir=a: did you mean --output_dir?"),
        ("--zzz", "unrecognized arguments: --zzz\n"),
    ],
)
def test_a_misspelt_flag(capsys, flag, told):
    parser = programs.Parser(allow_abbrev=False)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--output_dir")
    with pytest.raises(SystemExit):
        parser.parse_args([flag])
    assert told in capsys.readouterr().err


def test_folder():
    assert programs.folder("~/a") == Path.home() / "a"
    with pytest.raises(argparse.ArgumentTypeError, match="must be a path, got '': is a shell variable unset"):
        programs.folder("")


@pytest.mark.parametrize("text", ["0", "11", "x", "1.5"])
def test_whole(text):
    assert programs.whole(1, 10)("10") == 10
    with pytest.raises(argparse.ArgumentTypeError, match=f"must be a whole number between 1 and 10, got '{text}'"):
        programs.whole(1, 10)(text)
