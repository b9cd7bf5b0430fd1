"""Several files of results as one page."""

import json

import pytest
import torch

from layerlock_hf.cli import compare as program
from layerlock_hf.evaluation import compare
from layerlock_hf.evaluation.metrics import score_classes, score_depth
from layerlock_hf.evaluation.protocol import SweepPoint
from layerlock_hf.evaluation.results import TestSet, build_results, write_results


ABOUT = {"dataset": "ut_interaction", "command": "x", "versions": {}, "seconds": 1.0, "num_train": 7}
LABELS = torch.arange(8) % 2


@pytest.fixture
def write(tmp_path):
    """Writes results of a model that gets `num_right` of 8 videos right, and tells where."""

    def write(
        model,
        num_right,
        folder="run",
        failed=(),
        task="classification",
        steps=100,
        settings=None,
        probes=None,
        **about,
    ):
        indices = torch.tensor([index for index in range(8) if index not in failed])
        if task == "classification":
            predicted = torch.where(torch.arange(8) < num_right, LABELS, 1 - LABELS)[indices]
            rows = score_classes(torch.eye(2)[predicted], LABELS[indices], indices)
        else:
            rows = score_depth(torch.full((len(indices), 1, 2, 2), 1.25), torch.ones(len(indices), 1, 2, 2), indices)
        names = [f"{index}.mp4" for index in range(8)]
        test_set = TestSet(names, dict.fromkeys(failed, "empty"), None, ["hug", "kick"] * (task == "classification"))
        settings = {"max_steps": steps, **(settings or {})}
        about = ABOUT | {"model": model, "settings": settings} | about
        members = {SweepPoint(10, 0.95, 1e-3): rows, SweepPoint(7, 0.75, 1e-3): rows}
        path = tmp_path / folder / "results.json"
        path.parent.mkdir()
        write_results(build_results(task, members, test_set, 12, {"majority": rows}, about, 20, probes=probes), path)
        return path

    return write


def page(tmp_path, *paths) -> str:
    program.main([*map(str, paths), "--output", str(tmp_path / "out" / "deep")])
    assert (tmp_path / "out" / "deep" / "results.png").stat().st_size > 10_000
    return (tmp_path / "out" / "deep" / "results.md").read_text()


