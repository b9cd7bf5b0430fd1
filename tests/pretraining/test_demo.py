"""The demonstration, from its arguments to the files that it leaves."""

import json
import subprocess
import sys

import pytest

from layerlock_hf.cli import demo as demo_program
from layerlock_hf.pretraining import demo as demo_run


@pytest.mark.slow
def test_demo(tmp_path):
    command = [sys.executable, "-m", "layerlock_hf", "demo", "--output_dir", str(tmp_path)]
    subprocess.run([*command, "--max_steps", "12", "--num_videos", "16"], capture_output=True, text=True, check=True)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert len(summary["stages"]) == 5
    assert set(summary["probes"]) >= {"layerlock", "mae"}
    assert (tmp_path / "loss.png").is_file() and (tmp_path / "reconstruction.png").is_file()


@pytest.fixture
def demo(monkeypatch):
    """Runs `layerlock demo` up to its first video; the line that it ends with."""

    def demo(*flags) -> str:
        monkeypatch.setattr(demo_run, "write_data", lambda *_: pytest.fail("it renders"))
        with pytest.raises(SystemExit) as error:
            demo_program.main([*map(str, flags)])
        return str(error.value)

    return demo


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_steps", "0"], "--max_steps: must be a whole number of at least 1, got '0'"),
        (["--num_videos", "-3"], "--num_videos: must be a whole number of at least 1, got '-3'"),
        (["--seed", "-1"], "--seed: must be a whole number between 0 and 4294967295, got '-1'"),
        (["--seed", "99999999999999"], "--seed: must be a whole number between 0 and 4294967295"),
        (["--output_dir", ""], "--output_dir: must be a path, got ''"),
    ],
)
def test_the_demo_checks_its_arguments_first(demo, tmp_path, capsys, flags, message):
    assert demo("--output_dir", tmp_path / "out", *flags) == "2"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_demo_checks_its_folders_first(demo, tmp_path):
    for name in ("file", "a/data", "b/layerlock"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "c" / "loss.png").mkdir(parents=True)
    for output, culprit in {
        "file": "file",
        "file/below": "file/below",
        "a": "a/data",
        "b": "b/layerlock",
        "c": "c/loss.png",
    }.items():
        said = demo("--output_dir", tmp_path / output)
        assert said.startswith(f"error: output_dir: cannot write to {tmp_path / culprit}: ")
