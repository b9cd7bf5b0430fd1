"""`layerlock analyze plateau` on the checkpoints of a run."""

import json
import shutil

import pytest

from layerlock_hf.cli import analyze, cost
from layerlock_hf.pretraining.plateau import PICTURE, RESULTS, find_plateau


@pytest.fixture(scope="module")
def checkpointed(run, tmp_path_factory):
    """A run of eight steps that froze nothing, with a checkpoint at every second one."""
    folder = tmp_path_factory.mktemp("plateau") / "run"
    unset = dict.fromkeys(("freeze_start", "freeze_interval", "layers_per_freeze", "num_freezes"))
    run(folder, max_steps=8, **unset)
    return folder


def test_every_layer_has_a_step_or_a_reason(checkpointed, videos, capsys):
    analyze.main(["plateau", str(checkpointed), "--data", str(videos)])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("layer ")]
    assert len(lines) == 6 and all("settled by step" in line or "wait: " in line for line in lines)
    summary = json.loads((checkpointed / "plateau" / RESULTS).read_text())
    assert sorted({row["step"] for row in summary["rows"]}) == [4, 6, 8]
    assert summary["rows"][-1]["projected_drift"] == 0  # nothing is left to train
    assert (checkpointed / "plateau" / PICTURE).is_file()


@pytest.mark.parametrize(("start", "is_told"), [(4, True), (100, False)])
def test_layers_that_froze_count_once_they_have(checkpointed, videos, tmp_path, caplog, start, is_told):
    run = shutil.copytree(checkpointed, tmp_path / "run")
    stages = json.loads((run / "stages.json").read_text())
    (run / "stages.json").write_text(json.dumps([*stages, {**stages[-1], "start": start, "num_frozen": 2}]))
    with caplog.at_level("WARNING"):
        find_plateau(run, str(videos))
    assert ("froze 2 layers" in caplog.text) is is_told


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda run: (run / "settings.json").unlink(), "must be a folder of `layerlock pretrain`"),
        (lambda run: (run / "checkpoint-2" / "config.json").unlink(), None),
        (lambda run: [(run / f"checkpoint-{n}" / "config.json").unlink() for n in (4, 6)], "at least 3 checkpoints"),
    ],
)
def test_folders_that_say_too_little(checkpointed, videos, tmp_path, capsys, change, message):
    run = shutil.copytree(checkpointed, tmp_path / "run")
    change(run)
    if message is None:
        analyze.main(["plateau", str(run), "--data", str(videos), "--json"])
        assert json.loads(capsys.readouterr().out)["max_steps"] == 8
    else:
        with pytest.raises(SystemExit, match=message):
            analyze.main(["plateau", str(run), "--data", str(videos)])


def test_a_run_that_decides_when_to_freeze(run, tmp_path, capsys):
    schedule = {"freeze_start": None, "freeze_interval": 1, "layers_per_freeze": 1, "num_freezes": 2}
    changes = {"schedule": "auto", "max_steps": 60, "settled_drift": 50.0, "settled_growth": 50.0, "save_steps": 20}
    run(tmp_path / "run", **{**schedule, **changes})
    assert "layers 1 to 2 freeze when they have settled, as is looked at every 3 steps" in capsys.readouterr().out
    stages = json.loads((tmp_path / "run" / "stages.json").read_text())
    # Three observations make two intervals; the limits are wide
    assert [(row["start"], row["num_frozen"], row["target"]) for row in stages] == [
        (0, 0, "pixels"),
        (9, 1, "layer_1"),
    ]
    sizes = [row["trainable_parameters"] for row in stages]
    assert sizes[0] > sizes[1]
    cost.main([str(tmp_path / "run"), "--json"])
    assert [stage["start"] for stage in json.loads(capsys.readouterr().out)["stages"]][:2] == [0, 9]
