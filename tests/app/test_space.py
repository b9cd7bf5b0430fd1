"""The page as a folder that starts by itself."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from layerlock_hf.app import find_kept, write_space


@pytest.mark.slow
def test_a_space_runs_without_the_run(finished, readouts, tmp_path):
    gradio = pytest.importorskip("gradio", reason='the page is served by it: pip install "layerlock_hf[app]"')
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    space = write_space(tmp_path / "space", find_kept(run), 'A "page"', **readouts, max_mb=7)
    shutil.rmtree(run)
    _, front, text = (space / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "title": 'A "page"',
        "sdk": "gradio",
        "sdk_version": gradio.__version__,
        "python_version": ".".join(map(str, sys.version_info[:2])),
        "app_file": "app.py",
    }
    assert "- stage 1: step 2, layer 1 frozen\n" in text
    assert any(line.startswith("torch>=") for line in (space / "requirements.txt").read_text().splitlines())
    assert not list(space.rglob("__pycache__"))
    check = "import app, layerlock_hf; print(layerlock_hf.__file__, len(app.kept), app.page.title, app.MAX_MB)"
    ended = subprocess.run([sys.executable, "-c", check], cwd=space, capture_output=True, text=True, timeout=300)
    assert ended.stdout.splitlines()[-1:] == [f'{space}/layerlock_hf/__init__.py 4 A "page" 7'], ended.stderr


def test_a_folder_that_holds_something_is_left_alone(finished, tmp_path):
    pytest.importorskip("gradio", reason='the page is served by it: pip install "layerlock_hf[app]"')
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ValueError, match="^output_dir must be an empty folder or none, got"):
        write_space(tmp_path, find_kept(finished), "A page")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
