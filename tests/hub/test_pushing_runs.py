"""`layerlock push`: what a run left becomes revisions of a repository."""

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
from huggingface_hub import snapshot_download
from readout_runs import run as read_out
from readout_runs import write_inputs
from runs import pretrain, write_recipe
from transformers import AutoModel, AutoModelForVideoClassification

from layerlock_hf import push
from layerlock_hf.cli import push as program
from layerlock_hf.evaluation.arguments import SharingArguments
from layerlock_hf.hub.client import PushFailed
from layerlock_hf.hub.repository import PushFolder
from layerlock_hf.pretraining.pushing import note_of


NAME = "tester/run"


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_sizes):
    folder = tmp_path_factory.mktemp("run")
    return pretrain(write_recipe(folder, tiny_sizes), folder / "out")


def history(hub, branch="main", name=NAME):
    """Titles of the commits, oldest first, without the one that the Hub makes."""
    return [commit.title for commit in reversed(hub.repositories[name].commit(branch).history())][1:]


def test_every_stage_is_a_revision(hub, run):
    pushed = push(run, NAME, stages=True)
    assert [one.revision.tag for one in pushed[NAME]] == ["stage-0", "stage-1", "stage-2", None]
    assert history(hub, "stages") == [
        "stage 0: step 0, nothing frozen",
        "stage 1: step 2, layer 1 frozen",
        "stage 2: step 4, layers 1 to 2 frozen",
    ]
    assert history(hub) == ["step 6 of 6"]
    stages = [AutoModel.from_pretrained(NAME, revision=f"stage-{number}") for number in range(3)]
    stages.append(AutoModel.from_pretrained(NAME))
    video = torch.rand(1, 4, 3, 16, 16)
    for number in range(1, 3):
        frozen = [model.tap(video, [number])[0] for model in stages[number:]]
        assert all(torch.equal(frozen[0], later) for later in frozen[1:])
        assert not torch.equal(frozen[0], stages[number - 1].tap(video, [number])[0])
    assert not list(run.glob(".push-*"))


def test_pushes_leave_each_others_folders_alone(hub, run):
    left_over = run / ".push-killed"
    (left_over / "x").mkdir(parents=True)
    with PushFolder(run) as other:
        push(run, NAME)
        assert list(run.glob(".push-*")) == [Path(other)] and not left_over.exists()
    assert not Path(other).exists()


def test_what_the_hub_keeps_in_its_cache_is_pushed_on(hub, run, tmp_path):
    """Which holds links."""
    push(run, NAME)
    push(snapshot_download(NAME), "tester/fork")
    there, here = (hub.repositories[name].commit().files["model.safetensors"] for name in ("tester/fork", NAME))
    assert there == here


def test_pushing_again_sends_nothing(hub, run):
    push(run, NAME, stages=True)
    sent = hub.count("POST", "/commit/")
    pushed = push(run, NAME, stages=True)
    assert all(one.was_there for one in pushed[NAME])
    assert hub.count("POST", "/commit/") == sent


def test_the_program_says_where_things_are(hub, run, capsys):
    program.main([str(run), "--repo_id", NAME, "--checkpoint", "stage-1", "--what", "encoder"])
    assert capsys.readouterr().out == (f"pushed: {hub.url}/{NAME}/tree/main  (stage 1: step 2, layer 1 frozen)\n")
    assert AutoModel.from_pretrained(NAME).config.num_frozen_layers == 1


