"""The command `layerlock health`: what it prints, its exit statuses, and runs that it cannot judge."""

import json
from pathlib import Path

import pytest

import layerlock_hf
from layerlock_hf.cli.health import main


LOGS = Path(__file__).parents[1] / "analysis" / "health_logs"


@pytest.fixture
def leave_run(tmp_path):
    """Make the folder of a run from a recorded log, and return it."""

    def leave_run(name, more=()):
        record = json.loads((LOGS / f"{name}.json").read_text())
        folder = tmp_path / name
        folder.mkdir()
        (folder / "stages.json").write_text(json.dumps(record["stages"]))
        (folder / "settings.json").write_text(json.dumps({"max_steps": record["max_steps"]}))
        lines = [json.dumps(row) for row in (*record["rows"], *more)]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        return folder

    return leave_run


def status_of(arguments):
    try:
        main(list(map(str, arguments)))
    except SystemExit as ended:
        return ended.code
    return 0


def test_a_healthy_run(leave_run, capsys, tmp_path):
    assert status_of([leave_run("demo"), "--output_dir", tmp_path / "out"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("step 400 of 400\n\nstage  from step  frozen  predicts")
    assert "HEALTHY: in step 400, explained variance of layer_2 0.6" in text
    assert "train with --readout_data LABELLED" in " ".join(text.split())
    assert (tmp_path / "out" / "health.png").is_file()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("diverging", "DIVERGING (stage 0): the loss rose to 8.93e+05 times the variance of its target in step 25"),
        ("too-short", "STAGE TOO SHORT (stage 1): the stage ended after 10 steps"),
        ("collapse-hot", "COLLAPSING (stage 0): the encoder explains 6"),
        ("starved", "STARVED OF DATA (stage 0): "),
    ],
)
def test_a_run_with_a_fault(leave_run, capsys, name, told):
    assert status_of([leave_run(name)]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert told in text and text.count(told.partition(":")[0]) == 1
    assert ("Also in stage 2 and stage 3." in text) == (name == "too-short")


def test_json_is_one_object_and_nothing_else(leave_run, capsys):
    folder = leave_run("diverging")
    assert status_of([folder, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found == layerlock_hf.health(folder).to_json()
    assert not found["is_healthy"] and found["best_checkpoint"] is None and len(found["stages"]) == 1
    (verdict,) = found["verdicts"]
    assert verdict["name"] == "diverging" and {"text", "advice", "stage"} <= set(verdict)


def test_a_run_that_is_going_on(leave_run, capsys, caplog):
    """Of which few lines are there, and the last is being written."""
    folder = leave_run("demo-mae")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:3]) + lines[3][:40])
    assert status_of([folder, "--json"]) == 0
    (verdict,) = json.loads(capsys.readouterr().out)["verdicts"]
    assert verdict["name"] == "too early to tell" and "3 lines" in verdict["text"]


def test_the_checkpoint_that_is_read_best(leave_run, capsys):
    accuracies = {100: 0.3, 200: 0.5, 300: 0.4}
    readouts = [{"step": step, "readout/knn_accuracy_layer_4": value} for step, value in accuracies.items()]
    folder = leave_run("demo-mae", readouts)
    status_of([folder])
    assert "No checkpoint was saved at a step of a readout" in capsys.readouterr().out
    for step in (200, 300):
        (folder / f"checkpoint-{step}").mkdir()
    status_of([folder, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["best_checkpoint"] == str(folder / "checkpoint-200")
    assert "checkpoint-200 was read best: 50.0% in step 200 (readout/knn_accuracy_layer_4)" in found["checkpoint_text"]
    assert [row["step"] for row in found["readouts"]] == [100, 200, 300]


@pytest.mark.parametrize(
    ("removed", "told"),
    [
        ("stages.json", "it has no stages.json"),
        ("settings.json", "it has no settings.json"),
        ("metrics.jsonl", "it has no metrics.jsonl"),
    ],
)
def test_folders_that_are_no_run(leave_run, capsys, removed, told):
    folder = leave_run("demo")
    (folder / removed).unlink()
    assert status_of([folder]) == 2
    assert capsys.readouterr().err == f"error: RUN must be a folder of `layerlock pretrain`, got {folder}: {told}\n"


def test_no_such_folder_and_an_empty_log(leave_run, capsys, tmp_path):
    assert status_of([tmp_path / "nothing"]) == 2
    assert "there is no such folder" in capsys.readouterr().err
    folder = leave_run("demo")
    (folder / "metrics.jsonl").write_text("")
    assert status_of([folder]) == 2
    assert "must hold losses, got no line with any" in capsys.readouterr().err
    (folder / "stages.json").write_text("{")
    assert status_of([folder]) == 2
    assert "stages.json cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("stages.json", '"abc"', "stages.json has no list of stages but 'abc'"),
        (
            "stages.json",
            '{"start": 0, "num_frozen": 0, "target": "pixels"}',
            "stages.json has no list of stages but {'start': 0, ",
        ),
        ("stages.json", '[{"start": "0", "num_frozen": 0, "target": "pixels"}]', "stages.json has the stage"),
        ("settings.json", '{"max_steps": "many"}', "max_steps is 'many'"),
        ("metrics.jsonl", '{"learning_rate": 0.1, "stage": 0}', "a line of no step or stage"),
        ("metrics.jsonl", '{"step": 5, "learning_rate": 0.1, "stage": 0}', "no objective in step 5"),
        (
            "metrics.jsonl",
            '{"step": 5, "learning_rate": 0.1, "stage": 0, "pixels/loss": 1, "pixels/explained_variance": null}',
            "has pixels/explained_variance None in step 5",
        ),
        (
            "metrics.jsonl",
            '{"step": 5, "learning_rate": 0.1, "stage": 0, "pixels/loss": 1, "pixels/explained_variance": NaN}',
            "has pixels/explained_variance nan in step 5",
        ),
        ("metrics.jsonl", '{"step": 5, "readout/knn/accuracy": null}', "has readout/knn/accuracy None in step 5"),
    ],
)
def test_damaged_files_are_told_of(leave_run, capsys, name, content, told):
    folder = leave_run("demo")
    (folder / name).write_text(content)
    assert status_of([folder]) == 2
    assert told in " ".join(capsys.readouterr().err.split())


def test_a_log_of_before_waiting_was_measured(leave_run):
    folder = leave_run("demo")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [json.dumps({name: row[name] for name in row if name != "data_wait_fraction"}) for row in rows]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    assert status_of([folder]) == 0
