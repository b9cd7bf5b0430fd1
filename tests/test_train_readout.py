"""The program that trains readouts, from its arguments to the files that it leaves."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import train_readout
import yaml
from transformers import (
    AutoModelForDepthEstimation,
    AutoModelForVideoClassification,
    Dinov2Config,
    Dinov2Model,
    VideoMAEConfig,
    VideoMAEModel,
)

from layerlock_hf import LayerLockVideoProcessor
from layerlock_hf.data import ClipTransform
from layerlock_hf.data.procedural import write_procedural_dataset
from layerlock_hf.evaluation import DepthTestClips, clips
from layerlock_hf.evaluation.adapters import read_depth, read_labelled
from layerlock_hf.evaluation.metrics import TASKS, in_order, judge_classes, judge_depth, mean_probabilities, measure
from layerlock_hf.evaluation.results import read_results
from layerlock_hf.models import LayerLockViTConfig, LayerLockViTForPretraining


PROGRAM = Path(train_readout.__file__)
NUM_VIDEOS, NUM_TEST = 13, 5
SETTINGS = {
    "frame_stride": 1,
    "learning_rates": [1e-3, 1e-2],
    "depth_fractions": [0.5, 1.0],
    "num_examples": 32,
    "batch_size": 8,
    "warmup_steps": 1,
    "logging_steps": 2,
    "num_workers": 0,
    "decode_timeout": 0,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with data of 13 videos of 8 frames of 16 x 16 pixels with depth, and an encoder in model/."""
    folder = tmp_path_factory.mktemp("readout")
    write_procedural_dataset(folder / "data", NUM_VIDEOS, 0, 10, 16, with_depth=True, progress=False)
    torch.manual_seed(1)
    LayerLockViTForPretraining(
        LayerLockViTConfig(
            image_size=16,
            num_frames=4,
            patch_size=4,
            tubelet_size=2,
            hidden_size=32,
            num_hidden_layers=6,
            num_attention_heads=2,
            intermediate_size=64,
            num_decoder_layers=2,
            decoder_hidden_size=32,
            readout_hidden_size=24,
            readout_num_attention_heads=3,
            decoding_patch_size=[2, 4, 4],
        )
    ).save_pretrained(folder / "model")
    return folder


def flags(root, output, task="classification", **settings) -> list[str]:
    settings = {
        "model": root / "model",
        "task": task,
        "dataset": "procedural",
        "data": f"{root / 'data'}?train=0-7&test=8-12",
        "output_dir": output,
        **SETTINGS,
        **settings,
    }
    given = []
    for name, value in settings.items():
        given += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return given


def run(root, output, task="classification", **settings) -> dict:
    train_readout.main(flags(root, output, task, **settings))
    return read_results(output / "results.json")


def error_of(capsys, *arguments, **settings) -> str:
    with pytest.raises(SystemExit) as caught:
        train_readout.main(flags(*arguments, **settings))
    if caught.value.code == 2:  # of argparse
        return capsys.readouterr().err
    assert caught.value.code.startswith("error: ") and "Traceback" not in caught.value.code
    return caught.value.code


def numbers(results: dict) -> dict:
    """What must not depend on where and how fast a run was."""
    return {name: value for name, value in results.items() if name not in ("seconds", "command")}


def assert_close(results, others, tolerance):
    """Everything that is measured, of every member."""
    assert len(results["members"]) == len(others["members"])
    for one, other in zip(results["members"], others["members"], strict=True):
        assert one["metrics"] == pytest.approx(other["metrics"], rel=tolerance)
    assert results["baselines"] == others["baselines"]


@pytest.fixture(scope="module")
def outputs(root):
    """The folders of a run for each task."""
    run(root, root / "classification", num_test_clips=2)
    run(root, root / "depth", "depth")
    return {task: root / task for task in TASKS}


