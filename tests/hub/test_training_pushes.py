"""`push_to_hub` of a run: models go to the Hub while it trains, and nothing that fails there ends it."""

import errno
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import pretrain, write_recipe
from transformers import AutoModelForPreTraining

import layerlock_hf
from layerlock_hf import push
from layerlock_hf.hub import client
from layerlock_hf.training import publishing


NAME = "tester/run"
ACCELERATE = str(Path(sys.executable).parent / "accelerate")


@pytest.fixture
def recipe(tmp_path, tiny_sizes):
    return write_recipe(tmp_path, tiny_sizes, push_to_hub=True, hub_model_id=NAME)


def history(hub, branch="main"):
    """Titles of the commits, oldest first, without the one that the Hub makes."""
    return [commit.title for commit in reversed(hub.repositories[NAME].commit(branch).history())][1:]


STAGES = [
    "stage 0: step 0, nothing frozen",
    "stage 1: step 2, layer 1 frozen",
    "stage 2: step 4, layers 1 to 2 frozen",
]


def assert_same_weights(run, name, **options):
    here, there = (AutoModelForPreTraining.from_pretrained(one) for one in (run, name))
    assert all(torch.equal(tensor, there.state_dict()[key]) for key, tensor in here.state_dict().items())


def test_a_run_is_pushed_stage_by_stage(hub, recipe, tmp_path):
    run = pretrain(recipe, tmp_path / "out")
    assert history(hub, "stages") == STAGES
    assert sorted(hub.repositories[NAME].tags) == ["stage-0", "stage-1", "stage-2"]
    assert history(hub) == ["step 6 of 6"]
    assert_same_weights(run, NAME)
    assert not list(run.glob(".push-*"))
    assert all(one.was_there for one in push(run, NAME, stages=True)[NAME])  # it sends the same bytes


def test_checkpoints_are_pushed_as_they_are_saved_or_only_the_end(hub, recipe, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 4, "save_stages": False}
    pretrain(recipe, tmp_path / "out", **settings)
    assert history(hub)[0] == "step 4 of 6" and history(hub)[-1] == "step 6 of 6"
    pretrain(recipe, tmp_path / "end", **settings, hub_strategy="end", hub_model_id="tester/end")
    titles = [commit.title for commit in hub.repositories["tester/end"].commit("main").history()]
    assert titles[0] == "step 6 of 6" and len(titles) == 2
    with pytest.raises(ValueError, match="hub_strategy must be every_save or end, got checkpoint"):
        pretrain(recipe, tmp_path / "no", hub_strategy="checkpoint")


def test_what_fails_is_told_and_pushed_later(hub, recipe, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(client, "NUM_TRIES", 1)
    hub.fail("POST", "/commit/", 503, times=100)
    run = pretrain(recipe, tmp_path / "out")
    assert (run / "model.safetensors").is_file()
    assert "stage 1: step 2, layer 1 frozen: repo_id: tester/run: " in caplog.text
    assert f"this pushes what is left: layerlock push {run} --repo_id {NAME} --stages" in caplog.text
    assert history(hub) == []
    hub.faults.clear()
    push(run, NAME, stages=True)
    assert history(hub, "stages") == STAGES and history(hub) == ["step 6 of 6"]


def test_a_run_that_is_resumed_pushes_the_stages_it_has_kept(hub, tiny_sizes, tmp_path):
    """Which a process that was ended had no time to push."""
    recipe = write_recipe(tmp_path, tiny_sizes, save_strategy="steps", save_steps=5)
    run = pretrain(recipe, tmp_path / "out")
    shutil.rmtree(run / "checkpoint-6")
    pretrain(recipe, run, resume_from_checkpoint="auto", push_to_hub=True, hub_model_id=NAME)
    assert history(hub, "stages") == STAGES and history(hub)[-1] == "step 6 of 6"
    assert sorted(hub.repositories[NAME].tags) == ["stage-0", "stage-1", "stage-2"]


def test_a_disk_that_is_full_ends_no_training(hub, recipe, tmp_path, caplog, monkeypatch):
    def full(run):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(publishing, "PushFolder", full)
    run = pretrain(recipe, tmp_path / "out")
    assert (run / "model.safetensors").is_file() and "No space left on device. The training goes on" in caplog.text


def test_the_trainers_own_method_pushes(hub, recipe, tmp_path):
    trainer = layerlock_hf.build_trainer(
        recipe, str(tmp_path / "data" / "videos"), tmp_path / "out", save_stages=False
    )
    trainer.train()
    assert history(hub) == []
    trainer.save_model(_internal_call=True)
    trainer.create_model_card()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "LayerLock" in card and "fine-tuned" not in card and NAME in card
    trainer.push_to_hub("As I say")
    assert history(hub) == ["As I say"]
    assert_same_weights(tmp_path / "out", NAME)


@pytest.mark.parametrize(
    ("token", "name", "said"),
    [
        ("read", NAME, "the token may not write there"),
        ("wrong", NAME, "the token is not valid"),
        ("write", "somebody/run", "the token may not write there"),
        ("write", "no such/name", "hub_model_id must be NAME or NAMESPACE/NAME, got no such/name"),
    ],
)
def test_what_the_user_has_to_fix_is_told_before_the_first_step(hub, recipe, tmp_path, monkeypatch, token, name, said):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ValueError, match=said):
        pretrain(recipe, tmp_path / "out", hub_model_id=name)
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_the_folder_names_the_repository(hub, tiny_sizes, tmp_path, monkeypatch):
    """Also where that folder is seen from the current one, as with `--output_dir out`."""
    recipe = write_recipe(tmp_path, tiny_sizes, push_to_hub=True, save_stages=False)
    monkeypatch.chdir(tmp_path)
    run = pretrain(recipe, Path("out"))
    assert_same_weights(tmp_path / run, "tester/out")
    with pytest.raises(ValueError, match="hub_model_id, by default the folder, must be NAME .* got my run: choose"):
        pretrain(recipe, tmp_path / "my run")


def test_a_run_goes_on_where_the_hub_does_not_answer(hub, recipe, tmp_path, monkeypatch, caplog):
    """As a scheduler starts it again."""
    monkeypatch.setattr(client, "NUM_TRIES", 1)
    hub.fail("POST", "", 503, times=1000)
    run = pretrain(recipe, tmp_path / "out", resume_from_checkpoint="auto")
    assert (run / "model.safetensors").is_file() and "not all of the run is on the Hub" in caplog.text


@pytest.mark.slow
def test_two_processes_push_once(hub, recipe, tmp_path):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = str(sock.getsockname()[1])
    command = [ACCELERATE, "launch", "--multi_gpu", "--num_machines", "1", "--num_processes", "2"]
    command += ["--main_process_port", port, "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["-m", "layerlock_hf.cli.pretrain", "--config", str(recipe), "--output_dir", str(tmp_path / "out")]
    environment = os.environ | hub.environment(tmp_path / "home")
    environment |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert history(hub, "stages") == STAGES and history(hub) == ["step 6 of 6"]
    assert_same_weights(tmp_path / "out", NAME)
    told = result.stdout + result.stderr
    assert told.count(f"pushing to {NAME}") == 1
