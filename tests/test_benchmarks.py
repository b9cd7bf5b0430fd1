"""The benchmark of methods, without training: what it runs, keeps and reports. Those of savings and of sweeps of
readouts, in small."""

import importlib.util
import json
import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from layerlock_hf.evaluation import SweepArguments


ROOT = Path(__file__).resolve().parents[1]


def load(name):
    """A program in benchmarks/, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def methods():
    """benchmarks/methods.py."""
    return load("methods")


@pytest.fixture
def recipes(methods, monkeypatch, tmp_path):
    """A folder of recipes in the place of the package's."""
    monkeypatch.setattr(methods.comparing, "recipe_path", lambda name: tmp_path / f"{name}.yaml")
    base = "preset: tiny\nglobal_batch_size: 4\nresize_factor: 1.0\nwarmup_steps: 40\n"
    texts = {"demo": "max_steps: 1100\nfreeze_start: 460\n", "demo-mae": "max_steps: 1100\n"}
    texts |= {"demo-salt-teacher": "max_steps: 440\n", "demo-salt": "max_steps: 660\n"}
    texts |= {"demo-vjepa": "max_steps: 1100\nhidden_size: 64\n"}
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(base + text)
    return tmp_path


def test_steps_are_equal_and_schedules_in_proportion(methods, recipes):
    ((name, settings),) = methods.plan("layerlock", 110, seed=2)
    assert name == "demo" and settings["seed"] == 2
    assert (settings["max_steps"], settings["freeze_start"], settings["warmup_steps"]) == (110, 46, 4)
    for total in (110, 7):
        teacher, student = (settings for _, settings in methods.plan("salt", total, seed=0))
        assert teacher["max_steps"] + student["max_steps"] == total
    ((_, full),) = methods.plan("layerlock", 1100, seed=0)
    assert (full["freeze_start"], full["warmup_steps"]) == (460, 40)


def test_recipes_that_do_not_compare(methods, recipes):
    with pytest.raises(ValueError, match="hidden_size is 64 in demo-vjepa.yaml, but 128 in demo.yaml"):
        methods.plan("vjepa", 10, seed=0)
    with pytest.raises(ValueError, match="there is no recipe .*demo-blockwise.yaml"):
        methods.plan("blockwise", 10, seed=0)


