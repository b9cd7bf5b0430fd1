"""`layerlock probe` from its command line to the files that it writes."""

import json
from functools import partial

import pytest

from layerlock_hf.cli import probe
from layerlock_hf.data.procedural import write_procedural_dataset
from layerlock_hf.evaluation import ladder, load_clips, probe_models
from layerlock_hf.models import LayerLockViTModel


@pytest.fixture
def folder(tmp_path):
    """Full scenes alone."""
    root = tmp_path / "data"
    settings = {"num_frames": 8, "image_size": 16, "with_depth": True, "progress": False}
    for seed, (split, size) in enumerate({"train": 16, "test": 8}.items()):
        write_procedural_dataset(root / split, size, seed=seed, **settings)
    return root


@pytest.fixture
def run(tmp_path, tiny_config, folder, monkeypatch):
    LayerLockViTModel(tiny_config).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(probe_models, "count_cores", lambda: 1)
    monkeypatch.setattr(probe_models, "probe_depths", lambda num_layers: [2, num_layers])
    monkeypatch.setattr(ladder, "fit_readouts", partial(ladder.fit_readouts, num_steps=3))

    def run(*arguments) -> dict:
        models = [f"{name}={tmp_path / 'model'}" for name in ("layerlock", "mae")]
        output = ["--data", str(folder), "--output", str(tmp_path / "probes.json")]
        probe.main(["--models", *models, *output, *map(str, arguments)])
        return json.loads((tmp_path / "probes.json").read_text())

    return run


CONTROLS = {"random", "layerlock_one_frame", "mae_one_frame", "differences", "constant"}


def test_full_scenes_alone(run, tmp_path, capsys):
    scores = run()
    assert set(scores) == {"layerlock", "mae", *CONTROLS}
    for name in ("layerlock", "random", "differences"):
        keys = {"motion_accuracy", "motion_layer", "depth_abs_rel", "depth_r2", "depth_layer", "layers"}
        assert set(scores[name]) >= keys | {"motion_accuracy_attention", "depth_abs_rel_attention", "intervals"}
        low, high = scores[name]["intervals"]["motion_accuracy"]
        assert low <= scores[name]["motion_accuracy"] <= high
    assert set(scores["constant"]) == {"motion_accuracy", "depth_abs_rel", "depth_r2"}
    assert (tmp_path / "probes.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "no easy_train and easy_test" in printed and "where an object is" in printed.splitlines()[0]
    assert "LayerLock, one frame" in printed and "constant answer" in printed
    # The same weights have the same scores
    assert scores["layerlock"] == scores["mae"]


@pytest.mark.slow
def test_easy_scenes_and_the_ceiling(run, folder):
    settings = {"num_frames": 16, "image_size": 16, "with_depth": True, "num_objects": 1, "camera_moves": False}
    for seed, split in enumerate(("easy_train", "easy_test")):
        write_procedural_dataset(folder / split, 24, seed=5 + seed, progress=False, **settings)
    write_procedural_dataset(folder / "more", 2, num_frames=8, image_size=16, progress=False)
    scores = run("--ceiling", 2, "--ceiling_data", folder / "more", "--bf16")
    assert set(scores) == {"layerlock", "mae", "ceiling", *CONTROLS}
    for name in ("position_r2", "velocity_r2", "future_r2", "easy_motion_accuracy", "motion_accuracy"):
        assert {name, f"{name}_attention"} <= set(scores["layerlock"]) and name in scores["constant"]
    assert {"motion_accuracy", "depth_abs_rel", "depth_r2"} <= set(scores["ceiling"])


def test_files_that_no_probe_could_read(tmp_path, tiny_config, folder):
    """Each ends with one line, and before anything is probed."""
    model = tmp_path / "model"
    LayerLockViTModel(tiny_config).save_pretrained(model)
    (tmp_path / "file").touch()
    (tmp_path / "other").mkdir()
    output = tmp_path / "probes.json"
    for settings, message in (
        ({"models": str(model)}, "models must be NAME=FOLDER, got"),
        ({"models": "a="}, "models must be NAME=FOLDER, got 'a='"),
        ({"models": f"random={model}"}, "models must have distinct names, .* got random"),
        ({"models": f"a_one_frame={model}"}, "models must have distinct names, .* got a_one_frame"),
        ({"models": f"a={tmp_path}/nope"}, "there is no folder"),
        ({"models": f"a={tmp_path}/other"}, "holds no model: it has no config.json"),
        ({"data": f"{tmp_path}/nope"}, "/nope/train/videos.csv does not exist: give a folder"),
        ({"output": f"{tmp_path}/a.png"}, "output must be a .json file, got"),
        ({"output": f"{tmp_path}/file/a.json"}, "output: cannot write to"),
        ({"ceiling": "0"}, "ceiling must be at least 1 step, got 0"),
        ({"ceiling_data": str(folder)}, "ceiling_data is set but ceiling is not"),
        ({"resize_factor": "nan"}, "resize_factor must be between 1 and 10, got nan"),
    ):
        chosen = {"models": f"a={model}", "data": str(folder), "output": str(output)} | settings
        with pytest.raises(SystemExit, match=f"^error: .*{message}.*$"):
            probe.main([part for name, value in chosen.items() for part in (f"--{name}", value)])
    with pytest.raises(SystemExit) as ended:
        probe.main(["--models", f"a={model}", "--data", "", "--output", str(output)])
    assert ended.value.code == 2 and not output.exists()


@pytest.mark.parametrize(
    "table, message",
    [
        ("path,label\n", "must have the columns depth, label, path"),
        ("path,label,depth\na.mp4,x,\n", "label must be one of 0, 1"),
        ("path,label,depth\na.mp4,1,\n", "a.mp4 cannot be read"),
    ],
)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_sets_that_are_damaged(folder, tiny_config, table, message, num_workers):
    (folder / "train" / "videos.csv").write_text(table)
    with pytest.raises(ValueError, match=message) as raised:
        load_clips(folder / "train", tiny_config, 1.15, num_workers)
    assert "\n" not in str(raised.value)
