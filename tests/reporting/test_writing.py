"""The page of a run: that it is complete in itself, says what is missing, and trusts no name."""

import html
import json
import re
import shutil

import pytest

from layerlock_hf.reporting import report
from layerlock_hf.reporting.writing import SECTIONS


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_finished_run_has_all_but_readouts(finished, videos, page_of):
    page = page_of(finished, videos)
    assert set(page.parts) == set(SECTIONS) - {"overview"}
    assert set(page.missing) == {"readouts"}
    assert ">finished</span>" in page.source
    assert page.parts["features"].count("data-stage=") == 4 * 6  # three stages and the end; six layers
    assert page.parts["reconstructions"].count("data:image/jpeg") == 3


def test_it_asks_for_nothing_and_names_no_folder(finished, videos, page_of):
    source = page_of(finished, videos).source
    assert {address[:5] for address in re.findall(r'\b(?:src|href)="([^"#][^"]*)"', source)} == {"data:"}
    assert "@import" not in source and "url(" not in source
    assert str(finished.parent) not in source


def test_numbers_for_the_script_are_json(finished, copied, page_of):
    rows = read_lines(copied / "metrics.jsonl")
    rows[1]["grad_norm"], rows[2]["loss"] = float("nan"), float("inf")
    write_lines(copied / "metrics.jsonl", rows)
    charts = re.findall(r"data-points='([^']*)'", page_of(copied).source)
    assert len(charts) > 5

    def refuse(constant):
        raise AssertionError(constant)

    for chart in charts:
        points = json.loads(html.unescape(chart), parse_constant=refuse)
        assert all(len(values) == len(points["steps"]) == len(points["x"]) for values in points["values"])


