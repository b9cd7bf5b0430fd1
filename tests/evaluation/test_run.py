"""The program that trains readouts, from its arguments to the files that it leaves."""

import shutil

import pytest
import torch
import yaml
from readout_runs import NUM_TEST, SETTINGS, assert_close, error_of, run
from safetensors.torch import load_file
from transformers import (
    AutoModelForDepthEstimation,
    AutoModelForVideoClassification,
    Dinov2Config,
    Dinov2Model,
    VideoMAEConfig,
    VideoMAEModel,
)

import layerlock_hf
from layerlock_hf import LayerLockVideoProcessor
from layerlock_hf.cli import readout
from layerlock_hf.data import ClipTransform
from layerlock_hf.evaluation import DepthTestClips, labelled_clips
from layerlock_hf.evaluation.adapters import read_depth, read_labelled
from layerlock_hf.evaluation.metrics import MEASURES, in_order, mean_probabilities, measure, score_classes, score_depth
from layerlock_hf.evaluation.results import read_results
from layerlock_hf.models import LayerLockViTForPretraining


pytestmark = pytest.mark.usefixtures("without_pictures")


def numbers(results: dict) -> dict:
    """What must not depend on where and how fast a run was."""
    return {name: value for name, value in results.items() if name not in ("seconds", "command")}


@pytest.fixture(scope="module")
def outputs(root):
    """The folders of a run for each task."""
    run(root, root / "classification", num_test_clips=2)
    run(root, root / "depth", "depth")
    return {task: root / task for task in MEASURES}


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
    items = labelled_clips.TestClips(videos.videos, videos.labels, 4, 1, ClipTransform(16, 1.15), 2, decode_timeout=0)
    samples = []
    for item in items:
        logits = model(item["pixel_values_videos"].float() / 255).logits
        label, index = torch.tensor([item["labels"]]), torch.tensor([item["index"]])
        samples.append(score_classes(mean_probabilities(logits[None]), label, index))
    measured = measure(MEASURES["classification"], in_order(samples))
    expected = {name: value["value"] for name, value in results["best"]["metrics"].items()}
    assert measured == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_the_saved_depth_estimator_answers_as_the_results_say(root, outputs):
    results = read_results(outputs["depth"] / "results.json")
    assert results["num_train"] == 2 * 8 and results["num_test"] == 2 * NUM_TEST
    for name in ("sweep.png", "curves.png", "depth.png"):
        assert (outputs["depth"] / name).stat().st_size > 1000
    model = AutoModelForDepthEstimation.from_pretrained(outputs["depth"] / "model")
    items = DepthTestClips(
        read_depth("procedural", f"{root / 'data'}?train=0-7&test=8-12", "test"), 4, 1, ClipTransform(16, 1.15)
    )
    samples = []
    for item in items:
        predicted = model(item["pixel_values_videos"].float() / 255).predicted_depth
        samples.append(score_depth(predicted, item["labels"][None], torch.tensor([item["index"]])))
    measured = measure(MEASURES["depth"], in_order(samples))
    expected = {name: value["value"] for name, value in results["best"]["metrics"].items()}
    assert measured == pytest.approx(expected, rel=1e-4)


def test_the_saved_processor_makes_the_clips_of_the_test(root, outputs):
    processor = LayerLockVideoProcessor.from_pretrained(outputs["classification"] / "model")
    videos = read_labelled("procedural", f"{root / 'data'}?train=0-7&test=8-12", "test")
    items = labelled_clips.TestClips(videos.videos, videos.labels, 4, 1, ClipTransform(16, 1.15), decode_timeout=0)
    made = processor(str(root / "data" / "videos" / "000008.mp4"), return_tensors="pt")["pixel_values_videos"]
    expected = items[0]["pixel_values_videos"].float() / 255
    assert made.shape == expected.shape
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-6)


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rat": 1}, "--learning_rat is not a known setting"),
        ({"dataset": "imagenet"}, "dataset must be one of"),
        ({"dataset": "scannet"}, "for classification, got scannet"),
        (
            {"task": "depth", "num_test_clips": 7},
            "num_test_clips must be 1 for depth, got 7: depth is tested clip by clip",
        ),
        ({"max_test_clips": 0}, "max_test_clips has no effect on classification"),
        ({"task": "depth", "frame_rate": 5}, "frame_rate has no effect on depth"),
        ({"task": "segmentation"}, "invalid choice: 'segmentation'"),
        ({"feature_cache": "/tmp"}, "feature_cache is set but augment is true"),
        ({"model": "/nowhere"}, "model: cannot load /nowhere as an encoder"),
        ({"data": "/nowhere"}, "'/nowhere"),
        ({"num_test_clips": 0}, "num_test_clips must be at least 1, got 0"),
        ({"frame_stride": 0}, "frame_stride"),
        ({"depth_fractions": 1.5}, "fraction"),
        (
            {"warmup_steps": 1000},
            "warmup_steps must be at least 0 and less than the 4 steps (num_examples / batch_size), got 1000",
        ),
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
    assert "holds a run with other settings (batch_size was 8 and is now 16): choose another output_dir" in error
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
    readout.main(given)
    results = read_results(data / "out" / "results.json")
    assert results["settings"]["weight_decay"] == 0.5 and results["settings"]["augment"] is False
    assert {point["learning_rate"] for point in results["members"]} == {0.003}
    assert results["command"].startswith("layerlock readout --config ")


def test_from_python(root, outputs, tmp_path):
    """As the program, with its settings by name; mistakes are of the usual kind."""
    data = f"{root / 'data'}?train=0-7&test=8-12"
    given = {"model": root / "model", "task": "classification", "data": data, "dataset": "procedural"}
    results = layerlock_hf.train_readouts(**given, output_dir=tmp_path / "out", num_test_clips=2, **SETTINGS)
    assert numbers(results) == numbers(read_results(outputs["classification"] / "results.json"))
    assert results["command"].startswith("layerlock readout --model ")
    with pytest.raises(ValueError, match="--learning_rate is not a known setting.*did you mean --learning_rates"):
        layerlock_hf.train_readouts(**given, output_dir=tmp_path / "out", learning_rate=1)
    with pytest.raises(ValueError, match="argument --task: invalid choice: 'segmentation'"):
        layerlock_hf.train_readouts(**{**given, "task": "segmentation"}, output_dir=tmp_path / "out")
    with pytest.raises(ValueError, match="config: there is no recipe ssv3: did you mean ssv2"):
        layerlock_hf.train_readouts(**given, output_dir=tmp_path / "out", config="ssv3")


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
    assert model.config.readout_depth == results["best"]["depth"]
    before = load_file(tmp_path / "model" / "model.safetensors")
    after = load_file(tmp_path / "out" / "model" / "model.safetensors")
    assert all(torch.equal(after[f"encoder.model.{key}"], value) for key, value in before.items())
    video = torch.rand(1, 4, 3, 16, 16)
    assert next(iter(model(video).values())).isfinite().all()