def test_a_failing_run_is_named_and_the_others_go_on(methods, recipes, monkeypatch, tmp_path, capsys):
    output, trained = tmp_path / "out", []

    def train(run):
        trained.append((run.recipe.stem, run.settings["seed"], run.settings.get("teacher")))
        if run.recipe.stem == "demo-mae" and run.settings["seed"] == 1:
            raise methods.RunFailed(f"the run in {run.folder} failed")
        run.folder.mkdir(parents=True)
        rows = [{"step": 5, "effective_rank": 20 + run.settings["seed"], "feature_std": 0.1, "total_flops": 2e12}]
        rows = [row | {"learning_rate": 1} for row in rows] + [{"step": 10, "train_runtime": 3.0}]
        (run.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run_together(jobs, at_once):
        for job in jobs:
            run = next(job, None)
            while run is not None:
                try:
                    train(run)
                    run = next(job, None)
                except methods.RunFailed as failure:
                    with pytest.raises(StopIteration):
                        job.throw(failure)
                    break

    scores = {"motion_accuracy": 0.25, "motion_layer": 4, "depth_abs_rel": 0.15, "depth_r2": 0.5, "depth_layer": 6}
    monkeypatch.setattr(methods, "run_together", run_together)
    monkeypatch.setattr(methods.comparing, "write_data", lambda folder, num_videos: None)
    monkeypatch.setattr(methods.Benchmark, "probe", lambda self, folder, seed: scores)
    command = ["methods.py", "--output_dir", str(output), "--seeds", "2", "--max_steps", "10"]
    monkeypatch.setattr(sys, "argv", [*command, "--methods", "mae", "salt"])
    monkeypatch.setattr(methods, "exit_when_terminated", lambda: None)
    draw = methods.plot  # the first picture alone: there is one after every run
    monkeypatch.setattr(methods, "plot", lambda *args: None if args[-1].exists() else draw(*args))
    with pytest.raises(SystemExit, match="error: 1 of 6 runs failed: mae, seed 1: the run in"):
        methods.main()
    teachers = [str(output / "salt" / f"seed_{seed}" / "demo-salt-teacher") for seed in (0, 1)]
    assert trained == [
        ("demo-mae", 0, None),
        *[("demo-salt-teacher", 0, None), ("demo-salt", 0, teachers[0])],
        ("demo-mae", 1, None),
        *[("demo-salt-teacher", 1, None), ("demo-salt", 1, teachers[1])],
    ]
    assert "FAILED: mae, seed 1" in capsys.readouterr().out
    text = (output / "results.md").read_text()
    assert "| MAE | 25.0 |  | 0.150 | 0.50 | 20.0 | 0.1 | 3 | 2.0 | 1 |" in text
    salt = "25.0 ± 0.0 |  | 0.150 ± 0.000 | 0.50 ± 0.00 | 20.5 ± 0.7 | 0.1 ± 0 | 6 ± 0 | 4.0 ± 0.0 | 2 |"
    assert f"| SALT, multi-block | {salt}" in text
    assert "Failed: mae, seed 1" in text
    assert (output / "methods.png").is_file()
    summary = json.loads((output / "results.json").read_text())["methods"]
    assert summary["mae"]["seeds"] == [0] and summary["salt"]["seeds"] == [0, 1]
    salt = json.loads((output / "salt" / "seed_0" / "result.json").read_text())
    assert [point["step"] for point in salt["curve"]] == [5, 9]  # the teacher takes 4 of the 10 steps

    # Continuing runs what failed, and nothing else
    trained.clear()
    with pytest.raises(SystemExit):
        methods.main()
    assert trained == [("demo-mae", 1, None)]
    # Results of other settings are not mixed with these
    monkeypatch.setattr(sys, "argv", [*command, "--methods", "salt", "--max_steps", "20"])
    with pytest.raises(SystemExit, match="salt, seed 0: .*result.json is of other settings"):
        methods.main()


def test_collapse_is_read_at_the_deepest_source(methods, tmp_path):
    row = {"step": 3, "learning_rate": 1}
    for depth, rank in ((2, 9.0), (10, 7.0)):
        row |= {f"depth_{depth}/effective_rank": rank, f"depth_{depth}/feature_std": rank / 10}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert methods.rank_curve(tmp_path, 100) == [{"step": 103, "effective_rank": 7.0, "feature_std": 0.7}]


def test_savings_reports_every_stage(monkeypatch, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("savings", ROOT / "benchmarks" / "savings.py")
    savings = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "savings", savings)  # dataclasses look their module up
    spec.loader.exec_module(savings)
    monkeypatch.setattr(savings, "peaks_of", lambda preset, sizes, name, batch_size: [1.0] * 9)
    sizes = {"image_size": 16, "patch_size": 4, "num_frames": 4, "hidden_size": 32, "intermediate_size": 64}
    savings.main("tiny", sizes, ["freezing", "latents_5"], batch_size=2, repeats=1, output_dir=tmp_path)
    results = json.loads((tmp_path / "savings.json").read_text())
    assert [row["num_frozen"] for row in results["freezing"]] == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    assert [row["num_frozen"] for row in results["latents_5"]] == [0, 2, 4, 6, 8]
    for rows in results.values():
        for key in ("flops", "all_reduced_bytes", "optimizer_bytes"):
            values = [row[key] for row in rows]
            assert values == sorted(set(values), reverse=True), key
    assert "freezing alone, 16 layers, 75% masked" in capsys.readouterr().out
    assert (tmp_path / "savings.png").is_file()


@pytest.fixture(scope="module")
def readout_sweep():
    """benchmarks/readout_sweep.py."""
    return load("readout_sweep")


@pytest.mark.parametrize("task", ["classification", "depth"])
def test_a_sweep_and_its_members_alone_are_the_same(readout_sweep, monkeypatch, capsys, task):
    monkeypatch.setattr(readout_sweep, "READOUTS", {task: (16, 2)})
    few = partial(SweepArguments, learning_rates=[1e-3, 1e-2], depth_fractions=[0.25, 0.5])
    monkeypatch.setattr(readout_sweep, "SweepArguments", few)
    command = ["readout_sweep.py", "--preset", "tiny", "--task", task, "--num_steps", "1", "--batch_size", "1"]
    monkeypatch.setattr(sys, "argv", command)
    readout_sweep.main()
    printed = capsys.readouterr().out
    assert f"tiny, {task}, 4 readouts, 1 steps of 1\n" in printed
    together, alone = map(float, re.findall(r"(\S+) TFLOP", printed))
    assert 0 < together < alone
    predicted = float(re.search(r"speed-up \S+, by FLOPs (\S+):", printed)[1])
    assert predicted == pytest.approx(alone / together, rel=0.01)
    compared, difference = re.search(r"largest difference of (\d+) losses and predictions: (\S+)", printed).groups()
    assert int(compared) > 4 * 2 and float(difference) < 1e-5


def test_attention_on_cpus_is_counted(readout_sweep):
    states = torch.rand(1, 4, 100, 32)
    with FlopCounterMode(display=False, custom_mapping=readout_sweep.ATTENTION_ON_CPU) as counter:
        torch.nn.functional.scaled_dot_product_attention(states, states, states)
    assert counter.get_total_flops() == 2 * 2 * 4 * 100 * 100 * 32  # two products, 2 per multiply-accumulate


@pytest.mark.slow
def test_reading_clips_leaves_no_files_open(monkeypatch, capsys):
    loader_memory = load("loader_memory")
    monkeypatch.setattr(loader_memory, "PERIOD", 80)
    loader_memory.main(num_clips=480, num_workers=1, batch_size=20, clips_per_video=4, augment_on_device=False)
    _, *rows, summary = capsys.readouterr().out.splitlines()
    files = [[int(count) for cell in row.split(" | ")[5:] for count in cell.split(" + ")] for row in rows]
    # Some are open for a moment; one that stayed so for every clip would be 80 more in each row. Processes that other
    # tests have left may end meanwhile
    assert len(files) == 6 and all(max(counts) <= counts[0] + 20 for counts in zip(*files, strict=True))
    assert "empty" in summary