def test_a_run_that_goes_on(copied, videos, page_of):
    """Two stages are reached, one is kept, there is no model of the end, and a line is half written."""
    rows = [row for row in read_lines(copied / "metrics.jsonl") if row["step"] <= 3]
    write_lines(copied / "metrics.jsonl", rows)
    with (copied / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "los')
    (copied / "model.safetensors").unlink()
    for stage in (1, 2):
        shutil.rmtree(copied / "stages" / f"stage-{stage}")
    page = page_of(copied, videos)
    assert re.search(r">not finished, last line of the log \d seconds ago</span>", page.source)
    assert ">not yet" in page.parts["stages"]
    assert page.parts["features"].count("data-stage=") == 6
    assert page.missing["reconstructions"].startswith("no model was kept of a stage that predicts pixels")


def test_checkpoints_stand_in_for_stages(copied, videos, page_of):
    (copied / "stages" / "stage-1").rename(copied / "checkpoint-2")
    shutil.rmtree(copied / "stages")
    page = page_of(copied, videos)
    assert re.findall(r"<th>([\w ]+), step (\d)", page.parts["features"]) == [
        ("checkpoint", "2"),
        ("end of the run", "6"),
    ]
    assert "step 2 (checkpoint)" in " ".join(page.parts["reconstructions"].split())


def test_without_videos_pictures_say_what_to_do(finished, page_of, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    missing = page_of(finished).missing
    assert missing["features"] == "the run's own videos (videos) are not here: give others by --data VIDEOS."
    assert missing["reconstructions"] == missing["features"]


def test_the_runs_own_videos_are_found(finished, page_of, monkeypatch):
    monkeypatch.chdir(finished.parent / "data")
    assert set(page_of(finished).missing) == {"readouts"}


def test_a_run_without_models(copied, videos, page_of):
    shutil.rmtree(copied / "stages")
    (copied / "model.safetensors").unlink()
    missing = page_of(copied, videos).missing
    assert missing["features"].startswith("run must hold a model of its own or a complete checkpoint")
    assert "curves" not in missing and "stages" not in missing


def test_reasons_name_no_folder(copied, page_of, tmp_path):
    (copied / "stages.json").write_text("{")
    (copied / "metrics.jsonl").unlink()
    source = page_of(copied.resolve(), str(tmp_path / "my secret" / "data")).source
    assert "my secret" not in source and str(tmp_path) not in source


def test_a_slip_overwrites_no_file_of_the_run(copied):
    with pytest.raises(ValueError, match="output must end in .html, got .*settings.json: call it settings.html"):
        report(copied, copied / "settings.json")


def test_a_run_that_has_just_begun(copied, videos, page_of):
    write_lines(copied / "metrics.jsonl", [])
    page = page_of(copied, videos)
    assert ">no step yet</span>" in page.source
    assert page.missing["curves"] == page.missing["cost"] == "no step has been logged yet."


DAMAGE = {
    "stages.json": ("{", "[[1]]"),
    "metrics.jsonl": ("null\n[1]",),
    "config.json": ("{",),
    "layerlock.json": ("[[1]]",),
    "bad_videos.jsonl": ("[[1]]",),
}


@pytest.mark.parametrize(("name", "content"), [(name, one) for name, contents in DAMAGE.items() for one in contents])
def test_whatever_is_damaged_the_rest_is_shown(copied, videos, page_of, name, content):
    (copied / name).write_text(content)
    assert "settings" not in page_of(copied, videos).missing


@pytest.mark.parametrize(
    "record",
    [
        "{}",
        '{"settings": {}, "max_steps": 6, "clips_per_step": 4}',
    ],
)
def test_what_is_not_on_record_is_left_out(copied, videos, page_of, record):
    (copied / "settings.json").write_text(record)
    assert "settings" not in page_of(copied, videos).missing


def test_odd_values_on_record_cost_no_page(copied, videos, page_of):
    (copied / "settings.json").write_text('{"hardware": null, "data": {"num_videos": "many"}}')
    assert "settings" in page_of(copied, videos).missing


ATTACK = "<img src=x onerror=alert(1)>'\"</script><script>alert(2)</script>"


def test_names_of_others_are_only_text(copied, videos, page_of, tmp_path):
    record = json.loads((copied / "settings.json").read_text())
    record |= {"command": ATTACK, "recipe": ATTACK, "settings": {**record["settings"], ATTACK: ATTACK}}
    record["hardware"]["device"] = ATTACK
    (copied / "settings.json").write_text(json.dumps(record))
    write_lines(copied / "bad_videos.jsonl", [{"path": ATTACK, "kind": ATTACK, "reason": ATTACK, "used": False}])
    rows = read_lines(copied / "metrics.jsonl")
    for row in rows:
        row[f"{ATTACK}/explained_variance"] = 0.5
    write_lines(copied / "metrics.jsonl", rows)
    strange = tmp_path / "strange"
    strange.mkdir()
    for number, path in enumerate(sorted((copied.parent / videos).glob("*.mp4"))):
        shutil.copy(path, strange / f"{number}<img src=x onerror=alert(3)>.mp4")
    page = page_of(copied, str(strange))
    assert page.source.count("<script") == 1
    assert not re.search(r"<img src=.?x", page.source)
    assert page.source.count("&lt;img src=x onerror=alert") >= 8


def test_the_default_place_is_the_folder_of_the_run(copied):
    assert report(copied) == copied / "report.html"
    assert (copied / "report.html").is_file()


def test_errors_name_what_to_change(finished, tmp_path):
    with pytest.raises(ValueError, match="RUN must be the folder of a run, got .*, which does not exist"):
        report(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="RUN must be a folder of `layerlock pretrain`, got .* no settings.json"):
        report(tmp_path)
    with pytest.raises(ValueError, match="output must be a file, got the folder"):
        report(finished, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="output: cannot write to"):
        report(finished, tmp_path / "file" / "page.html")


@pytest.mark.parametrize(
    ("damaged", "missing"),
    [
        ("model.safetensors", {"readouts"}),
        ("stages/stage-1/model.safetensors", {"readouts", "reconstructions"}),  # the only one of the stage of pixels
    ],
)
def test_damaged_weights_cost_no_more_than_their_pictures(copied, videos, page_of, caplog, damaged, missing):
    weights = copied / damaged
    weights.write_bytes(weights.read_bytes()[:-1000])
    page = page_of(copied, videos)
    assert set(page.missing) == missing
    assert page.parts["features"].count("data-stage=") == 3 * 6
    (line,) = re.findall(r"Left out: (.*)</p>", page.parts["features"])
    assert line.startswith(f"{damaged} is damaged, or only half of it is there")
    if "reconstructions" in missing:
        assert f"Left out: {damaged} is damaged" in page.missing["reconstructions"]
    assert str(copied) not in page.source
    assert "model.safetensors is damaged" in caplog.text
