"""A wheel in a folder of its own, away from the repository: the command, the recipes and the functions are in it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from layerlock_hf.cli.main import PROGRAMS
from layerlock_hf.data.procedural import write_procedural_dataset


ROOT = Path(__file__).resolve().parents[1]
PIP = [sys.executable, "-m", "pip"]
# In one process, because importing takes seconds
HELP = """
from layerlock_hf.cli.main import main
for name in {names!r}:
    try:
        main([name, "--help"])
    except SystemExit as end:
        assert not end.code, (name, end)
"""
PRETRAIN = """
import layerlock_hf
assert layerlock_hf.__file__.startswith({site!r}), layerlock_hf.__file__
settings = dict(max_steps=1, freeze_start=None, use_cpu=True, disable_tqdm=True, per_device_train_batch_size=16)
trainer = layerlock_hf.pretrain("demo-mae", "videos", "out", dataloader_num_workers=0, **settings)
assert trainer.state.global_step == 1
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder that the wheel is installed in."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    # Of the files of the repository alone: an old folder `build` would get into the wheel
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():  # not a folder that is a link, such as scripts/recipes
            path.write_bytes((ROOT / name).read_bytes())
    build = [*PIP, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder / "dist"), str(source)]
    subprocess.run(build, check=True, timeout=300)
    (wheel,) = (folder / "dist").glob("*.whl")
    missing = {name for name in listed.split("\0") if name.startswith("layerlock_hf/")}
    assert not missing - set(zipfile.ZipFile(wheel).namelist())
    subprocess.run([*PIP, "install", "-q", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


@pytest.mark.slow
def test_the_programs_and_functions_of_a_wheel(site, tmp_path):
    write_procedural_dataset(tmp_path / "data", 16, num_frames=16, image_size=64, progress=False)
    (tmp_path / "data" / "videos").rename(tmp_path / "videos")
    environment = {**os.environ, "PYTHONPATH": str(site), "PATH": f"{site / 'bin'}:{os.environ['PATH']}"}

    def run(*command) -> str:
        options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 300}
        ended = subprocess.run(command, **options)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    assert "4ds-g-layerlock" in run("layerlock", "recipes")
    names = sorted(set(PROGRAMS) - {"recipes", "env"})
    texts = run(sys.executable, "-c", HELP.format(names=names)).split("usage: ")
    assert [" ".join(text.split()[:2]) for text in texts[1:]] == [f"layerlock {name}" for name in names]
    run(sys.executable, "-c", PRETRAIN.format(site=str(site)))
    assert run("layerlock", "readout", "--help").startswith("usage: layerlock readout")
    assert "16 of 16 videos are packed" in run("layerlock", "prepare", "videos", "packed", "--num_workers", "1")
