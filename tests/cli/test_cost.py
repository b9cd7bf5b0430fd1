"""The command `layerlock cost`: what it prints of plans and of runs."""

import json

import pytest

from layerlock_hf.cli.cost import main


@pytest.fixture
def recipe(tiny_sizes, tmp_path):
    """A recipe of three stages."""
    settings = {"preset": "tiny", **tiny_sizes, "mask_ratio": 0.75, "max_steps": 100, "global_batch_size": 8}
    settings |= {"freeze_start": 40, "freeze_interval": 10, "layers_per_freeze": 2, "num_freezes": 2}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(settings))
    return path


@pytest.fixture
def run_folder(recipe, tmp_path):
    """What a run of that recipe leaves, whose second stage took twice as long as the first."""
    record = {"recipe": None, "settings": json.loads(recipe.read_text()), "max_steps": 100, "clips_per_step": 8}
    record["hardware"] = {"device": "CPU", "num_processes": 1}
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps(record))
    rows = [
        {"step": step, "stage": stage, "num_frozen": 2 * stage, "clips_per_second": speed}
        for step, stage, speed in ((40, 0, 100.0), (50, 1, 50.0))
    ]
    told = {"learning_rate": 0.1, "peak_memory_gib": 1.0, "total_flops": 1e9}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row | told) + "\n" for row in rows))
    return folder


def test_a_table_that_people_read(recipe, capsys, tmp_path):
    flags = ["--gpu", "a100", "--gpus", "2", "--price", "3", "--output_dir", str(tmp_path / "out")]
    main(["--config", str(recipe), *flags])
    first, header, *rows = capsys.readouterr().out.splitlines()
    assert first == f"{recipe}: 100 steps of 8 clips on 2 x a100, 4 at a time on each"
    assert "step, MF/clip" in header and "memory, GB/GPU" in header and "hours" in header
    assert [row.split()[1:3] for row in rows[:3]] == [["0", "0"], ["40", "2"], ["50", "4"]]
    assert [row.split()[-1] for row in rows[:3]] == ["pixels", "layer_2", "layer_4"]
    text = " ".join("\n".join(rows[3:]).split())
    for part in ("the run ", "without freezing", "none frozen", "MAE on all patches", "cost", "Counted, not measured"):
        assert part in text
    assert (tmp_path / "out" / "cost.png").is_file()


def test_json_is_one_object_and_nothing_else(recipe, capsys):
    main(["--config", str(recipe), "--json", "--batch_size", "2", "--max_steps", "60"])
    plan = json.loads(capsys.readouterr().out)
    keys = "start num_frozen target forward_flops_per_clip step_flops_per_clip memory_bytes allreduce_bytes".split()
    assert all(key in stage for stage in plan["stages"] for key in keys)
    assert plan["total_flops"] > 0 and plan["total_flops_unfrozen"] > 0
    assert (plan["max_steps"], plan["batch_size"]) == (60, 2)


def test_a_batch_that_does_not_fit(recipe, capsys):
    flags = ["--preset", "4ds-g", "--hidden_size", "1664", "--num_hidden_layers", "6", "--num_attention_heads", "16"]
    flags += ["--intermediate_size", "8192", "--global_batch_size", "1048576", "--batch_size", "1048576"]
    main(["--config", str(recipe), "--gpu", "l4", *flags])
    text = " ".join(capsys.readouterr().out.split())
    assert "IT DOES NOT FIT" in text and "of 20.4 GB" in text and "clips at a time would fit. Use a smaller" in text


def test_what_a_gpu_holds(recipe, capsys):
    main(["--config", str(recipe), "--memory"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| from step | 0 | 40 | 50 |" and all(line.count("|") == 5 for line in lines)


def test_a_run_names_the_stage_that_is_off(run_folder, capsys):
    main([str(run_folder)])
    text = capsys.readouterr().out
    rows = text.splitlines()[1:3]
    assert "OFF" not in rows[0] and "OFF" in rows[1]
    assert "stage 1 (2 frozen, predicts layer_2) is slower than planned: its steps take 1.86 times" in text
    assert "they do not compare, as on a CPU" in text
    main([str(run_folder), "--json"])
    assert [stage["is_off"] for stage in json.loads(capsys.readouterr().out)["stages"]] == [False, True]


def test_a_run_as_planned_is_told_so(run_folder, capsys):
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    (run_folder / "metrics.jsonl").write_text(json.dumps(rows[0]) + "\n")
    main([str(run_folder)])
    assert "no stage is off by more than 25%" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "--gpus", "2"], "error: --gpus has no effect beside RUN, whose settings are on record: leave it out"),
        (["RUN", "--max_steps", "2"], "error: --max_steps has no effect beside RUN"),
        (["nowhere"], "error: RUN must be a folder of `layerlock pretrain`, got nowhere: it has no settings.json"),
        (["--config", "RECIPE", "--gpu", "tpu"], "error: gpu must be one of a10, .*, got tpu"),
        (
            ["--config", "RECIPE", "--gpus", "3"],
            "error: global_batch_size must be a multiple of 3 GPUs, got 8: change",
        ),
        (["--config", "nothing"], "error: config: there is no recipe nothing"),
    ],
)
def test_errors_in_one_line(recipe, run_folder, arguments, message):
    places = {"RUN": str(run_folder), "RECIPE": str(recipe)}
    with pytest.raises(SystemExit, match=message) as error:
        main([places.get(word, word) for word in arguments])
    assert "\n" not in str(error.value)


def test_a_run_without_a_log(run_folder):
    (run_folder / "metrics.jsonl").unlink()
    with pytest.raises(SystemExit, match="error: metrics.jsonl must hold clips_per_second"):
        main([str(run_folder)])
