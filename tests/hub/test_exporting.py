"""What `export` makes of a run."""

import json
import shutil
import socket

import pytest
import torch
from huggingface_hub import ModelCard
from runs import pretrain, write_recipe
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForPreTraining

from layerlock_hf import LayerLockVideoProcessor, LayerLockViTForDepthEstimation, LayerLockViTModel, export
from layerlock_hf.hub import repository
from layerlock_hf.hub.documents import documents_of_readout, portable, portable_command
from layerlock_hf.pretraining.record import config_of


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_sizes):
    folder = tmp_path_factory.mktemp("run")
    return pretrain(write_recipe(folder, tiny_sizes), folder / "out")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_becomes_a_complete_flat_repository(run, tmp_path):
    export(run, tmp_path / "export", repo_id="org/tiny")
    files = contents(tmp_path / "export")
    assert all(path.is_file() for path in (tmp_path / "export").iterdir())
    assert files.keys() >= {"README.md", "LICENSE", "config.json", "model.safetensors", "stages.json", "settings.json"}
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]
    assert files["model.safetensors"] == (run / "model.safetensors").read_bytes()
    settings = json.loads(files["settings.json"])
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert settings["progress"] | {"seconds": 0} == {
        "step": 6,
        "max_steps": 6,
        "clips": 24,
        "seconds": 0,
        "total_flops": max(row.get("total_flops", 0) for row in rows),
    }
    assert b"org/tiny" in files["README.md"]


def test_an_export_of_an_export_is_the_same(run, tmp_path):
    export(run, tmp_path / "once", repo_id="org/tiny")
    export(tmp_path / "once", tmp_path / "twice")
    assert contents(tmp_path / "twice") == contents(tmp_path / "once")


def test_nothing_names_the_machine(run, tmp_path):
    export(run, tmp_path / "export")
    for name, content in contents(tmp_path / "export").items():
        if not name.endswith((".safetensors", ".py", "LICENSE")):
            assert str(run.parent).encode() not in content and b"/tmp" not in content, name
            assert socket.gethostname().encode() not in content, name


@pytest.mark.parametrize(
    "text, expected",
    [
        ("/home/ann/videos", "videos"),
        ("~/data/a.csv", "a.csv"),
        ("--train_data=/scratch/x/y", "--train_data=y"),
        ("../runs/teacher", "../runs/teacher"),
        ("clips, tested on /home/ann/b.csv", "clips, tested on b.csv"),
        ("org/name", "org/name"),
        ("https://ann:secret@example.org/a/b.csv?key=1", "https://example.org/a/b.csv"),
        ("https://ann:se,c're;t(x)@example.org/b.csv?key=a,b;c", "https://example.org/b.csv"),
        ("--data=https://ann:se,cret@example.org/b.csv", "--data=https://example.org/b.csv"),
        ("root=/home/ann/videos", "root=videos"),
        ("file:///home/ann/videos", "videos"),
        ("1/2 of it", "1/2 of it"),
    ],
)
def test_paths_do_not_travel(text, expected):
    assert portable({"one": [text]}) == {"one": [expected]}


@pytest.mark.parametrize("model, said", [("org/mae", {"base_model": "org/mae"}), ("/home/ann/mae", {})])
def test_whose_encoder_a_readout_reads(tmp_path, model, said):
    """Also where the folder of the encoder is not there any more."""
    (tmp_path / "results.json").write_text(json.dumps({"model": model, "command": "layerlock readout"}))
    documents = documents_of_readout(tmp_path, reads_foreign_encoder=True)
    del documents["settings.json"]["run_id"]
    assert documents.get("settings.json") == said
    assert documents["results.json"]["model"] == model.replace("/home/ann/", "")


def test_commands_travel_without_paths_and_tokens():
    command = "layerlock pretrain --config /x/demo.yaml --train_data /x/a /x/b --output_dir /x/out --resume auto"
    command += " --hub_token hf_secret --hub_token=hf_secret --hub-token hf_secret --max_steps 3"
    assert portable_command(command) == (
        "layerlock pretrain --config demo.yaml --train_data a b --output_dir OUT --max_steps 3"
    )
    assert portable_command("layerlock pretrain --output-dir /x/out --bf16") == (
        "layerlock pretrain --output-dir OUT --bf16"
    )


@pytest.mark.parametrize("flags", [["--config", "demo"], ["--config=demo"]])
def test_the_recipe_is_recorded(flags):
    assert config_of([*flags, "--max_steps", "3"]) == "demo"