@torch.no_grad()
def test_the_saved_classifier_answers_as_the_results_say(root, outputs):
    results = read_results(outputs["classification"] / "results.json")
    assert results["num_train"] == 8 and results["num_test"] == NUM_TEST and results["failed"] == []
    assert len(results["members"]) == 4 and {m["depth"] for m in results["members"]} == {1, 5}
    for name in ("sweep.png", "curves.png", "confusion.png"):
        assert (outputs["classification"] / name).stat().st_size > 1000
    model = AutoModelForVideoClassification.from_pretrained(outputs["classification"] / "model")
    assert model.config.readout_depth == results["best"]["depth"]
    videos = read_labelled("procedural", f"{root / 'data'}?train=0-7&test=8-12", "test")
    assert model.config.id2label == dict(enumerate(videos.class_names))
    items = clips.TestClips(videos.videos, videos.labels, 4, 1, ClipTransform(16, 1.15), 2, decode_timeout=0)
    judged = []
    for item in items:
        logits = model(item["pixel_values_videos"].float() / 255).logits
        label, index = torch.tensor([item["labels"]]), torch.tensor([item["index"]])
        judged.append(judge_classes(mean_probabilities(logits[None]), label, index))
    measured = measure(TASKS["classification"], in_order(judged))
    expected = {name: value["value"] for name, value in results["best"]["metrics"].items()}
    assert measured == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_the_saved_depth_estimator_answers_as_the_results_say(root, outputs):
    results = read_results(outputs["depth"] / "results.json")
    assert results["num_train"] == 80 and results["num_test"] == 2 * NUM_TEST
    for name in ("sweep.png", "curves.png", "depth.png"):
        assert (outputs["depth"] / name).stat().st_size > 1000
    model = AutoModelForDepthEstimation.from_pretrained(outputs["depth"] / "model")
    items = DepthTestClips(
        read_depth("procedural", f"{root / 'data'}?train=0-7&test=8-12", "test"), 4, 1, ClipTransform(16, 1.15)
    )
    judged = []
    for item in items:
        predicted = model(item["pixel_values_videos"].float() / 255).predicted_depth
        judged.append(judge_depth(predicted, item["labels"][None], torch.tensor([item["index"]])))
    measured = measure(TASKS["depth"], in_order(judged))
    expected = {name: value["value"] for name, value in results["best"]["metrics"].items()}
    assert measured == pytest.approx(expected, rel=1e-4)


def test_the_saved_processor_makes_the_clips_of_the_test(root, outputs):
    processor = LayerLockVideoProcessor.from_pretrained(outputs["classification"] / "model")
    videos = read_labelled("procedural", f"{root / 'data'}?train=0-7&test=8-12", "test")
    items = clips.TestClips(videos.videos, videos.labels, 4, 1, ClipTransform(16, 1.15), decode_timeout=0)
    made = processor(str(root / "data" / "videos" / "000008.mp4"), return_tensors="pt")["pixel_values_videos"]
    expected = items[0]["pixel_values_videos"].float() / 255
    assert made.shape == expected.shape
    assert (made - expected).abs().mean() < 0.02


def test_a_run_is_a_function_of_its_seed_and_leaves_the_encoder_as_it_was(root, outputs, tmp_path):
    kept = {path: path.read_bytes() for path in outputs["depth"].rglob("*.safetensors")}
    first = (outputs["depth"] / "results.json").read_text()
    moved = shutil.move(outputs["depth"], tmp_path / "first")
    try:
        run(root, outputs["depth"], "depth")
        again = (outputs["depth"] / "results.json").read_text()
        assert [line for line in again.splitlines() if '"seconds"' not in line] == [
            line for line in first.splitlines() if '"seconds"' not in line
        ]
        for path, content in kept.items():
            assert path.read_bytes() == content
    finally:
        shutil.rmtree(outputs["depth"])
        shutil.move(moved, outputs["depth"])
    before = LayerLockViTForPretraining.from_pretrained(root / "model").encoder.state_dict()
    for task, auto in (
        ("depth", AutoModelForDepthEstimation),
        ("classification", AutoModelForVideoClassification),
    ):
        after = auto.from_pretrained(outputs[task] / "model").encoder.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_parts_of_batches_change_nothing(root, outputs, tmp_path):
    """Of depth, where clips differ in how many pixels count."""
    expected = read_results(outputs["depth"] / "results.json")
    assert_close(run(root, tmp_path, "depth", micro_batch_size=2), expected, 1e-4)


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
    again = run(root, tmp_path / "again", **cache, num_workers=1, weight_decay=0.1, decode_timeout=30)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert again["members"] != stored["members"]


@pytest.mark.parametrize(
    "changed", [{"num_frames": 8}, {"frame_stride": 2}, {"random_weights": True}, {"data": "?train=0-6&test=8-12"}]
)
def test_features_of_something_else_are_refused(root, tmp_path, capsys, changed):
    settings = {"augment": False, "feature_cache": tmp_path / "cache", "learning_rates": 1e-3}
    run(root, tmp_path / "first", **settings)
    if "data" in changed:
        changed = {"data": f"{root / 'data'}{changed['data']}"}
    error = error_of(capsys, root, tmp_path / "second", **settings | changed)
    assert "holds features of other" in error


