"""The array of runs of Fig. 1: with programs that take no time in the place of pretraining, and once in earnest."""

import csv
import json
import sys

import pytest
import torch
from safetensors.torch import load_file

from layerlock_hf.cli import analyze
from layerlock_hf.pretraining import convergence, jobs
from layerlock_hf.pretraining.convergence import measure_convergence, visible_gpus
from layerlock_hf.pretraining.jobs import Run, RunFailed
from layerlock_hf.training import checkpoints


TWO_BLOCKS = {"decoder": "predictor", "predictor_depths": [3, 6]}
# Logs what pretraining would: a loss of 2, and of 2 + L / T with L layers frozen at step T. Fails where a file says so
PRETEND = """
import json, os, pathlib, sys
folder, settings = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
root = next(path for path in folder.parents if path.name == "out")
if (root / f"break_{folder.name}").exists():
    sys.exit("error: broken on purpose")
with (root / "starts.jsonl").open("a") as file:
    seen = [os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")]
    file.write(json.dumps([folder.name, seen, settings]) + "\\n")
step = settings.get("freeze_start", 0)
loss = 2 + (settings["layers_per_freeze"] / step if step else 0)
with (folder / "metrics.jsonl").open("w") as file:
    for n in range(step, settings.get("max_steps", 12)):
        row = {"step": n + 1, "num_frozen": 0, "learning_rate": 1, "loss": loss, "pixels/loss": loss}
        row |= {"pixels/explained_variance": 0.5, "clips_per_second": 1}
        file.write(json.dumps(row) + "\\n")
"""


class PretendRun(Run):
    def command(self):
        told = json.dumps(self.settings, default=str)
        return [sys.executable, "-S", "-c", PRETEND, str(self.folder), told]


@pytest.fixture
def recipe(tiny_sizes, tmp_path):
    settings = {"preset": "tiny", **tiny_sizes, "mask_ratio": 0.75, "max_steps": 12, "global_batch_size": 4}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(settings | {"per_device_train_batch_size": 4}))
    return path


@pytest.fixture
def measure(recipe, tmp_path, monkeypatch):
    """Run the array in pretence, of 2 and 4 layers at steps 4 and 8."""
    monkeypatch.setattr(jobs, "POLL_INTERVAL", 0.01)
    monkeypatch.setattr(convergence, "Run", PretendRun)

    def measure(**changes):
        given = {"layers": [2, 4], "steps": [4, 8], "last_steps": 2, "threshold": 20} | changes
        return measure_convergence(recipe, "videos", tmp_path / "out", **given)

    return measure


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out"


