"""The commands and snippets of docs/hub.md, as a reader types them one after the other, with a Hub on this machine."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from readout_runs import run as read_out
from readout_runs import write_inputs
from runs import pretrain, write_recipe

import layerlock_hf
from layerlock_hf.cli import export, push
from layerlock_hf.cli import pretrain as pretraining


PAGE = Path(__file__).resolve().parents[2] / "docs" / "hub.md"
PROGRAMS = {"export": export.main, "push": push.main, "pretrain": pretraining.main}


@pytest.mark.slow
def test_the_guide_runs_as_written(hub, tmp_path, tiny_sizes, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = write_recipe(tmp_path, tiny_sizes)
    pretrain(recipe, tmp_path / "runs/demo/layerlock")
    Path("videos").symlink_to("data/videos")
    write_inputs(tmp_path / "readout")
    read_out(tmp_path / "readout", tmp_path / "runs/mine/readout")
    settings = yaml.safe_load(recipe.read_text())
    names, done = {}, []
    for kind, code in re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        if kind == "python":
            exec(code, names)
            continue
        for line in code.replace("\\\n", " ").splitlines():
            _, program, *arguments = shlex.split(line, comments=True)
            if program == "pretrain":  # the recipe in small
                arguments[arguments.index("demo")] = str(recipe)
                Path("runs/mine").rename("runs/readouts")
            if program in PROGRAMS:
                PROGRAMS[program](arguments)
                done.append(program)
    assert done == ["export"] * 4 + ["push"] * 2 + ["pretrain"] and settings["save_stages"]
    assert names["as_layer_2_froze"].config.num_frozen_layers == 2
    assert isinstance(names["model"], layerlock_hf.LayerLockViTModel)
    assert {path.name for path in tmp_path.iterdir()} >= {
        "exported",
        "encoder",
        "stage-2",
        "classifier",
        "encoder-only",
    }
    assert sorted(hub.repositories) == ["org/layerlock-demo", "org/mine"]
