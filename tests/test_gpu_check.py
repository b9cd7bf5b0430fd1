"""benchmarks/gpu_check.py without a GPU: its order, its reports, and every part in small on the CPU."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import gpu_check
import gpu_parts
from gpu_check import Part, main
from layerlock_hf import LayerLockViTConfig
from layerlock_hf.training import step_flops
from layerlock_hf.training.memory_plan import held_bytes
from steps import Steps, layerlock_case


ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def setup():
    return gpu_check.setup_for(dry_run=True)


def results_of(folder):
    return json.loads((folder / "results.json").read_text())["parts"]


def test_without_a_gpu_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="^error: PyTorch finds no GPU; --dry_run .*CPU$"):
        main(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def good(setup):
    yield {"clips": 2, "ms": 1234.5}
    yield {"clips": 2, "note": "a | b"}


def bad(setup):
    yield {"clips": 1}
    raise RuntimeError("no luck\ntoday")


def absent(setup):
    raise gpu_parts.Unavailable("there is no such package")
    yield


def endless(setup):
    yield {"clips": 1}
    while True:
        time.sleep(0.01)


def stopped(setup):
    yield {"clips": 1}
    raise KeyboardInterrupt


def test_one_part_that_fails_harms_no_other(monkeypatch, tmp_path, capsys):
    parts = [
        ("bad", 1, bad),
        ("absent", 1, absent),
        ("endless", 0.1, endless),
        ("long", 7000, good),
        ("good", 1, good),
    ]
    monkeypatch.setattr(gpu_check, "PARTS", [Part(name, name.upper(), *rest) for name, *rest in parts])
    assert main(tmp_path, minutes=1, dry_run=True) == 1
    results = results_of(tmp_path)
    statuses = {name: result["status"] for name, result in results.items()}
    expected = {"bad": "failed", "absent": "unavailable", "endless": "out of time", "long": "skipped", "good": "done"}
    assert statuses == expected
    assert results["bad"]["reason"] == "RuntimeError: no luck today" and "in bad" in results["bad"]["traceback"]
    assert results["bad"]["rows"] == results["endless"]["rows"] == [{"clips": 1}]
    assert results["long"]["reason"] == "it may take 7000 s, and 60 s are left"
    printed = capsys.readouterr().out
    lines = printed.splitlines()[: len(parts)]
    assert [line.split(":")[0] for line in lines] == list(expected) and "no luck today" in lines[0]
    text = (tmp_path / "results.md").read_text()
    assert text in printed
    assert "| clips | ms | note |\n| --- | --- | --- |\n| 2 | 1,234 |  |\n| 2 |  | a / b |\n" in text
    assert "**ABSENT** (unavailable: there is no such package)" in text


def test_what_is_missing_or_late_is_no_failure(monkeypatch, tmp_path):
    parts = [Part("absent", "", 1, absent), Part("endless", "", 0.1, endless), Part("good", "", 1, good)]
    monkeypatch.setattr(gpu_check, "PARTS", parts)
    assert main(tmp_path, dry_run=True) == 0


def test_ctrl_c_leaves_the_results_so_far(monkeypatch, tmp_path):
    parts = [Part("good", "", 1, good), Part("stopped", "", 1, stopped), Part("never", "", 1, bad)]
    monkeypatch.setattr(gpu_check, "PARTS", parts)
    assert main(tmp_path, dry_run=True) == 130
    results = results_of(tmp_path)
    assert [result["status"] for result in results.values()] == ["done", "interrupted"]
    assert [len(result["rows"]) for result in results.values()] == [2, 1]


@pytest.mark.slow
def test_clips_are_halved_while_memory_is_short():
    tried = []

    def measure(num_clips):
        tried.append(num_clips)
        if num_clips > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return num_clips

    most = 13
    assert gpu_parts.halving(48, measure, torch.device("cpu")) == 12 and tried == [48, 24, 12]
    most = 0
    with pytest.raises(gpu_parts.Failed, match="not even one clip"):
        gpu_parts.halving(3, measure, torch.device("cpu"))


@pytest.mark.slow
def test_a_stage_stands_beside_what_is_counted(setup, tiny_config):
    for patch_fraction in (1.0, 0.05):
        case = layerlock_case(tiny_config, patch_fraction)
        for stage in case.stages[:2]:
            row = gpu_parts.stage_row(setup, case, stage, 3)
            flops = step_flops(tiny_config, stage, [(round(0.05 * tiny_config.num_tokens), None)])
            assert row["GFLOP of a clip"] * 1e9 == pytest.approx(flops)
            assert row["TFLOP/s"] * 1e12 == pytest.approx(flops * row["clips/s"])
            assert row["MFU"] == row["of the matmul rate"] > 0, "there is no data sheet of a CPU"
            ids = torch.zeros(1, case.num_context, dtype=torch.long), torch.zeros(1, 32, dtype=torch.long)
            held = held_bytes(tiny_config, stage, [ids], True, 3)
            assert row["planned GB"] * 1e9 == pytest.approx(held + 3 * 4 * 3 * 16 * 16 * 4)


def test_the_presets_have_stages_up_to_the_layers_that_decode():
    frozen = {}
    for preset in gpu_check.setup_for(dry_run=False).batches:
        config = LayerLockViTConfig.from_preset(preset)
        assert (config.num_frames, config.image_size) == (16, 224)
        case = layerlock_case(config, 0.05)
        assert case.num_context == 78
        frozen[preset] = [stage.num_frozen for stage in case.stages]
    assert frozen == {"4ds-b": [0, 2, 4, 6, 8], "4ds-l": [0, 5, 10, 15, 20]}


def test_all_of_a_step_lies_on_one_device(tiny_config):
    """A device that computes nothing refuses other ones, as a GPU does."""
    case = layerlock_case(tiny_config, 0.05)
    steps = Steps(case, 2, "meta")
    for stage in case.stages:
        learning = steps.learning(stage)
        steps.model(steps.video, steps.context_ids, steps.target_ids, stage=stage).loss.backward()
        assert {parameter.grad.device.type for parameter in learning} == {"meta"}


@pytest.mark.parametrize("part", [gpu_parts.precision, gpu_parts.attention])
def test_losses_that_differ_are_a_failure(monkeypatch, setup, part):
    monkeypatch.setattr(gpu_parts, "TOLERANCE", 0)
    monkeypatch.setattr(gpu_parts, "ATTENTION", {"eager": ("eager", None), "missing": ("flash_attention_2", None)})
    rows = part(setup)
    assert next(rows)["loss"] > 0
    assert {"loss", "note"} & next(rows).keys()
    with pytest.raises(gpu_parts.Failed, match="the loss"):
        next(rows)


FAILING = "FAILED tests/a.py::test_b[cuda] - assert 1 == 2\n1 failed, 3 passed, 9 deselected in 2.1s\n"


@pytest.mark.parametrize(
    "device, status, output, message",
    [
        ("cpu", 1, FAILING, r"exits with 1: FAILED tests/a.py::test_b\[cuda\]"),
        ("cpu", 4, "ERROR: usage: --nonsense\n", "exits with 4: ERROR: usage: --nonsense"),
        ("cuda", 0, "5 skipped, 9 deselected in 2.1s\n", "no test ran on the GPU: 5 skipped"),
        ("cpu", 0, "5 skipped, 9 deselected in 2.1s\n", None),
        ("cuda", 0, "5 passed, 9 deselected in 2.1s\n", None),
    ],
)
def test_tests_that_fail_are_named(monkeypatch, device, status, output, message):
    done = SimpleNamespace(returncode=status, stdout=output, stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **settings: done)
    rows = gpu_parts.tests(SimpleNamespace(device=torch.device(device)))
    assert next(rows).keys() == {"passed", "failed", "error", "skipped"}
    if message is None:
        assert list(rows) == []
    else:
        with pytest.raises(gpu_parts.Failed, match=message):
            next(rows)


@pytest.mark.parametrize(
    "name, peak",
    [("NVIDIA H200", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H100 80GB HBM3", 989e12), ("Tesla V100", None)],
)
def test_peaks_of_cards(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert gpu_parts.peak_rate(torch.device("cuda")) == peak


@pytest.mark.slow
def test_the_dry_run_covers_every_part(tmp_path):
    # A busy CPU takes longer than a GPU is given
    command = [
        sys.executable,
        "benchmarks/gpu_check.py",
        "--dry_run",
        "--minutes",
        "14",
        "--output_dir",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["command"].startswith("python benchmarks/gpu_check.py --dry_run")
    assert results["commit"] and results["versions"]["torch"] == torch.__version__
    parts = results["parts"]
    assert list(parts) == [part.name for part in gpu_check.PARTS]
    assert {part["status"] for part in parts.values()} == {"done"}, done.stdout
    rows = {name: part["rows"] for name, part in parts.items()}
    assert rows["tests"][0]["skipped"] > 0 or torch.cuda.is_available()
    assert [row["precision"] for row in rows["precision"]] == ["fp32", "bf16"]
    assert [row["attention"] for row in rows["attention"]] == list(gpu_parts.ATTENTION)
    assert [row["frozen"] for row in rows["stages"]] == [0, 1, 2, 3, 4, 1, 2, 3, 4]
    for row in rows["stages"]:
        assert {"clips", "ms", "clips/s", "TFLOP/s", "MFU", "of the matmul rate", "peak GB", "planned GB"} < row.keys()
    new = [row["new graphs"] for row in rows["compiling"]]
    assert new[0] > 0 and new[2:] == [0, 0, 0]
    assert [row["decoded by"] for row in rows["loading"]] == ["CPU", "NVDEC"] and rows["loading"][0]["clips/s"] > 0
    assert (tmp_path / "results.md").read_text() in done.stdout
