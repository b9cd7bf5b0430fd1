import copy
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from toy_methods import MaskedClips
from transformers import set_seed

from layerlock_hf.data import load_videos, read_clip
from layerlock_hf.data.procedural import write_procedural_dataset
from layerlock_hf.evaluation import (
    OnlineReadout,
    center_clips,
    encode,
    knn_accuracy,
    labelled_videos,
    mean_features,
    online,
)
from layerlock_hf.models import LayerLockViTForPretraining
from layerlock_hf.training import FreezeSchedule, LayerLockTrainer, LayerLockTrainingArguments, locked, mae


STAGES = locked(mae(6), FreezeSchedule(2, 2, 2, num_freezes=2))
LAYERS = (2, 3, 4, 6)  # a quarter, half, three quarters and all of 6, a half rounded to even
ROOT = Path(__file__).parents[2]


def make_trainer(config, output_dir, **kwargs):
    set_seed(0)
    settings = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "learning_rate": 1e-2,
        "switch_warmup_steps": 1,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **kwargs,
    }
    model = LayerLockViTForPretraining(copy.deepcopy(config))
    return LayerLockTrainer(
        model, LayerLockTrainingArguments(output_dir=str(output_dir), **settings), STAGES, MaskedClips()
    )


@pytest.fixture
def labelled():
    """Twelve dark and bright clips, which even random features tell apart."""
    labels = torch.arange(12) % 2
    clips = 60 + 120 * labels.view(-1, 1, 1, 1, 1) + torch.randint(0, 20, (12, 4, 3, 16, 16))
    return clips.byte(), labels


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The list of eight videos of 8 frames of 32 x 16 pixels, with labels."""
    folder = tmp_path_factory.mktemp("data")
    return write_procedural_dataset(folder, 8, num_frames=8, image_size=16, progress=False)


def readouts(trainer):
    return [row for row in trainer.state.log_history if any(name.startswith("readout/") for name in row)]


def test_reads_out_from_the_beginning_to_the_end(tiny_config, tmp_path, labelled):
    trainer = make_trainer(tiny_config, tmp_path, max_steps=5)
    trainer.add_callback(OnlineReadout(trainer, *labelled, steps=2, linear=True))
    trainer.train()
    rows = readouts(trainer)
    assert [row["step"] for row in rows] == [0, 2, 4, 5]
    for row in rows:
        for layer in LAYERS:
            assert row[f"readout/knn_accuracy_layer_{layer}"] == 1
            assert 0 <= row[f"readout/linear_accuracy_layer_{layer}"] <= 1
        assert row["readout/seconds"] > 0
    # No log of the Trainer is lost to them
    assert [row["step"] for row in trainer.state.log_history if "learning_rate" in row] == [1, 2, 3, 4, 5]
    values = encode(trainer.model.base_model.eval(), labelled[0], [6], pool=mean_features)
    assert rows[-1]["readout/knn_accuracy_layer_6"] == knn_accuracy(*values, labelled[1])


def random_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_training_is_the_same_with_and_without(tiny_config, tmp_path, labelled, accumulation):
    outcomes = []
    for steps in (None, 1):
        trainer = make_trainer(tiny_config, tmp_path, gradient_accumulation_steps=accumulation, diagnostics_steps=2)
        if steps is not None:
            trainer.add_callback(OnlineReadout(trainer, *labelled, steps=steps, linear=True))
        trainer.train()
        varying = ("clips_per_second", "data_wait_fraction", "peak_memory_gib")
        rows = [
            {name: value for name, value in row.items() if name not in varying}
            for row in trainer.state.log_history
            if "learning_rate" in row
        ]
        outcomes.append((trainer.model.state_dict(), random_states(), rows))
        assert len(readouts(trainer)) == (0 if steps is None else 7)
    (plain, states, rows), (read, read_states, read_rows) = outcomes
    assert all(torch.equal(value, read[name]) for name, value in plain.items())
    assert states == read_states
    assert rows == read_rows


def test_restores_the_mode_of_every_module_and_leaves_no_trace(tiny_config, tmp_path, labelled):
    trainer = make_trainer(tiny_config, tmp_path)
    readout = OnlineReadout(trainer, *labelled, steps=1)
    model = trainer.model.train()
    model.encoder.layers[0].eval()
    modes = [module.training for module in model.modules()]
    seen = []
    model.encoder.layers[3].register_forward_hook(
        lambda module, inputs, output: seen.append((module.training, torch.is_grad_enabled()))
    )
    before = random_states()
    readout.measure()
    assert seen == [(False, False)]
    assert [module.training for module in model.modules()] == modes
    assert random_states() == before
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    "settings, message", [({"steps": 0}, "readout_steps must be"), ({"steps": 1, "linear": True}, "readout_linear")]
)
def test_user_errors(tiny_config, tmp_path, labelled, settings, message):
    clips, labels = labelled
    with pytest.raises(ValueError, match=message):
        OnlineReadout(make_trainer(tiny_config, tmp_path), clips[:4], labels[:4], **settings)


def test_labelled_videos(data):
    videos, classes = labelled_videos(load_videos(str(data)), max_videos=6)
    assert len(videos) == len(classes) == 6
    names = list(videos["label"])
    assert [sorted(set(names))[index] for index in classes.tolist()] == names
    again, same = labelled_videos(load_videos(str(data)), max_videos=6)
    assert list(again["video"]) == list(videos["video"]) and torch.equal(classes, same)


def test_videos_that_are_no_use(data):
    with pytest.raises(ValueError, match="have no labels"):
        labelled_videos(load_videos(str(data.with_name("videos"))))
    with pytest.raises(ValueError, match="videos must have at least two classes, got only 'a'"):
        labelled_videos(Dataset.from_dict({"video": ["x", "y"], "label": ["a", "a"]}))
    with pytest.raises(ValueError, match="readout_max_videos"):
        labelled_videos(load_videos(str(data)), max_videos=1)


def test_center_clips(data, tmp_path, caplog):
    videos = load_videos(str(data))
    path = videos[0]["video"]["path"]
    (clip, *_), labels = center_clips(videos, torch.arange(8), 3, 2, 16, 1.0)
    assert torch.equal(clip, read_clip(path, lambda available: [1, 3, 5]).frames)
    assert labels.tolist() == list(range(8))
    (long, *_), _ = center_clips(videos, torch.arange(8), 10, 1, 16, 1.0)
    assert torch.equal(long[7], long[9]) and len(long) == 10

    (tmp_path / "broken.mp4").write_bytes(b"this is no video" * 100)
    rows = [{"video": {"path": str(tmp_path / "broken.mp4"), "bytes": None}}, videos[0], videos[1]]
    rows[2] = {"video": {"path": "1.mp4", "bytes": Path(videos[1]["video"]["path"]).read_bytes()}}
    clips, labels = center_clips(rows, torch.tensor([5, 6, 7]), 3, 2, 16, 1.0)
    assert labels.tolist() == [6, 7] and len(clips) == 2
    assert "broken.mp4" in caplog.text
    with pytest.raises(ValueError, match="only 1 of 2 videos can be decoded"):
        center_clips(rows[:2], torch.tensor([5, 6]), 3, 2, 16, 1.0)


def test_decoding_has_its_time_however_long_the_network_takes(data, monkeypatch):
    fetched = []  # a child process would append to a copy

    def download(row):
        fetched.append(row["video"]["path"])
        return Path(fetched[-1]).read_bytes()

    monkeypatch.setattr(online, "fetch", download)
    monkeypatch.setattr(online, "is_remote", lambda row: True)
    videos = load_videos(str(data)).select(range(2))
    center_clips(videos, torch.arange(2), 3, 2, 16, 1.0)
    assert fetched == [video["path"] for video in videos["video"]]


RECIPE = """
preset: tiny
hidden_size: 32
num_hidden_layers: 6
num_attention_heads: 2
intermediate_size: 64
image_size: 16
patch_size: 4
num_frames: 4
num_decoder_layers: 2
frame_stride: 1
mask_ratio: 0.75
freeze_start: 2
freeze_interval: 1
layers_per_freeze: 2
num_freezes: 1
max_steps: 4
per_device_train_batch_size: 2
learning_rate: 1.0e-2
switch_warmup_steps: 1
logging_steps: 1
save_strategy: "no"
report_to: none
disable_tqdm: true
dataloader_pin_memory: false
"""


@pytest.mark.slow
def test_two_processes_train_the_same_with_and_without(data, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    accelerate = str(Path(sys.executable).parent / "accelerate")
    weights = []
    for name, flags in (("plain", []), ("read", ["--readout_data", str(data), "--readout_steps", "1"])):
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
        options = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
        options += ["--dynamo_backend", "no", "--main_process_port", str(port)]
        program = ["--module", "layerlock_hf.cli.pretrain", "--config", str(recipe)]
        program += ["--train_data", str(data.with_name("videos")), "--output_dir", str(tmp_path / name)]
        result = subprocess.run(
            [accelerate, "launch", *options, *program, *flags],
            env={**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert result.returncode == 0, result.stderr[-4000:]
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    lines = (tmp_path / "read" / "metrics.jsonl").read_text().splitlines()
    assert sum("readout/knn_accuracy_layer_6" in line for line in lines) == 5
