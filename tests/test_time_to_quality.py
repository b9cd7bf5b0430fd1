"""benchmarks/time_to_quality.py: its clips, its clock and its reports; slow, whole runs of it in small."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import VideoMAEForPreTraining
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

import pretrain_decoded
import time_to_quality
import timed_runs
from layerlock_hf.cli import pretrain
from layerlock_hf.data import ClipTransform, PretrainingClips, fetch, load_videos, read_clip
from layerlock_hf.data.procedural import write_procedural_dataset
from layerlock_hf.pretraining.demo_data import write_data
from layerlock_hf.pretraining.logs import read_metrics
from time_to_quality import CONTENDERS, Benchmark, seconds_to
from timed_runs import DecodedClips, Stopwatch, decay_groups, encoder_of, videomae_config


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    write_procedural_dataset(folder, 3, num_frames=12, image_size=32, progress=False)
    return load_videos(str(folder / "videos"))


def clips_of(videos, seed):
    settings = {"num_frames": 4, "frame_stride": 2, "transform": ClipTransform(16), "clips_per_video": 2}
    return PretrainingClips(videos, num_samples=12, seed=seed, decode_timeout=0, **settings)


def test_decoded_clips_are_those_of_pretraining(videos):
    frames = [read_clip(fetch(row), lambda count: list(range(count))).frames for row in videos]
    assert [tuple(some.shape) for some in frames] == 3 * [(12, 3, 32, 32)]
    decoded = DecodedClips(clips_of(videos, seed=3), frames)
    assert len(decoded) == 12
    expected = [clips_of(videos, seed=3)[position] for position in range(12)]
    for position in (5, 0, 11, 7, 5):  # in whatever order
        sample = decoded[position]
        assert torch.equal(sample["pixel_values_videos"], expected[position]["pixel_values_videos"])
        assert (sample["position"], sample["is_padded"]) == (position, False)
    other = DecodedClips(clips_of(videos, seed=4), frames)
    assert not torch.equal(other[0]["pixel_values_videos"], expected[0]["pixel_values_videos"])


@pytest.mark.slow
def test_training_on_decoded_videos_is_training(tmp_path):
    write_data(tmp_path / "data", 8)
    weights, logs = [], []
    for program, num_workers in ((pretrain, 1), (pretrain_decoded, 0)):
        folder = tmp_path / program.__name__
        flags = ["--config", "demo", "--max_steps", "6", "--logging_steps", "1"]
        flags += ["--freeze_start", "2", "--freeze_interval", "1", "--switch_warmup_steps", "1"]
        flags += ["--dataloader_num_workers", str(num_workers)]
        flags += ["--train_data", str(tmp_path / "data" / "train" / "videos"), "--output_dir", str(folder)]
        program.main([*flags, "--use_cpu", "true", "--save_strategy", "no", "--disable_tqdm", "true"])
        weights.append(load_file(folder / "model.safetensors"))
        logs.append([(row["step"], row["loss"]) for row in read_metrics(folder)])
    assert logs[0] == logs[1] and [step for step, _ in logs[0]] == [1, 2, 3, 4, 5, 6]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def curve(*points):
    rows = [
        {"seconds": seconds, "processor_seconds": 2 * seconds, "accuracy": accuracy} for seconds, accuracy in points
    ]
    return [{"step": int(row["seconds"]), "held_out": 0.1, "layer": 2, **row} for row in rows]


def test_seconds_to_a_threshold():
    rising = curve((0, 0.1), (60, 0.2), (120, 0.4), (180, 0.25), (240, 0.5))
    assert seconds_to(rising, 0.3) == pytest.approx(90)  # the first time
    assert seconds_to(rising, 0.2) == pytest.approx(60)
    assert seconds_to(rising, 0.45) == pytest.approx(180 + 60 * 0.2 / 0.25)
    assert seconds_to(rising, 0.1) == 0
    assert seconds_to(rising, 0.6) is None


def test_the_clock_counts_training_alone(monkeypatch):
    now, probed = [100.0], []

    def clock():
        return now[0]

    monkeypatch.setattr(timed_runs, "time", SimpleNamespace(perf_counter=clock, process_time=clock))

    def probe(encoder):
        now[0] += 1000
        probed.append(encoder)
        return {"accuracy": 0.2, "held_out": 0.3, "layer": 2}

    def run(max_steps):
        watch = Stopwatch(probe, max_steps, probe_seconds=10, max_seconds=35)
        watch.start("encoder")
        for step in range(1, 100):
            now[0] += 4
            if watch.stops_after(step):
                break
        assert all(point["processor_seconds"] == point["seconds"] for point in watch.curve)
        return [(point["step"], point["seconds"]) for point in watch.curve]

    # A probe after the first step at or past each multiple of 10 seconds, and after the last one
    assert run(100) == [(0, 0), (3, 12), (5, 20), (8, 32), (9, 36)]
    assert run(6) == [(0, 0), (3, 12), (5, 20), (6, 24)]
    assert set(probed) == {"encoder"}


@pytest.fixture
def videomae(tiny_config):
    return VideoMAEForPreTraining(videomae_config(tiny_config))


def test_videomae_is_read_as_it_learns(videomae, tiny_config):
    encoder = encoder_of(videomae, tiny_config)
    assert videomae.videomae.config._attn_implementation == "sdpa"
    assert all(parameter.requires_grad for parameter in videomae.parameters())
    clips = torch.rand(2, 4, 3, 16, 16)
    before = encoder.tap(clips, [6])[0]
    assert before.shape == (2, 32, 32) and encoder.grid_size(clips) == tiny_config.grid_size
    with torch.no_grad():
        videomae.videomae.encoder.layer[5].layernorm_after.bias += 1
    assert not torch.allclose(encoder.tap(clips, [6])[0], before)


def test_normalised_patches_do_not_depend_on_the_statistics(videomae):
    clips = torch.rand(2, 4, 3, 16, 16)
    is_hidden = (torch.arange(32) >= 8).expand(2, -1)
    with torch.no_grad():
        videomae.decoder.head.weight.zero_()  # what is predicted does not depend on the input
        losses = []
        for mean, std in ((IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD), ([0.62, 0.64, 0.65], [0.13] * 3)):
            mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
            losses.append(videomae((clips - mean) / std, is_hidden).loss)
    assert losses[0] == pytest.approx(losses[1].item(), abs=1e-4) and losses[0] > 0.5


def test_weight_decay_of_videomae(videomae):
    decayed, others = (group["params"] for group in decay_groups(videomae, 0.05))
    assert len(decayed) + len(others) == len(list(videomae.parameters()))
    assert {parameter.ndim for parameter in decayed} == {2, 5}
    assert any(parameter is videomae.mask_token for parameter in others)


class Pretender:
    """A contender that takes no time; its accuracy is its learning rate."""

    title = "pretender"

    def __init__(self):
        self.trained = []

    def settings(self, max_steps, seed, learning_rate):
        return {"max_steps": max_steps, "seed": seed, "learning_rate": learning_rate}

    def describe(self, settings):
        return settings

    def train(self, settings, data, stopwatch):
        self.trained.append((settings["max_steps"], settings["seed"], settings["learning_rate"]))
        stopwatch.start(settings["learning_rate"])
        while not stopwatch.stops_after(settings["max_steps"]):
            pass


@pytest.fixture
def pretender(monkeypatch):
    contender = Pretender()
    monkeypatch.setitem(CONTENDERS, "mae", contender)
    found = {"layer": 2, "accuracy": 0.9}
    monkeypatch.setattr(
        time_to_quality, "probe_motion", lambda rate, *data: {"held_out": 1 - abs(rate - 0.5), **found}
    )
    return contender


def test_a_learning_rate_is_chosen_by_held_out_clips(pretender, tmp_path):
    benchmark = Benchmark(tmp_path, SimpleNamespace(probe=()), {"threads": 1})
    for _ in range(2):  # the second time from what the first one left
        assert benchmark.choose_rate("mae", (0.1, 0.4, 0.9), 7, 60.0) == 0.4
    assert pretender.trained == [(7, time_to_quality.TUNING_SEED, rate) for rate in (0.1, 0.4, 0.9)]
    assert benchmark.choose_rate("mae", (0.2,), 7, 60.0) == 0.2
    assert benchmark.choose_rate("mae", (), 7, 60.0) is None
    assert len(pretender.trained) == 3


def test_what_is_finished_is_not_run_again(pretender, tmp_path):
    benchmark = Benchmark(tmp_path, SimpleNamespace(probe=()), {"threads": 1})
    settings, path = pretender.settings(5, 0, 0.5), tmp_path / "mae" / "seed_0.json"
    limits = {"probe_seconds": 10.0, "max_seconds": 60.0}
    first, second = (benchmark.run(pretender, settings, path, limits) for _ in range(2))
    assert pretender.trained == [(5, 0, 0.5)] and json.loads(path.read_text()) == first == second
    assert [point["step"] for point in first["curve"]] == [0, 5]
    with pytest.raises(ValueError, match="seed_0.json is of other settings"):
        benchmark.run(pretender, settings | {"max_steps": 6}, path, limits)


def test_reports(tmp_path):
    def record(flops, max_steps, *points):
        settings = {"max_steps": max_steps, "learning_rate": 0.001}
        return {"settings": settings, "curve": curve(*points), "flops": flops}

    runs = {
        "layerlock": [record(2e9, 100, (0, 0.1), (100, 0.5)), record(4e9, 100, (0, 0.2), (100, 0.4))],
        "mae": [record(2e9, 200, (0, 0.1), (100, 0.2)), record(2e9, 200, (0, 0.1), (80, 0.35))],
        "videomae": [record(None, 100, (0, 0.1), (100, 0.2))],
    }
    args = SimpleNamespace(threshold=0.3, max_seconds=100.0, threads=2)
    text = time_to_quality.report(tmp_path, runs, args)
    assert text == (tmp_path / "results.md").read_text()
    assert "| LayerLock | 50 (50 to 50) | 45.0 (40.0 to 50.0) | 100 (100 to 100) | 100 (100 to 100) |" in text
    assert "| 1.000 | 2.000 | 3.0 | 0.001 | 2 |" in text
    assert "| MAE | 64 (64 to 64); 1 of 2 not within 100 s | 27.5 (20.0 to 35.0) |" in text
    assert "| 90 (80 to 100) of 200, cut |" in text
    assert "| VideoMAE (Transformers) | not within 100 s | 20.0 (20.0 to 20.0) |" in text
    summary = json.loads((tmp_path / "results.json").read_text())["contenders"]
    assert summary["mae"]["seconds_to_threshold"] == [None, pytest.approx(64)]
    assert (tmp_path / "time_to_quality.png").is_file()


def test_numbers_must_be_positive(monkeypatch, capsys):
    for flags, message in ((["--mae_steps", "0"], "--mae_steps must be above 0, got 0"), (["--data", "x"], None)):
        monkeypatch.setattr(sys, "argv", ["time_to_quality.py", *flags])
        if message is None:
            assert time_to_quality.parse_arguments().data.name == "x"
        else:
            with pytest.raises(SystemExit):
                time_to_quality.parse_arguments()
            assert message in capsys.readouterr().err


@pytest.mark.slow
def test_every_contender_runs(monkeypatch, tmp_path):
    write_data(tmp_path / "data", 8)
    flags = ["--output_dir", str(tmp_path / "out"), "--data", str(tmp_path / "data"), "--seeds", "1", "--threads", "1"]
    flags += ["--probe_seconds", "0.2", "--tuning_steps", "1", "--videomae_learning_rates", "1e-3", "2e-3"]
    flags += ["--layerlock_steps", "10", "--mae_steps", "4", "--videomae_steps", "4"]
    monkeypatch.setattr(sys, "argv", ["time_to_quality.py", *flags])
    monkeypatch.setattr(time_to_quality, "exit_when_terminated", lambda: None)
    time_to_quality.main()
    files = {name: tmp_path / "out" / name / "seed_0.json" for name in CONTENDERS}
    records = {name: json.loads(path.read_text()) for name, path in files.items()}
    assert {name: record["curve"][-1]["step"] for name, record in records.items()} == {
        "layerlock": 10,
        "mae": 4,
        "videomae": 4,
    }
    assert all(record["curve"][0]["step"] == 0 and len(record["curve"]) > 2 for record in records.values())
    # Freezing makes steps cheaper, and these are of the same schedule otherwise
    assert 0 < records["layerlock"]["flops"] < records["mae"]["flops"] and records["videomae"]["flops"] is None
    assert records["videomae"]["settings"]["learning_rate"] in (1e-3, 2e-3)
    monkeypatch.setattr(timed_runs, "build", None)  # nothing is trained any more
    monkeypatch.setattr(timed_runs, "build_clips", None)
    time_to_quality.main()
