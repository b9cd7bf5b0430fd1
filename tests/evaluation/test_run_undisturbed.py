"""Readouts trained on damaged data, from features that are kept, after a SIGKILL and by two processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from readout_runs import NUM_VIDEOS, assert_close, damage, error_of, flags, run

from layerlock_hf.evaluation import feature_sources
from layerlock_hf.evaluation.metrics import MEASURES
from layerlock_hf.evaluation.results import read_results
from layerlock_hf.models import LayerLockViTConfig, LayerLockViTForPretraining


pytestmark = pytest.mark.usefixtures("without_pictures")
PROGRAM = "layerlock_hf.cli.readout"


def test_kept_features_are_those_of_the_encoder(root, tmp_path):
    plain = {"augment": False, "num_test_clips": 2}
    live = run(root, tmp_path / "live", **plain)
    cache = {**plain, "feature_cache": tmp_path / "cache"}
    stored = run(root, tmp_path / "stored", **cache)
    for one, other in zip(live["members"], stored["members"], strict=True):
        assert one["metrics"]["log_loss"] == pytest.approx(other["metrics"]["log_loss"], rel=0.02)
    # Made once, for whatever else is trained on the same clips
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert len(written) == NUM_VIDEOS
    again = run(root, tmp_path / "again", **cache, weight_decay=0.1, max_bad_fraction=0.1)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert again["members"] != stored["members"]


@pytest.mark.parametrize(
    ("changed", "culprit"),
    [
        ({"num_frames": 8}, "encoder"),
        ({"frame_stride": 2}, "frame_stride"),
        ({"random_weights": True}, "encoder"),
        ({"bf16": True}, "bf16"),
        ({"data": "?train=0-6&test=8-12"}, "data"),
    ],
)
def test_features_of_something_else_are_refused(root, tmp_path, capsys, changed, culprit):
    settings = {"augment": False, "feature_cache": tmp_path / "cache", "learning_rates": 1e-3}
    run(root, tmp_path / "first", **settings)
    if "data" in changed:
        changed = {"data": f"{root / 'data'}{changed['data']}"}
    error = error_of(capsys, root, tmp_path / "second", **settings | changed)
    assert f"holds features of another run ({culprit} differs)" in error


def test_what_cannot_be_run_is_told_before_anything_is_encoded(root, tmp_path, capsys):
    settings = {"augment": False, "feature_cache": tmp_path / "cache"}
    assert "micro_batch_size=3" in error_of(capsys, root, tmp_path / "out", **settings, micro_batch_size=3)
    run(root, tmp_path / "out", augment=False)
    assert "learning_rates was" in error_of(capsys, root, tmp_path / "out", **settings, learning_rates=1e-4)
    assert not list(tmp_path.rglob("*.safetensors.*")) and not list((tmp_path / "cache").iterdir())
    (tmp_path / "file").write_text("")
    error = error_of(capsys, root, tmp_path / "new", augment=False, feature_cache=tmp_path / "file")
    assert "feature_cache: cannot write to" in error


def test_other_labels_are_other_data(root, tmp_path, capsys):
    """Under the same name."""
    table = tmp_path / "list.csv"
    rows = [f"{root / 'data' / 'videos' / f'{i:06d}.mp4'},{i % 2},{'test' if i > 7 else 'train'}" for i in range(13)]
    settings = {"dataset": "table", "data": table, "augment": False, "feature_cache": tmp_path / "cache"}
    table.write_text("\n".join(["path,label,split", *rows]))
    run(root, tmp_path / "out", **settings)
    table.write_text("\n".join(["path,label,split", *rows[1:8], rows[0], *rows[8:]]))
    assert "contents of the training data was" in error_of(
        capsys, root, tmp_path / "out", **settings | {"feature_cache": tmp_path}
    )
    assert "holds features of another run (contents of the training" in error_of(
        capsys, root, tmp_path / "new", **settings
    )


def test_encoders_are_known_by_their_weights_and_configuration():
    def encoder(**changed):
        torch.manual_seed(0)
        config = LayerLockViTConfig.from_preset("tiny", num_hidden_layers=4, num_decoder_layers=1, **changed)
        model = LayerLockViTForPretraining(config).encoder
        model.register_buffer("temperature", torch.tensor(1.0))  # without dimensions
        return model

    first, other = encoder(), encoder()
    assert feature_sources.fingerprint(first) == feature_sources.fingerprint(other)
    other.temperature.fill_(1.1)
    assert feature_sources.fingerprint(first) != feature_sources.fingerprint(other)
    assert feature_sources.fingerprint(first) != feature_sources.fingerprint(encoder(num_frames=8))


@pytest.mark.parametrize("task", MEASURES)
@pytest.mark.parametrize("augment", [True, False])
def test_bad_videos_are_told_and_the_others_used(root, tmp_path, task, augment):
    data = damage(root, tmp_path / "data", [2, 9])
    (tmp_path / "data" / "videos" / "000011.mp4").unlink()
    results = run(root, tmp_path / "out", task, augment=augment, **data)
    missing = [entry for entry in results["failed"] if "000011" in entry["name"]]
    assert missing and "no such file" in missing[0]["error"].lower()
    assert {name[-10:-4] for name in (e["name"].split(",")[0] for e in results["failed"])} == {"000009", "000011"}
    reported = [json.loads(line) for line in (tmp_path / "out" / "bad_videos.jsonl").read_text().splitlines()]
    assert reported and all("000002" in entry["path"] and not entry["used"] for entry in reported)


@pytest.mark.parametrize("augment", [True, False])
def test_too_many_bad_videos_end_the_run(root, tmp_path, capsys, augment):
    data = damage(root, tmp_path / "data", range(7))
    error = error_of(capsys, root, tmp_path / "out", augment=augment, **data)
    assert "more than max_bad_fraction=0.5 allows" in error and len(error.splitlines()) == 1


def test_nothing_to_train_on_ends_the_run(root, tmp_path, capsys):
    error = error_of(capsys, root, tmp_path / "out", **damage(root, tmp_path / "data", range(8)))
    assert "none of 8 training videos can be read, the first because of: text, no video" in error


def test_nothing_to_test_ends_the_run(root, tmp_path, capsys):
    error = error_of(capsys, root, tmp_path / "out", **damage(root, tmp_path / "data", range(8, 13)))
    assert "none of 5 test items can be read" in error


def start(root, output, *launcher, **settings) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment |= {"ACCELERATE_USE_CPU": "true"} if launcher else {}
    command = [*(launcher or [sys.executable]), "-m", PROGRAM, *flags(root, output, **settings)]
    with (output.parent / f"{output.name}.log").open("a") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


@pytest.mark.slow
@pytest.mark.parametrize("feature_cache", [False, True])
def test_a_killed_run_goes_on(root, tmp_path, feature_cache):
    settings = {"num_examples": 16 * 60, "batch_size": 16, "save_steps": 10, "max_parallel_readouts": 2}
    if feature_cache:  # steps are quick
        settings |= {"augment": False, "feature_cache": tmp_path / "cache", "num_examples": 16 * 300}
    undisturbed = settings | ({"feature_cache": tmp_path / "other"} if feature_cache else {})
    expected = run(root, tmp_path / "whole", **undisturbed)
    for watched in ["cache/train/00000/00000001.safetensors"] * feature_cache + ["out/progress.pt"]:
        process = start(root, tmp_path / "out", **settings)
        deadline = time.monotonic() + 60
        while not (tmp_path / watched).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL, (tmp_path / "out.log").read_text()[-2000:]
        assert not (tmp_path / "out" / "results.json").exists()
    found = run(root, tmp_path / "out", **settings)
    for name in ("seconds", "command"):
        del found[name], expected[name]
    assert found == expected
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("out", "whole")]
    assert lines[0] == lines[1]


@pytest.mark.slow
@pytest.mark.parametrize("task", MEASURES)
def test_two_processes_change_nothing(root, tmp_path, task):
    """Of tests that they share unevenly, and of the features that they keep."""
    launcher = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc_per_node", "2"]
    settings = {"augment": False, "feature_cache": tmp_path / "cache"} if task == "classification" else {}
    settings |= {"task": task, **damage(root, tmp_path / "data", [2, 9])}
    process = start(root, tmp_path / "two", *launcher, **settings)
    try:
        assert process.wait(120) == 0, (tmp_path / "two.log").read_text()[-3000:]
    finally:
        process.kill()
    assert (tmp_path / "two.log").read_text().count("readouts of") == 1  # told by the first of two
    settings |= {"feature_cache": tmp_path / "other"} if task == "classification" else {}
    assert_close(read_results(tmp_path / "two" / "results.json"), run(root, tmp_path / "one", **settings), 1e-4)
