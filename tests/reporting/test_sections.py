"""What single sections say."""

import json

from hub_folders import CLASSES

from layerlock_hf.analysis.health import Health
from layerlock_hf.analysis.health_rules import Verdict
from layerlock_hf.reporting import sections
from layerlock_hf.reporting.recorded import Run


def test_results_of_readouts_are_found_below_the_run(copied):
    (copied / "readout").mkdir()
    (copied / "readout" / "results.json").write_text(json.dumps(CLASSES))
    (table,) = sections.readouts(Run(copied))["tables"]
    assert table["name"] == "readout"
    assert table["header"][1] == "top-1 accuracy"
    assert table["rows"][0][0].startswith("best of")


def test_bad_videos_are_counted_by_kind_and_named_without_folders(copied):
    rows = [
        {"path": "/home/ann/a.mp4", "kind": "damaged", "reason": "/home/ann/a.mp4 is no video", "used": False},
        {"path": "/home/ann/b.mp4", "kind": "damaged", "reason": "cut", "used": True},
        {"path": "/home/ann/b.mp4", "reason": "cut", "used": True},
        {"path": "c.mp4", "kind": "network", "reason": "gone", "used": False},
    ]
    (copied / "bad_videos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = sections.bad_videos(Run(copied))
    assert (found["num_bad"], found["num_used"], found["kinds"]) == (3, 1, "2 damaged and 1 network")
    assert "/home" not in json.dumps(found)


def test_a_stage_that_is_off_the_plan_is_named(copied):
    rows = [json.loads(line) for line in (copied / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if "clips_per_second" in row:
            row["clips_per_second"] = 10.0 if row["stage"] == 2 else 100.0
    (copied / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = sections.cost(Run(copied))
    assert [stage["is_off"] for stage in found["stages"]] == [False, False, True]
    assert found["deviations"][0].startswith("stage 2 (2 frozen, predicts layer 2) is slower than planned")
    assert found["flops"]["logged"] == found["flops"]["planned"]


def test_stages_have_a_row_per_objective(copied):
    rows = [json.loads(line) for line in (copied / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if row.get("stage") == 1:
            row |= {"pixels/loss": 1.0, "pixels/explained_variance": 0.25, "pixels/target_variance": 2.0}
    (copied / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = sections.stages(Run(copied))["rows"]
    assert [(row["number"], row["target"]) for row in found] == [
        (0, "pixels"),
        (1, "layer 1"),
        (1, "pixels"),
        (2, "layer 2"),
    ]
    assert found[2]["log"]["last_explained_variance"] == 0.25


def test_verdicts_of_several_stages_are_one(monkeypatch, copied):
    short = [Verdict("stage too short", f"stage {stage} of layer_{stage}", "freeze later", stage) for stage in (1, 2)]
    health = Health(short, [], [], 6, 6, checkpoint_text="/home/ann/run/checkpoint-4 was read best")
    monkeypatch.setattr(sections, "judge_run", lambda folder: health)
    found = sections.health(Run(copied))
    (verdict,) = found["verdicts"]
    assert (verdict["stage"], verdict["text"], verdict["also"]) == (1, "stage 1 of layer 1", "stage 2")
    assert found["checkpoint"] == "checkpoint-4 was read best"