def test_a_dry_run_sends_nothing_and_needs_no_token(hub, run, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    program.main([str(run), "--repo_id", NAME, "--stages", "--dry_run"])
    told = capsys.readouterr().out
    assert [line.split()[1] for line in told.splitlines()[1:5]] == ["stage-0", "stage-1", "stage-2", "main"]
    assert told.endswith("This would be pushed. Nothing was sent\n")
    assert not hub.requests


def test_mistakes_are_told_in_a_line(hub, run, tmp_path, tiny_sizes, monkeypatch):
    def error(*arguments):
        with pytest.raises(SystemExit) as caught:
            program.main([*map(str, arguments)])
        assert "\n" not in caught.value.code
        return caught.value.code

    plain = pretrain(write_recipe(tmp_path, tiny_sizes, save_stages=False), tmp_path / "out")
    assert "has kept the model of no stage: train with --save_stages true" in error(
        plain, "--repo_id", NAME, "--stages"
    )
    assert "run must be a folder" in error(tmp_path / "none", "--repo_id", NAME)
    assert "repo_id must be NAME or NAMESPACE/NAME, got a/b/c" in error(run, "--repo_id", "a/b/c")
    push(plain, NAME)
    assert f"{NAME} holds another run" in error(run, "--repo_id", NAME)
    program.main([str(run), "--repo_id", NAME, "--replace"])
    monkeypatch.setenv("HF_TOKEN", "read")
    assert "the token may not write there" in error(plain, "--repo_id", "tester/other")
    monkeypatch.delenv("HF_TOKEN")
    assert "log in with `hf auth login`, or set HF_TOKEN" in error(run, "--repo_id", NAME)


@pytest.mark.slow
def test_killed_in_the_middle_and_started_again(hub, run, tmp_path):
    """Wherever it is killed, what is there at last is what one push leaves."""
    command = [sys.executable, "-m", "layerlock_hf.cli.push", str(run), "--repo_id", NAME, "--stages"]
    environment = os.environ | hub.environment(tmp_path / "home")
    for method, path in (("PUT", "/lfs/"), ("POST", "/commit/stages"), ("POST", "/tag/"), ("POST", "/commit/main")):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before, end = hub.count(method, path), time.monotonic() + 60
        while hub.count(method, path) == before and process.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, env=environment, check=True, timeout=120, stderr=subprocess.DEVNULL)
    assert [title.split(":")[0] for title in history(hub, "stages")] == ["stage 0", "stage 1", "stage 2"]
    assert history(hub) == ["step 6 of 6"]
    tags = hub.repositories[NAME].tags
    assert sorted(tags) == ["stage-0", "stage-1", "stage-2"]
    for tag in tags:
        AutoModel.from_pretrained(NAME, revision=tag)
    assert not list(run.glob(".push-*"))


@pytest.fixture(scope="module")
def readout(tmp_path_factory, run):
    """A sweep of readouts of classes, in the folder of a run."""
    root = tmp_path_factory.mktemp("readout")
    write_inputs(root)
    read_out(root, run / "motions")
    return run / "motions"


@pytest.mark.slow
def test_a_collection_holds_the_model_and_its_readouts(hub, run, readout):
    for _ in range(2):
        pushed = push(run, NAME, collection="A run")
    assert list(pushed) == [NAME, f"{NAME}-motions"]
    (collection,) = hub.collections.values()
    assert [item["id"] for item in collection["items"]] == [NAME, f"{NAME}-motions"]
    results = json.loads((readout / "results.json").read_text())
    best = results["best"]["metrics"]["top1"]["value"]
    assert f"top-1 accuracy {best:.1%}" in collection["items"][1]["note"]["text"]
    shutil.copytree(readout, run / "my readout")
    with pytest.raises(ValueError, match="collection: rename .*/my readout, which names its repository. That must be"):
        push(run, NAME, collection="A run")
    shutil.rmtree(run / "my readout")
    model = AutoModelForVideoClassification.from_pretrained(f"{NAME}-motions")
    assert model.config.readout_depth == results["best"]["depth"]


@pytest.mark.slow
def test_results_are_pushed_to_the_page_of_a_model(hub, run, tmp_path):
    push(run, NAME)
    write_inputs(tmp_path)
    settings = {"push_results": NAME, "results_dataset": "org/benchmark", "results_task": "motion"}
    read_out(tmp_path, tmp_path / "out", **settings)
    assert history(hub) == ["step 6 of 6", "Results on org/benchmark"]
    files = hub.repositories[NAME].commit("main").files
    (name,) = [name for name in files if name.startswith(".eval_results/")]
    assert b"id: org/benchmark" in files[name] and b"task_id: motion" in files[name]
    push(run, NAME)
    assert name in hub.repositories[NAME].commit("main").files


def test_results_need_their_benchmark(hub, tmp_path):
    with pytest.raises(ValueError, match="results_dataset must be set with push_results"):
        SharingArguments(push_results=NAME)
    write_inputs(tmp_path)
    settings = {"push_results": NAME, "results_dataset": "my benchmark", "results_task": "motion"}
    with pytest.raises(SystemExit, match="results_dataset must be NAME or NAMESPACE/NAME, got my benchmark"):
        read_out(tmp_path, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()  # before hours of work


def test_what_a_collection_says_of_a_readout():
    best = {"is_chosen_on": "test", "metrics": {"abs_rel": {"value": 0.25, "low": None, "high": None}}}
    results = {"task": "depth", "dataset": "rooms", "members": [1, 2], "best": best}
    assert note_of({"results.json": results}) == (
        "rooms: mean relative error (AbsRel) 0.250 [–, –], best of 2 readouts, chosen on the test items"
    )


def test_a_push_that_fails_leaves_nothing_behind(hub, run, waits):
    hub.fail("POST", "/commit/", 503, times=100)
    with pytest.raises(PushFailed, match="start the same command again"):
        push(run, NAME, stages=True)
    assert history(hub) == [] and not hub.repositories[NAME].tags and not list(run.glob(".push-*"))