def test_other_labels_are_other_data(root, tmp_path, capsys):
    """Under the same name."""
    table = tmp_path / "list.csv"
    rows = [f"{root / 'data' / 'videos' / f'{i:06d}.mp4'},{i % 2},{'test' if i > 7 else 'train'}" for i in range(13)]
    settings = {"dataset": "table", "data": table, "augment": False, "feature_cache": tmp_path / "cache"}
    table.write_text("\n".join(["path,label,split", *rows]))
    run(root, tmp_path / "out", **settings)
    table.write_text("\n".join(["path,label,split", *rows[1:8], rows[0], *rows[8:]]))
    assert "contents of the data was" in error_of(
        capsys, root, tmp_path / "out", **settings | {"feature_cache": tmp_path}
    )
    assert "holds features of other" in error_of(capsys, root, tmp_path / "new", **settings)


def test_encoders_are_known_by_their_weights_and_configuration():
    def encoder(**changed):
        torch.manual_seed(0)
        config = LayerLockViTConfig.from_preset("tiny", num_hidden_layers=4, num_decoder_layers=1, **changed)
        model = LayerLockViTForPretraining(config).encoder
        model.register_buffer("temperature", torch.tensor(1.0))  # without dimensions
        return model

    first, other = encoder(), encoder()
    assert train_readout.fingerprint(first) == train_readout.fingerprint(other)
    other.temperature.fill_(1.1)
    assert train_readout.fingerprint(first) != train_readout.fingerprint(other)
    assert train_readout.fingerprint(first) != train_readout.fingerprint(encoder(num_frames=8))


def test_bfloat16_stays_close(root, tmp_path):
    settings = {"augment": False, "feature_cache": tmp_path / "cache", "learning_rates": 1e-3, "depth_fractions": 1.0}
    expected = run(root, tmp_path / "whole", **settings | {"feature_cache": tmp_path / "other"})
    found = run(root, tmp_path / "half", **settings, bf16=True)
    for one, other in zip(found["members"], expected["members"], strict=True):
        assert one["metrics"]["log_loss"] == pytest.approx(other["metrics"]["log_loss"], rel=0.02)