def starts(output):
    """(folder, [GPU, threads], settings) of what has been started so far."""
    path = output / "starts.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def test_an_array_of_runs(measure, output):
    results = measure(num_jobs=2)
    assert {(point["layers"], point["step"]): point["loss"] for point in results["points"]} == {
        (2, 4): 2.5,
        (2, 8): 2.25,
        (4, 4): 3,
        (4, 8): 2.5,
    }
    assert (results["baseline_loss"], results["max_steps"], results["last_steps"]) == (2, 12, 2)
    assert results["converged"] == [{"layers": 2, "step": 8}, {"layers": 4, "step": None}]
    assert results["step_correlation"] == pytest.approx(1) and results["failed"] == []
    assert json.loads((output / "convergence.json").read_text()) == results
    with (output / "convergence.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["deviation_percent"] for row in rows] == ["25.0", "12.5", "50.0", "25.0"]
    assert (output / "convergence.png").is_file()


def test_what_every_run_is_told(measure, output):
    measure(settings={"seed": 3})
    told = {name: settings for name, _, settings in starts(output)}
    always = {"seed": 3, "logging_steps": 1, "save_strategy": "steps", "save_steps": 4}
    assert told["baseline"] == always | {"save_total_limit": 0}
    assert told["layers_4_step_8"] == always | {
        "save_total_limit": 1,
        "branch": True,
        "resume_from_checkpoint": str(output / "baseline" / "checkpoint-8"),
        "freeze_start": 8,
        "layers_per_freeze": 4,
        "num_freezes": 1,
        "predict_latents": False,
    }


def test_a_failure_is_named_and_only_what_failed_runs_again(measure, output, capsys):
    output.mkdir(parents=True)
    broken = output / "break_layers_2_step_8"
    broken.touch()
    results = measure()
    assert len(results["points"]) == 3
    assert len(results["failed"]) == 1 and "2 layers from step 8: the run in" in results["failed"][0]
    assert "FAILED: 2 layers from step 8" in capsys.readouterr().out
    before = len(starts(output))
    broken.unlink()
    results = measure(threshold=30)  # which is not the runs'
    assert [name for name, *_ in starts(output)[before:]] == ["layers_2_step_8"]
    assert len(results["points"]) == 4 and results["failed"] == []
    measure(layers=[2, 3, 4])  # a finer grid
    assert [name for name, *_ in starts(output)[before + 1 :]] == ["layers_3_step_4", "layers_3_step_8"]


def test_nothing_is_told_where_everything_failed(measure, output):
    output.mkdir(parents=True)
    for name in ("baseline", "layers_2_step_8"):
        (output / f"break_{name}").touch()
    with pytest.raises(RunFailed, match=r"baseline failed \(error: broken on purpose\)"):
        measure(steps=[8], layers=[2])
    (output / "break_baseline").unlink()
    with pytest.raises(RunFailed, match="every branch failed, the first of them 2 layers from step 8"):
        measure(steps=[8], layers=[2])


def test_a_stopped_branch_goes_on_from_its_own_checkpoint(measure, output):
    measure(layers=[2])
    (output / "branches" / "layers_2_step_4" / "finished.json").unlink()
    own = output / "branches" / "layers_2_step_4" / "checkpoint-6"
    aside = own.parent / "_incomplete" / own.name
    aside.mkdir(parents=True)
    (aside / "weights").write_text("some")
    checkpoints.publish(aside, own)
    (own.parent / "checkpoint-8").mkdir()  # which was never completed
    measure(layers=[2])
    name, _, settings = starts(output)[-1]
    assert (name, settings["resume_from_checkpoint"]) == ("layers_2_step_4", str(own))
    assert not list(own.parent.glob("checkpoint-*"))


def test_branches_are_spread_over_the_gpus(measure, output, monkeypatch):
    monkeypatch.setattr(convergence, "visible_gpus", lambda: ["4", "7"])
    measure(num_jobs=2)
    assert {gpu for _, (gpu, _), _ in starts(output)[1:]} == {"4", "7"}


def test_all_runs_sum_over_as_many_threads(measure, output, monkeypatch):
    monkeypatch.setattr(convergence, "count_cores", lambda: 6)
    measure(layers=[2], num_jobs=2)
    measure(num_jobs=1)  # as some of the array has been trained with three
    assert {threads for _, (_, threads), _ in starts(output)} == {"3"}


def test_the_command_tells_of_a_failure_at_its_end(measure, recipe, output, capsys):
    output.mkdir(parents=True)
    (output / "break_layers_4_step_8").touch()
    command = ["convergence", "--config", str(recipe), "--train_data", "some", "more", "--output_dir", str(output)]
    command += ["--layers", "2", "4", "--steps", "4", "8", "--last_steps", "2", "--threshold", "20"]
    with pytest.raises(SystemExit, match="^error: 1 of 4 branches failed, the first of them 4 layers from step 8: "):
        analyze.main([*command, "--learning_rate", "1e-3"])
    assert "layers 1 to 2 have converged: step 8\nlayers 1 to 4 have converged: not" in capsys.readouterr().out
    assert {settings["learning_rate"] for *_, settings in starts(output)} == {1e-3}
    with pytest.raises(SystemExit, match="error: .*other settings"):
        analyze.main(command)
    with pytest.raises(SystemExit, match="error: --layer is not a known setting.*did you mean --layers"):
        analyze.main([*command, "--layer", "3"])


def test_gpus_are_those_that_this_process_sees(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert visible_gpus() == ["3", "5"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert visible_gpus() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"freeze_start": 4, "num_freezes": 1}}, "freeze_start must be left out, got 4"),
        ({"settings": {"schedule_restarts": True}}, "schedule_restarts must be left out"),
        ({"settings": {"push_to_hub": True}}, "push_to_hub must be left out"),
        ({"settings": {"learning_rat": 1}}, "did you mean --learning_rate"),
        (
            {"settings": {"method": "blockwise_in_sequence", "steps_per_block": 4, **TWO_BLOCKS}},
            "config must be a recipe of one stage",
        ),
        ({"layers": [7]}, "layers must be from 0 to 6"),
        ({"steps": [4, 11]}, "steps must be from 1 to 10"),
        ({"steps": [4, 401], "settings": {"max_steps": 500}}, "steps must have a common divisor of at least 5"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(measure, output, changes, message):
    with pytest.raises(ValueError, match=message):
        measure(**changes)
    assert starts(output) == []


def test_another_array_is_not_mixed_with_this_one(measure, output):
    measure()
    num_starts = len(starts(output))
    with pytest.raises(ValueError, match="array.json is of other settings"):
        measure(settings={"learning_rate": 1e-3})
    with pytest.raises(ValueError, match=r"steps must be multiples of 4, .*, got \[4, 6\]"):
        measure(steps=[4, 6])
    assert len(starts(output)) == num_starts


@pytest.mark.slow
def test_in_earnest(settings, tmp_path, capsys):
    """The control ends with the weights of the baseline, bit for bit, and a branch leaves its frozen layers as the
    baseline had them when it was frozen."""
    kept = {name: value for name, value in settings.items() if "freeze" not in name and name != "train_data"}
    recipe, output = tmp_path / "recipe.json", tmp_path / "out"
    recipe.write_text(json.dumps(kept))
    command = ["convergence", "--config", str(recipe), "--train_data", settings["train_data"]]
    command += ["--output_dir", str(output), "--layers", "0", "2", "--steps", "2", "--last_steps", "1", "--jobs", "2"]
    analyze.main(command)
    assert "control: step 2\nlayers 1 to 2 have converged: " in capsys.readouterr().out
    baseline, control, frozen, then = (
        load_file(output / name / "model.safetensors")
        for name in ("baseline", "branches/layers_0_step_2", "branches/layers_2_step_2", "baseline/checkpoint-2")
    )
    assert [name for name in baseline if not torch.equal(control[name], baseline[name])] == []
    prefix = ("encoder.embeddings.", "encoder.layers.0.", "encoder.layers.1.")
    for name in [name for name in baseline if name.startswith("encoder.")]:
        assert torch.equal(frozen[name], then[name]) == name.startswith(prefix), name
    record = json.loads((output / "branches" / "layers_2_step_2" / "settings.json").read_text())
    assert record["settings"]["freeze_start"] == 2  # what it would take to train this run from scratch
    assert not any("branch" in name for name in [*record["settings"], *record["command"].split(" --")])
    points = {row["layers"]: row for row in json.loads((output / "convergence.json").read_text())["points"]}
    assert points[0]["deviation_percent"] == 0 != points[2]["deviation_percent"]