def test_a_stage_is_the_model_as_it_was_when_the_stage_began(run, tmp_path):
    stages = [
        AutoModelForPreTraining.from_pretrained(export(run, tmp_path / f"{k}", checkpoint=f"stage-{k}"))
        for k in range(3)
    ]
    final = AutoModelForPreTraining.from_pretrained(run)
    assert [model.config.num_frozen_layers for model in stages] == [0, 1, 2]
    assert json.loads((tmp_path / "2" / "settings.json").read_text())["progress"]["step"] == 4
    for number, model in enumerate(stages):
        for depth, layer in enumerate(model.encoder.layers):
            same = [
                torch.equal(a, b)
                for a, b in zip(layer.parameters(), final.encoder.layers[depth].parameters(), strict=True)
            ]
            assert all(same) == (depth < number), (number, depth)


def test_a_part_of_the_model_in_another_dtype(run, tmp_path):
    export(run, tmp_path / "encoder", what="encoder", dtype="bfloat16")
    weights = load_file(tmp_path / "encoder" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert not [name for name in weights if name.startswith("decoders")]
    expected = AutoModel.from_pretrained(run).state_dict()
    assert all(torch.equal(tensor.bfloat16(), weights[name]) for name, tensor in expected.items())
    assert json.loads((tmp_path / "encoder" / "config.json").read_text())["architectures"] == ["LayerLockViTModel"]


def test_what_save_pretrained_leaves_has_the_same_code_and_map(run, tmp_path, tiny_config):
    export(run, tmp_path / "export")
    LayerLockViTModel(tiny_config).save_pretrained(tmp_path / "saved")
    LayerLockVideoProcessor.from_config(tiny_config).save_pretrained(tmp_path / "saved")
    exported, saved = contents(tmp_path / "export"), contents(tmp_path / "saved")
    code = [name for name in exported if name.endswith(".py")]
    assert code and all(saved[name] == exported[name] for name in code)
    maps = [json.loads(files["config.json"])["auto_map"] for files in (exported, saved)]
    assert maps[0] == maps[1] and {reference.split(".")[0] + ".py" for reference in maps[0].values()} <= set(code)


def test_only_what_depth_needs_travels_with_depth(tmp_path, tiny_config):
    LayerLockViTForDepthEstimation(tiny_config).save_pretrained(tmp_path / "depth")
    LayerLockViTModel(tiny_config).save_pretrained(tmp_path / "encoder")
    more = {path.name for path in (tmp_path / "depth").iterdir()} - {
        path.name for path in (tmp_path / "encoder").iterdir()
    }
    assert {"pipeline_video_depth.py", "depth_windows.py"} <= more
    assert not (tmp_path / "depth" / "modeling_transformers_encoder.py").exists()


@pytest.mark.parametrize(
    "settings, said",
    [
        (
            {"what": "depth"},
            "what must be pretraining or encoder for .*, got depth: train one with `layerlock readout`",
        ),
        ({"what": "all"}, "what must be one of encoder, pretraining, classification, depth, got all"),
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16, got int8"),
        (
            {"checkpoint": "stage-9"},
            r"checkpoint must be one of those in .* \(stage-0, stage-1, stage-2\), got stage-9",
        ),
        ({"checkpoint": 5}, "checkpoint must be one of those in .*, got 5: leave it out for the end"),
        ({"checkpoint": "stage-2/"}, r"checkpoint must be one of those in .*, got stage-2/"),
        ({"repo_id": "my model"}, "repo_id must be NAME or NAMESPACE/NAME, got my model"),
        ({"checkpoint": "best"}, "checkpoint=best needs checkpoints of steps at which the readout was measured"),
    ],
)
def test_mistakes_are_named(run, tmp_path, settings, said):
    with pytest.raises(ValueError, match=said):
        export(run, tmp_path / "export", **settings)
    assert not (tmp_path / "export").exists()


def test_broken_runs_are_named(run, tmp_path):
    def said(path: str, content: bytes, folder: str = "") -> str:
        copy = shutil.copytree(run, tmp_path / "copy")
        (copy / path).write_bytes(content)
        with pytest.raises(ValueError) as caught:
            export(copy / folder, tmp_path / "export")
        shutil.rmtree(copy)
        assert not (tmp_path / "export").exists()
        return str(caught.value)

    assert "model.safetensors is damaged, or only half of it is there" in said("model.safetensors", b"")
    half = (run / "model.safetensors").read_bytes()[:-100]
    assert "model.safetensors is damaged, or only half of it is there" in said("model.safetensors", half)
    assert "settings.json must hold an object" in said("settings.json", b"[1]")
    assert "stage-2 is not of this run, which has 0 stages" in said("stages.json", b"[]", "stages/stage-2")
    index = json.dumps({"weight_map": {"one": "model-1.safetensors"}}).encode()
    assert "lacks model-1.safetensors, a part of the weights" in said("model.safetensors.index.json", index)
    with pytest.raises(ValueError, match="config.json, which is a file: give the folder that it is in"):
        export(run / "config.json", tmp_path / "export")
    with pytest.raises(ValueError, match="output_dir must lie outside the folder of the run"):
        export(run, run / "stages" / "stage-9", checkpoint="stage-1")


def test_a_checkpoint_alone(tmp_path, tiny_sizes):
    """Without its run, as of a Trainer that was built by hand, which writes no `stages.json`."""
    run = pretrain(write_recipe(tmp_path, tiny_sizes), tmp_path / "out", save_strategy="steps", save_steps=4)
    shutil.move(run / "checkpoint-4", tmp_path / "model")
    export(tmp_path / "model", tmp_path / "export")
    assert "| 1 | 2 | 1 | layer_1 |\n" in (tmp_path / "export" / "README.md").read_text()


def test_from_within_the_folder_of_a_stage(run, tmp_path, monkeypatch):
    monkeypatch.chdir(run / "stages" / "stage-1")
    export(".", tmp_path / "export")
    assert "when stage 1 began" in (tmp_path / "export" / "README.md").read_text()


def test_the_best_checkpoint_is_that_of_the_best_readout(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for step in (2, 4):
        shutil.copytree(run / "stages" / f"stage-{step // 2}", copy / f"checkpoint-{step}")
    scores = {0: 0.1, 2: 0.6, 4: 0.5, 6: 0.3}
    with (copy / "metrics.jsonl").open("a") as file:
        for step, score in scores.items():
            file.write(json.dumps({"step": step, "readout/knn_accuracy_layer_2": score}) + "\n")
    export(copy, tmp_path / "best", checkpoint="best")
    assert json.loads((tmp_path / "best" / "settings.json").read_text())["progress"]["step"] == 2


def test_a_run_that_was_stopped_is_exported_from_its_last_checkpoint(tmp_path, tiny_sizes):
    run = pretrain(write_recipe(tmp_path, tiny_sizes), tmp_path / "out", save_strategy="steps", save_steps=4)
    (run / "model.safetensors").unlink()
    shutil.rmtree(run / "checkpoint-6")
    export(run, tmp_path / "export")
    assert "4 of 6" in (tmp_path / "export" / "README.md").read_text()
    weights = load_file(tmp_path / "export" / "model.safetensors")
    expected = load_file(run / "checkpoint-4" / "model.safetensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in expected.items())


def test_a_run_that_was_resumed_to_go_on_longer_is_exported_from_where_it_is(tmp_path, tiny_sizes):
    """Its folder holds the model of the shorter run until it ends."""
    recipe = write_recipe(tmp_path, tiny_sizes, save_strategy="steps", save_steps=2)
    run = pretrain(recipe, tmp_path / "out")
    model = (run / "model.safetensors").read_bytes(), (run / "layerlock.json").read_bytes()
    pretrain(recipe, run, max_steps=10, resume_from_checkpoint="auto")
    shutil.rmtree(run / "checkpoint-10")
    for name, content in zip(("model.safetensors", "layerlock.json"), model, strict=True):
        (run / name).write_bytes(content)
    export(run, tmp_path / "export")
    progress = json.loads((tmp_path / "export" / "settings.json").read_text())["progress"]
    assert (progress["step"], progress["max_steps"]) == (8, 10)
    weights = load_file(tmp_path / "export" / "model.safetensors")
    assert all(
        torch.equal(tensor, weights[name])
        for name, tensor in load_file(run / "checkpoint-8" / "model.safetensors").items()
    )


def test_what_an_earlier_run_left_is_not_taken_for_this_one(tmp_path, tiny_sizes):
    recipe = write_recipe(tmp_path, tiny_sizes)
    run = pretrain(recipe, tmp_path / "out")
    left = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "settings.json"}
    pretrain(recipe, run, seed=1)
    for path, content in left.items():
        path.write_bytes(content)
    with pytest.raises(ValueError, match="must hold a model of its own or a complete checkpoint"):
        export(run, tmp_path / "export")
    with pytest.raises(ValueError, match="stage-1 is of an earlier run in the same folder"):
        export(run, tmp_path / "export", checkpoint="stage-1")


def test_an_export_that_fails_leaves_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr(repository, "card_of", lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(run, tmp_path / "export")
    assert not any((tmp_path / "export").iterdir())


def test_the_licence_is_what_the_user_says(run, tmp_path):
    export(run, tmp_path / "export", license="cc-by-nc-4.0")
    data = ModelCard((tmp_path / "export" / "README.md").read_text()).data
    assert data.license == "cc-by-nc-4.0"
    export(tmp_path / "export", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "export")