def test_one_process_for_several_is_refused(root, tmp_path, capsys, monkeypatch):
    """What `accelerate launch --cpu --num_processes 2` starts."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert "accelerate launch --cpu starts one process" in error_of(capsys, root, tmp_path / "out")


def damage(root, folder, rows):
    """A copy of the data with videos that cannot be read."""
    shutil.copytree(root / "data", folder)
    for row in rows:
        (folder / "videos" / f"{row:06d}.mp4").write_bytes(b"no video")
    return {"data": f"{folder}?train=0-7&test=8-12"}


@pytest.mark.parametrize("task", TASKS)
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
    data = damage(root, tmp_path / "data", range(8))
    error = error_of(capsys, root, tmp_path / "out", augment=augment, **data)
    assert "more than the fraction 0.5" in error and len(error.splitlines()) == 1


def test_nothing_to_test_ends_the_run(root, tmp_path, capsys):
    error = error_of(capsys, root, tmp_path / "out", **damage(root, tmp_path / "data", range(8, 13)))
    assert "no test item can be read" in error


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rat": 1}, "learning_rat: unknown setting"),
        ({"dataset": "imagenet"}, "dataset is 'imagenet'; choose one of"),
        ({"dataset": "scannet"}, "dataset is 'scannet'; choose one of"),
        ({"task": "depth", "num_test_clips": 7}, "num_test_clips: depth is tested clip by clip"),
        ({"max_test_clips": 0}, "max_test_clips is not for classification"),
        ({"task": "depth", "frame_rate": 5}, "frame_rate is not for depth"),
        ({"task": "segmentation"}, "invalid choice: 'segmentation'"),
        ({"feature_cache": "/tmp"}, "it needs --augment false"),
        ({"model": "/nowhere"}, "model: cannot load /nowhere as an encoder"),
        ({"data": "/nowhere"}, "'/nowhere"),
        ({"num_test_clips": 0}, "num_windows is 0"),
        ({"frame_stride": 0}, "frame_stride"),
        ({"depth_fractions": 1.5}, "fraction"),
        ({"warmup_steps": 1000}, "warmup_steps is 1000, but there are 4 steps"),
        ({"micro_batch_size": 3}, "micro_batch_size=3"),
        ({"readout_num_attention_heads": 5}, "readout_num_attention_heads"),
        ({"learning_rates": "fast"}, "learning_rates"),
        ({"num_workers": -1}, "num_workers"),
    ],
)
def test_errors_say_what_is_wrong(root, tmp_path, capsys, settings, message):
    assert message in error_of(capsys, root, tmp_path / "out", **settings)


def test_data_without_labels_is_refused(root, tmp_path, capsys):
    (tmp_path / "list.csv").write_text("path\n" + f"{root / 'data' / 'videos' / '000000.mp4'}\n" * 2)
    error = error_of(capsys, root, tmp_path / "out", dataset="table", data=tmp_path / "list.csv")
    assert "label" in error


def test_depth_of_data_without_depth_is_refused(root, tmp_path, capsys):
    shutil.copytree(root / "data", tmp_path / "data", ignore=shutil.ignore_patterns("depth"))
    error = error_of(capsys, root, tmp_path / "out", task="depth", data=f"{tmp_path / 'data'}?train=0-7&test=8-12")
    assert "depth" in error


def test_another_run_is_left_alone(root, outputs, capsys):
    before = (outputs["depth"] / "results.json").read_bytes()
    error = error_of(capsys, root, outputs["depth"], task="depth", batch_size=16)
    assert "holds a run with other settings (batch_size was 8, now 16); choose another output_dir" in error
    assert (outputs["depth"] / "results.json").read_bytes() == before


def test_a_finished_run_is_not_run_again(root, outputs, capsys):
    before = read_results(outputs["classification"] / "results.json")
    again = run(root, outputs["classification"], num_test_clips=2, max_bad_fraction=0.9)
    assert numbers(again) == numbers(before)
    assert "| 0/4 [" not in capsys.readouterr().err


def test_settings_come_from_a_recipe_and_flags_go_before(root, tmp_path):
    """Into a folder within the data."""
    recipe = {**SETTINGS, "task": "classification", "dataset": "procedural", "weight_decay": 0.5, "augment": False}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    data = shutil.copytree(root / "data", tmp_path / "data")
    given = ["--config", str(tmp_path / "recipe.yaml"), "--model", str(root / "model")]
    given += ["--data", f"{data}?train=0-7&test=8-12", "--output_dir", str(data / "out"), "--learning_rates", "0.003"]
    train_readout.main(given)
    results = read_results(data / "out" / "results.json")
    assert results["settings"]["weight_decay"] == 0.5 and results["settings"]["augment"] is False
    assert {member["learning_rate"] for member in results["members"]} == {0.003}
    assert results["command"].startswith("train_readout.py --config ")


FOREIGN = {
    "videomae": lambda sizes: VideoMAEModel(VideoMAEConfig(**sizes, num_frames=4, tubelet_size=2)),
    "dinov2": lambda sizes: Dinov2Model(Dinov2Config(**sizes)),
}


@pytest.mark.parametrize(("name", "task"), [("videomae", "depth"), ("dinov2", "classification")])
def test_encoders_of_others(root, tmp_path, name, task):
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    FOREIGN[name](sizes | {"intermediate_size": 64}).save_pretrained(tmp_path / "model")
    settings = {"model": tmp_path / "model", "num_frames": 4, "readout_hidden_size": 24}
    results = run(root, tmp_path / "out", task, **settings, readout_num_attention_heads=3)
    assert results["members"][0]["metrics"]
    auto = {"depth": AutoModelForDepthEstimation, "classification": AutoModelForVideoClassification}[task]
    model = auto.from_pretrained(tmp_path / "out" / "model")
    before = FOREIGN[name](sizes | {"intermediate_size": 64}).from_pretrained(tmp_path / "model").state_dict()
    after = model.encoder.state_dict()
    found = [key for key in after if any(key.endswith(known) for known in before)]
    assert found and model.config.readout_depth == results["best"]["depth"]
    video = torch.rand(1, 4, 3, 16, 16)
    assert next(iter(model(video).values())).isfinite().all()


def start(root, output, *launcher, **settings) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROGRAM.parents[1])}
    environment |= {"ACCELERATE_USE_CPU": "true"} if launcher else {}
    command = [*(launcher or [sys.executable]), str(PROGRAM), *flags(root, output, **settings)]
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
    assert numbers(run(root, tmp_path / "out", **settings)) == numbers(expected)
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("out", "whole")]
    assert lines[0] == lines[1]


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_two_processes_change_nothing(root, outputs, tmp_path, task):
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
