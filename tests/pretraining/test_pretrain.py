"""The pretraining program, from its arguments to the files that it leaves."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from run_files import contents, read_lines, read_steps
from transformers import AutoModel

from layerlock_hf.cli import pretrain as program
from layerlock_hf.pretraining import arguments as pretrain_arguments
from layerlock_hf.utils import cores


FOLDER = str(Path(__file__).resolve().parents[2] / "scripts")
REPORTS = ("stages.json", "metrics.jsonl", "bad_videos.jsonl")


def test_a_run_leaves_a_model_and_reports(finished):
    stages = json.loads((finished / "stages.json").read_text())
    assert [(row["start"], row["num_frozen"], row["target"]) for row in stages] == [
        (0, 0, "pixels"),
        (2, 2, "layer_2"),
    ]
    assert stages[0]["trainable_parameters"] > stages[1]["trainable_parameters"] > 0
    rows = read_steps(finished)
    names = ("step", "stage", "num_frozen")
    assert [[row[name] for name in names] for row in rows] == [[1, 0, 0], [2, 0, 0], [3, 1, 2], [4, 1, 2]]
    for row in rows:
        target = stages[row["stage"]]["target"]
        assert row[f"{target}/loss"] == pytest.approx(row["loss"])
        assert row[f"{target}/explained_variance"] < 1
        assert row["bad_videos"] == 0
    assert (finished / "bad_videos.jsonl").read_text() == ""
    model = AutoModel.from_pretrained(finished)
    assert model(torch.rand(1, 4, 3, 16, 16)).last_hidden_state.shape == (1, 32, 32)
    assert model.config.num_frozen_layers == 2


def test_flags_win_over_the_recipe(run, tmp_path):
    run(tmp_path, "--max_steps", 1, "--mask_ratio", 0.5, save_strategy="no")
    (row,) = read_steps(tmp_path)
    assert row["step"] == 1


@pytest.mark.parametrize(
    "flags, changes, message",
    [
        (["--mask_ration", 0.5], {}, "--mask_ration"),
        (["--max_steps", 0], {}, "max_steps must be set"),
        ([], {"mask_ration": 0.5}, "mask_ration is not a known setting (in "),
        ([], {"num_frozen_layers": 2}, "num_frozen_layers is not a known setting (in "),
        ([], {"mask_ratio": 2}, "mask_ratio in recipes) must be between 0 and 1, both excluded, got 2"),
        ([], {"max_bad_fraction": 2}, "max_bad_fraction must be between 0 and 1, a fraction of the videos, got 2"),
        ([], {"image_size": 80000}, "num_tokens of a clip must be at most"),
        ([], {"pixel_mean": [124, 116, 104]}, "pixel_mean must be between 0 and 1, as pixels are"),
        ([], {"num_channels": 1}, "num_channels must be 3, as videos are decoded to RGB, got 1"),
        ([], {"initializer_range": -1}, "initializer_range must be at least 0, or None, got -1"),
        (
            [],
            {"resize_factor": 115},
            "resize_factor must be between 1 and 10, got 115",
        ),
        ([], {"freeze_start": -1}, "freeze_start must be at least 1, got -1"),
        ([], {"freeze_start": "nan"}, "freeze_start must be a whole number of steps, or a share of the run"),
        ([], {"freeze_start": "inf"}, "freeze_start must be a whole number of steps, or a share of the run"),
        ([], {"adam_beta1": 1.5}, "adam_beta1 must be between 0 and 1, got 1.5"),
        ([], {"dataloader_num_workers": -1}, "dataloader_num_workers must be at least 0, got -1"),
        ([], {"schedule_stretch": "nan"}, "schedule_stretch must be at least 1, got nan"),
        ([], {"seed": -1}, "seed must be between 0 and"),
        ([], {"max_steps": 0}, "max_steps must be set to at least 1, got 0"),
        ([], {"max_steps": [1, 2]}, "must be one value, got [1, 2]"),
        ([], {"optim": "adamw_bnb_8bit"}, "optim=adamw_bnb_8bit: "),
        ([], {"hub_model_id": "me/model"}, "hub_model_id is set but push_to_hub is not"),
        ([], {"train_data": ""}, "train_data: source must be a folder, list or dataset of videos, got an empty name"),
        ([], {"image_size": 18}, "image_size must be a multiple of patch_size"),
        ([], {"hidden_size": 33}, "hidden_size must be a multiple of num_attention_heads"),
        ([], {"num_freezes": 4}, "lower num_freezes or layers_per_freeze"),
        ([], {"target_layers": [3]}, "target_layers must lie within the frozen layers, got layer 3"),
        ([], {"latent_patch_fraction": 0}, "latent_patch_fraction"),
        ([], {"pixel_patch_fraction": 1.5}, "pixel_patch_fraction"),
        ([], {"global_batch_size": 6}, "global_batch_size must be a multiple of per_device_train_batch_size=4"),
        ([], {"resume_from_checkpoint": "nowhere"}, "resume_from_checkpoint: there is no checkpoint nowhere"),
        ([], {"train_data": "no/such/folder"}, "train_data: 'no/such/folder' does not exist"),
        ([], {"train_data": "none"}, "train_data must be set"),
        ([], {"train_data": [FOLDER, "no/such/folder"]}, "train_data: 'no/such/folder' does not exist"),
        (
            [],
            {"train_weights": [0.5, 0.5]},
            "train_weights in recipes) must be one weight for each of the 1 sources, got 2",
        ),
        ([], {"clips_per_video": 3}, "per_device_train_batch_size must be a multiple of clips_per_video=3, got 4"),
        ([], {"clips_per_video": 0}, "clips_per_video must be at least 1, got 0"),
        ([], {"frame_rate": -1}, "frame_rate must be above 0 and at most 1000 frames per second, got -1"),
        ([], {"decode_device": "gpu"}, "decode_device in recipes) must be one of cpu, cuda, got 'gpu'"),
        (["--config", "nowhere.yaml"], {}, "config: there is no recipe nowhere.yaml"),
        ([], {"readout_steps": 2}, "readout_steps is set but readout_data is not"),
        ([], {"readout_linear": False}, "readout_linear is set but readout_data is not"),
        ([], {"readout_data": "no/such/folder"}, "readout_data is set but readout_steps is not"),
        ([], {"readout_data": "no/such/folder", "readout_steps": 0}, "readout_steps must be at least 1, got 0"),
        ([], {"readout_data": "no/such/folder", "readout_steps": 2}, "readout_data: 'no/such/folder' does not exist"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_user_errors_name_the_field_and_lose_nothing(run, finished, flags, changes, message):
    before = contents(finished)
    with pytest.raises(SystemExit) as error:
        run(finished, *flags, **changes)
    assert str(error.value).startswith("error: ") and message in str(error.value)
    assert "\n" not in str(error.value)
    assert contents(finished) == before


def test_a_list_of_files_that_are_not_there(run, tmp_path):
    (tmp_path / "list.csv").write_text("path\n" + "".join(f"{number}.mp4\n" for number in range(100)))
    message = "train_data: none of the videos that .*list.csv. names exists, such as .*0.mp4"
    with pytest.raises(SystemExit, match=message):
        run(tmp_path / "out", train_data=str(tmp_path / "list.csv"))


def test_reading_out_changes_nothing_else(run, finished, videos, tmp_path):
    labelled = videos.with_name("videos.csv")
    run(tmp_path, "--readout_data", labelled, "--readout_steps", 3, "--readout_max_videos", 3)
    rows = [row for row in read_lines(tmp_path / "metrics.jsonl") if "readout/knn_accuracy_layer_6" in row]
    assert [row["step"] for row in rows] == [0, 3, 4]
    assert (tmp_path / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    assert len(read_steps(tmp_path)) == len(read_steps(finished))


def test_a_readout_without_labels(run, videos, tmp_path):
    with pytest.raises(SystemExit, match="error: readout_data: the videos have no labels"):
        run(tmp_path / "out", readout_data=str(videos), readout_steps=1)


def test_a_schedule_without_its_start(pretrain, settings, finished, tmp_path):
    before = contents(finished)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({name: value for name, value in settings.items() if name != "freeze_start"}))
    with pytest.raises(SystemExit, match="error: freeze_interval is set but freeze_start is not"):
        pretrain(["--config", str(recipe), "--output_dir", str(finished)])
    assert contents(finished) == before


def test_a_value_of_the_wrong_type(run, finished, capsys):
    before = contents(finished)
    with pytest.raises(SystemExit) as error:
        run(finished, "--max_steps", "many")
    usage, message = capsys.readouterr().err.splitlines()
    assert error.value.code == 2 and usage.startswith("usage: ")
    assert "--max_steps" in message and message.endswith("invalid int value: 'many'")
    assert contents(finished) == before


def test_an_empty_folder(run, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="error: train_data: .*empty' holds no videos"):
        run(tmp_path / "out", train_data=str(tmp_path / "empty"))
    assert not any((tmp_path / "out").iterdir())


def test_a_file_in_place_of_the_output(run, tmp_path):
    (tmp_path / "out").write_text("kept")
    with pytest.raises(SystemExit, match="error: output_dir: cannot write to .*out"):
        run(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "kept"


def test_resuming_under_other_stages_loses_nothing(run, finished):
    before = contents(finished)
    with pytest.raises(SystemExit, match="error: .*checkpoint-4 was written by a run with other stages"):
        run(finished, resume_from_checkpoint="auto", freeze_start=1)
    assert contents(finished) == before


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_rehearsal_prints_a_row_per_stage_and_writes_nothing(run, finished, videos, tmp_path, capsys, num_workers):
    before = contents(finished)
    (tmp_path / "000000.mp4").write_bytes((videos / "000000.mp4").read_bytes())
    (tmp_path / "broken.mp4").write_bytes(b"this is no video" * 100)
    capsys.readouterr()
    run(
        finished,
        "--rehearse",
        "true",
        train_data=str(tmp_path),
        max_bad_fraction=1,
        dataloader_num_workers=num_workers,
    )
    table = capsys.readouterr().out.split("peak_memory_gib\n")[1].splitlines()
    assert [line.split()[:3] for line in table[:2]] == [["0", "0", "pixels"], ["2", "2", "layer_2"]]
    assert all(float(line.split()[3]) > 0 for line in table[:2])
    assert table[2:] == ["1 bad video: 1 unreadable (1 text)"]
    assert contents(finished) == before
    run(tmp_path / "new", "--rehearse", "true")
    assert not any((tmp_path / "new").iterdir())


def test_a_fresh_run_begins_its_reports_anew(run, tmp_path):
    for name in REPORTS:
        (tmp_path / name).write_text('{"step": -1, "path": "old.mp4", "used": false}\n')
    run(tmp_path, max_steps=1, save_strategy="no")
    assert [row["step"] for row in read_lines(tmp_path / "metrics.jsonl")] == [1, 1]
    assert (tmp_path / "bad_videos.jsonl").read_text() == ""
    assert len(json.loads((tmp_path / "stages.json").read_text())) == 2


def test_a_broken_video_is_listed(run, videos, tmp_path, capsys, caplog):
    (tmp_path / "data").mkdir()
    for path in videos.iterdir():
        (tmp_path / "data" / path.name).write_bytes(path.read_bytes())
    broken = tmp_path / "data" / "broken.mp4"
    broken.write_bytes(b"this is no video" * 100)
    out = tmp_path / "out"
    run(out, train_data=str(tmp_path / "data"), save_strategy="no")
    (entry,) = read_lines(out / "bad_videos.jsonl")
    assert entry["path"] == str(broken) and entry["reason"] and not entry["used"]
    assert read_steps(out)[-1]["bad_videos"] == 1
    assert capsys.readouterr().out.endswith(f"1 bad video: 1 unreadable (1 text); see {out / 'bad_videos.jsonl'}\n")
    assert caplog.text.count("1 bad video: 1 unreadable (1 text)") == 1  # when it is met, and not with every log


def test_a_mixture_of_groups(run, videos, tmp_path):
    """Resumed in the middle of an epoch, with clips that are finished on the device of the model."""
    sources = []
    for name, part in (("a", "00000[01].mp4"), ("b", "00000[23].mp4")):
        (tmp_path / name).mkdir()
        sources.append(str(tmp_path / name))
        for path in videos.glob(part):
            (tmp_path / name / path.name).write_bytes(path.read_bytes())
    settings = {"train_data": sources, "train_weights": [3, 1], "clips_per_video": 2, "jitter_strength": 1.0}
    run(tmp_path / "cpu", **settings)
    run(tmp_path / "device", **settings, augment_on_device=True)
    losses = [[row["loss"] for row in read_steps(tmp_path / name)] for name in ("cpu", "device")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and len(losses[0]) == 4
    shutil.rmtree(tmp_path / "cpu" / "checkpoint-4")
    weights = (tmp_path / "cpu" / "model.safetensors").read_bytes()
    run(tmp_path / "cpu", **settings, resume_from_checkpoint="auto")
    assert (tmp_path / "cpu" / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    "num_cores, quota, processes, expected",
    [(2, "max", 1, 1), (1, "max", 1, 1), (8, "max", 1, 7), (64, "max", 8, 7), (64, "max", 1, 16), (64, "4", 1, 3)],
)
def test_data_workers_fill_the_cores_by_default(monkeypatch, tmp_path, num_cores, quota, processes, expected):
    (tmp_path / "cpu.max").write_text(f"{quota if quota == 'max' else int(quota) * 100_000} 100000\n")
    monkeypatch.setattr(cores, "CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda process: set(range(num_cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert pretrain_arguments.default_data_workers() == expected
    flags = ["--train_data", "videos", "--output_dir", str(tmp_path), "--use_cpu", "true"]
    flags += ["--config", "4ds-g-layerlock"]
    assert program.parse(flags).training.dataloader_num_workers == expected
    assert program.parse([*flags, "--dataloader_num_workers", "0"]).training.dataloader_num_workers == 0


def test_resume_goes_on_and_appends(run, finished, tmp_path):
    # A run that is cut off has the checkpoint and the metrics of its first two steps
    for path, content in contents(finished / "checkpoint-2").items():
        copy = tmp_path / path.relative_to(finished)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(content)
    rows = read_steps(finished)
    torn = '{"step": 3, "lo'
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]) + torn)
    run(tmp_path, resume_from_checkpoint="auto")
    varying = ("clips_per_second", "data_wait_fraction", "peak_memory_gib")
    for again, row in zip(read_steps(tmp_path), rows, strict=True):
        assert {k: v for k, v in again.items() if k not in varying} == {
            k: v for k, v in row.items() if k not in varying
        }
    assert (tmp_path / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


def test_resuming_a_finished_run_changes_nothing(run, tmp_path, caplog):
    run(tmp_path)
    before = contents(tmp_path)
    run(tmp_path, resume_from_checkpoint="auto")
    assert "nothing is left to train: step 4 of max_steps=4 is done" in caplog.text
    after = contents(tmp_path)
    assert set(after) == set(before)
    # The arguments hold the flag itself, and the state that of the checkpoint, without the Trainer's closing summary
    changed = {path.name for path in after if after[path] != before[path]}
    assert changed <= {"training_args.bin", "trainer_state.json"}


def test_help_lists_the_settings(pretrain, capsys):
    with pytest.raises(SystemExit) as error:
        pretrain(["--help"])
    assert error.value.code == 0
    text = capsys.readouterr().out
    assert all(f"--{name}" in text for name in ("train_data", "freeze_start", "hidden_size", "global_batch_size"))


# ---- folders and checkpoints of other runs


def test_checkpoints_of_another_run_are_not_mixed_in(run, finished):
    before = contents(finished)
    with pytest.raises(SystemExit, match="error: output_dir: .* already holds checkpoints: resume"):
        run(finished)
    with pytest.raises(SystemExit, match="error: .* was written with seed 42, but it is now 7"):
        run(finished, "--resume_from_checkpoint", "auto", "--seed", 7, "--max_steps", 5)
    after = contents(finished)
    assert {name: after[name] for name in before if "json" not in str(name)} == {
        name: before[name] for name in before if "json" not in str(name)
    }


def test_output_within_the_videos(run, videos):
    with pytest.raises(SystemExit, match="error: output_dir must lie outside of train_data, .* got"):
        run(videos / "out")


# ---- words


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--freeze_strat", "2"], r"--freeze_strat is not a known setting, .*: did you mean --freeze_start\?"),
        (["--num_channels", "1"], "num_channels must be 3, as videos are decoded to RGB, got 1"),
        (["--report_to", "none", "nope"], "report_to must be among none, .* got nope, which is not installed"),
        (["--label_smoothing_factor", "0.1"], "label_smoothing_factor has no effect here"),
        (["--teacher", "./nope"], "teacher: cannot load ./nope: there is no folder ./nope"),
        (
            ["--switch_warmup_steps", "5", "--num_freezes", "2", "--freeze_start", "1"],
            "switch_warmup_steps must be less",
        ),
    ],
)
def test_mistakes_are_told_in_a_line(run, tmp_path, flags, message):
    with pytest.raises(SystemExit, match=f"error: {message}"):
        run(tmp_path / "out", *flags)


def test_recipes_are_suggested(pretrain, tmp_path):
    with pytest.raises(SystemExit, match=r"error: config: there is no recipe demo-ame: did you mean .*demo-mae"):
        pretrain(["--config", "demo-ame", "--train_data", "x", "--output_dir", str(tmp_path)])


def test_output_dir_is_needed(pretrain, settings, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit, match="error: output_dir must be set"):
        pretrain(["--config", str(tmp_path / "recipe.yaml")])


def test_help_shows_what_is_ours(pretrain, capsys):
    with pytest.raises(SystemExit):
        pretrain(["--help"])
    brief = capsys.readouterr().out
    with pytest.raises(SystemExit):
        pretrain(["--help_all"])
    whole = capsys.readouterr().out
    assert "--freeze_start VALUE" in brief and "--max_grad_norm VALUE" in brief and "default: None" not in brief
    assert "--hub_token" not in brief and "--hub_token" in whole
    assert re.search(r"\n(data|masks|stages|model|training):\n", brief)