def row_of(text: str, start: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_a_row_per_model(tmp_path, write, capsys):
    text = page(tmp_path, write("org/a", 6, "a"), write("org/b", 4, "b"))
    assert capsys.readouterr().out.strip() == text.strip()
    best, fixed = row_of(text, "org/a")[2], row_of(text, "org/a")[4]
    assert best.startswith("75.0 [") and fixed == best
    assert row_of(text, "org/a")[3] == "7 (0.75), 0.001"
    assert row_of(text, "org/a")[6:] == ["majority 75.0", "8", "0"]
    assert row_of(text, "org/b")[2].startswith("50.0 [")
    assert "Not comparable" not in text and "k-NN" not in text
    assert "paper" not in text


@pytest.mark.parametrize(
    "other, note",
    [
        ({"steps": 5}, "max_steps is 5, not 100"),
        ({"failed": [3]}, "other test items failed (1, not 0)"),
        ({"num_train": 6}, "the number of training items is 6, not 7"),
        ({"settings": {"frame_stride": 4}}, "frame_stride is 4, not absent"),
        ({"settings": dict.fromkeys("abcdefgh", 1)}, "; 2 more settings differ"),
    ],
)
def test_what_is_not_comparable_is_marked(tmp_path, write, other, note):
    text = page(tmp_path, write("org/a", 6, "a"), write("org/b", 4, "b", **other), write("org/c", 5, "c"))
    assert row_of(text, "org/b")[0].endswith("[1]")
    assert note in text
    assert not row_of(text, "org/a")[0].endswith("]")
    assert not row_of(text, "org/c")[0].endswith("]")


def test_what_rows_are_about_is_told_by_the_rows(tmp_path, write):
    """Encoders with clips of their own size, and controls, in one table of one protocol."""
    plain = {"readout": "attention", "readout_hidden_size": 768, "seed": 0, "is_still": False, "batch_size": 4}
    plain |= {"num_frames": 16, "image_size": 224, "frame_stride": 2}
    text = page(
        tmp_path,
        write("org/a", 6, "a", settings=plain),
        write("org/a", 5, "b", settings=plain | {"is_still": True}),
        write("org/a", 5, "c", settings=plain | {"readout": "attentive_probe", "readout_hidden_size": None}),
        write("org/a (random weights)", 3, "d", settings=plain),
        write("org/b", 4, "e", settings=plain | {"num_frames": 64, "image_size": 256}),
    )
    names = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| org/")]
    assert names == [
        "| org/a, attention",
        "| org/a, attention, single frame",
        "| org/a, attentive probe",
        "| org/a (random weights), attention",
        "| org/b, attention",
    ]
    assert row_of(text, "org/b")[1] == "64, 256"
    assert "Not comparable" not in text
    protocol = "readout attention, readout_hidden_size 768, batch_size 4, frame_stride 2"
    assert f"Protocol of the first row: {protocol}.\n" in text


def test_sizes_of_one_readout_are_compared(write):
    settings = {"readout": "attention", "readout_hidden_size": 768}
    first = write("a", 6, "a", settings=settings)
    second = write("a", 6, "b", settings=settings | {"readout_hidden_size": 1024})
    read = [json.loads(path.read_text()) for path in (first, second)]
    assert compare.differences(*read) == ["readout_hidden_size is 1024, not 768"]


def test_probes_have_cells_without_intervals(tmp_path, write):
    probes = [{"depth": 7, "knn_top1": 0.5, "ridge_top1": 0.625}, {"depth": 10, "knn_top1": 0.75, "ridge_top1": 0.5}]
    text = page(tmp_path, write("org/a", 6, "a", probes=probes), write("org/b", 6, "b"))
    assert row_of(text, "Model")[6:8] == ["k-NN ‡", "ridge ‡"]
    assert row_of(text, "org/a")[6:8] == ["75.0 (10)", "62.5 (7)"]
    assert row_of(text, "org/b")[6:8] == ["–", "–"]
    assert text.count("\n‡ ") == 1


def test_another_test_set_of_the_same_size_that_failed_is_not_the_same(write):
    first, second = write("a", 6, "a", failed=[1]), write("b", 6, "b", failed=[2])
    read = [json.loads(path.read_text()) for path in (first, second)]
    assert compare.differences(*read) == ["other test items failed (1, not 1)"]
    assert compare.differences(read[0], read[0]) == []


def test_tasks_and_datasets_do_not_mix(tmp_path, write):
    paths = [
        write("org/a", 6, "a"),
        write("org/a", 5, "b", dataset="other"),
        write("org/a", 4, "c", task="depth", dataset="other"),
    ]
    text = page(tmp_path, *paths)
    assert text.count("\n## ") == 3
    assert "| 0.250 [0.250, 0.250]" in text


@pytest.mark.parametrize(
    "dataset, task, value",
    [
        ("Something-Something v2", "classification", "66.1"),
        ("ssv2", "classification", "66.1"),
        ("Kinetics-700", "classification", "56.3"),
        ("scannet", "depth", "0.100"),
        ("scannet", "classification", None),
        ("kinetics400", "classification", None),
    ],
)
def test_references_are_those_of_the_dataset_and_marked(tmp_path, write, dataset, task, value):
    text = page(tmp_path, write("org/a", 6, dataset=dataset, task=task))
    assert ("**not measured here**" in text) == (value is not None)
    assert text.count("†") == (7 if value else 0)
    if value:
        assert row_of(text, "4DS-G + LayerLock")[:3] == ["4DS-G + LayerLock, 1,868M †", "–", value]


def test_models_of_one_name_are_told_apart_and_names_keep_their_cell(tmp_path, write):
    text = page(tmp_path, write("a|b", 6, "first"), write("a|b", 4, "second"))
    assert row_of(text, r"a\|b (first)")[2].startswith("75.0")
    assert row_of(text, r"a\|b (second)")[2].startswith("50.0")


def test_all_bad_files_are_named(tmp_path, write):
    bad = tmp_path / "bad.json"
    bad.write_text('{"task": "depth"}')
    with pytest.raises(SystemExit) as refusal:
        page(tmp_path, write("org/a", 6), bad, tmp_path / "absent.json")
    message = str(refusal.value)
    assert message.startswith("error: ") and "bad.json holds no results: dataset is missing" in message
    assert "absent.json cannot be read: No such file" in message
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_named(tmp_path, write, capsys):
    results = str(write("org/a", 6))
    (tmp_path / "file").touch()
    (tmp_path / "taken" / "results.md").mkdir(parents=True)
    for output, culprit in {"file": "file", "file/below": "file/below", "taken": "taken/results.md"}.items():
        with pytest.raises(
            SystemExit, match=f"error: output: cannot write to {tmp_path / culprit}: .*: choose another"
        ):
            program.main([results, "--output", str(tmp_path / output)])
    with pytest.raises(SystemExit, match="2"):
        program.main([results, "--output", ""])
    assert "argument --output: must be a path, got ''" in capsys.readouterr().err
