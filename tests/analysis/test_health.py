"""Verdicts on logs of real runs of the demo's recipes, healthy ones and some with planted faults, and on made logs."""

import json
from pathlib import Path

import pytest

from layerlock_hf.analysis import health_rules
from layerlock_hf.analysis.health import judge
from layerlock_hf.analysis.health_plot import plot_health
from layerlock_hf.analysis.health_rules import (
    COLLAPSING,
    DIVERGING,
    FORGETTING,
    HEALTHY,
    NOT_LEARNING,
    STARVED,
    TOO_EARLY,
    TOO_SHORT,
    moves,
)


LOGS = Path(__file__).parent / "health_logs"  # every few lines of a log, to three digits
FAULTS = {
    "diverging": DIVERGING,
    "collapse-hot": COLLAPSING,
    "too-short": TOO_SHORT,
    "starved": STARVED,
    "learning-rate-too-low": NOT_LEARNING,
    "constant-videos": NOT_LEARNING,
}
SOUND = sorted(path.stem for path in LOGS.glob("demo*.json"))


def recorded(name):
    """Rows, stages and steps of a run."""
    record = json.loads((LOGS / f"{name}.json").read_text())
    return record["rows"], record["stages"], record["max_steps"]


def made_log(explained, target="pixels", stage=0, start=0, **more):
    """Rows of every 10 steps with these explained variances, of a target whose variance is 1."""
    rows = []
    for place, value in enumerate(explained, start=1):
        row = {"step": start + 10 * place, "stage": stage, "num_frozen": stage, "learning_rate": 0.1 / (start + place)}
        row |= {"grad_norm": 1.0, "data_wait_fraction": 0.02, f"{target}/loss": 1 - value}
        row |= {f"{target}/target_variance": 1.0, f"{target}/explained_variance": value}
        rows.append(row | {name: values[place - 1] for name, values in more.items()})
    return rows


def stage_row(start=0, num_frozen=0, target="pixels"):
    return {"start": start, "num_frozen": num_frozen, "target": target}


def names(found):
    return [verdict.name for verdict in found.verdicts]


RISING = [0.4 * (1 - 0.8**place) for place in range(20)]


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_named(name):
    found = judge(*recorded(name))
    assert set(names(found)) == {FAULTS[name]} and not found.is_healthy
    for verdict in found.verdicts:
        assert verdict.advice and any(character.isdigit() for character in verdict.text)


@pytest.mark.parametrize("name", SOUND)
def test_healthy_runs_are_not_blamed(name):
    found = judge(*recorded(name))
    assert names(found) == [HEALTHY] and found.is_healthy


def test_there_are_healthy_runs_of_five_methods():
    assert {"demo", "demo-mae", "demo-vjepa", "demo-blockwise", "demo-salt-teacher"} <= set(SOUND)


@pytest.mark.parametrize("name", SOUND)
@pytest.mark.parametrize("num_rows", [1, 3, 8])
def test_healthy_runs_are_not_blamed_while_they_go_on(name, num_rows):
    rows, *rest = recorded(name)
    found = judge(rows[:num_rows], *rest)
    assert names(found) == [TOO_EARLY] and found.is_healthy


@pytest.mark.parametrize("name", SOUND)
def test_healthy_runs_are_not_blamed_at_any_line(name):
    rows, *rest = recorded(name)
    for num_rows in range(1, len(rows) + 1):
        found = judge(rows[:num_rows], *rest)
        assert found.is_healthy, (num_rows, names(found))


def test_a_divergence_is_told_while_it_holds_and_after_it():
    rows, *rest = recorded("diverging")
    (early,), (late,) = (judge(some, *rest).verdicts for some in (rows[:4], rows))
    assert (early.name, early.stage, early.holds) == (DIVERGING, 0, True)
    assert (late.name, late.holds) == (DIVERGING, False) and late.first_step == early.first_step
    assert "8.93e+05 times the variance of its target in step 25" in late.text
    assert "before step 10" in late.advice


def test_a_target_that_is_given_up_for_another_is_no_divergence():
    """Pixels get a hundred times worse while the encoder's own latents are explained: that is the collapse."""
    rows = made_log(RISING, "layer_2")
    for row in rows:
        row |= {"pixels/loss": 100.0, "pixels/target_variance": 1.0, "pixels/explained_variance": -99.0}
    found = judge(rows, [stage_row(target="pixels + layer_2")], 200)
    assert names(found) == [COLLAPSING]
    assert "explains 39% of its own moving latents" in found.verdicts[0].text
    for row in rows:
        row["num_frozen"] = 2  # then layer 2 is no moving target, and nothing can be collapsing
    assert names(judge(rows, [stage_row(num_frozen=2, target="pixels + layer_2")], 200)) == [HEALTHY]


def test_one_block_that_diverges():
    rows = made_log(RISING, "depth_2/pixels")
    for place, row in enumerate(rows):
        loss = 0.9 if place < 5 else 50.0
        row |= {"depth_4/pixels/loss": loss, "depth_4/pixels/target_variance": 1.0}
        row["depth_4/pixels/explained_variance"] = 1 - loss
    (verdict,) = judge(rows, [stage_row()], 200).verdicts
    assert verdict.name == DIVERGING and verdict.holds and verdict.first_step == 60 and "50 times" in verdict.text


@pytest.mark.parametrize("place", [10, 80, 99])
def test_a_single_bad_batch_is_no_trouble(place):
    explained = [*RISING, *[0.1] * 80]
    explained[place] = -9.0
    assert names(judge(made_log(explained), [stage_row()], 2000)) == [HEALTHY]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"content_fraction": [0.8] * 10 + [0.05] * 10}, "clips make 5.0% of the variance of features"),
        ({"depth_6/effective_rank": [30.0] * 10 + [1.2] * 10}, "the depth_6/effective_rank of features is 1.20"),
        ({"feature_std": [2.0] * 10 + [0.1] * 10}, "feature_std is 5.0% of what it was"),
        ({"teacher_layer_8/target_variance": [0.5] * 10 + [0.01] * 10}, "teacher_layer_8/target_variance is 2.0%"),
    ],
)
def test_signs_of_collapse(more, told):
    """Whatever the loss says, which gets easy."""
    rows = made_log(RISING, "teacher_layer_8", **more)
    (verdict,) = judge(rows, [stage_row(target="teacher_layer_8")], 200).verdicts
    assert (verdict.name, verdict.first_step, verdict.holds) == (COLLAPSING, 110, True) and told in verdict.text


def test_features_that_grow_are_no_collapse():
    rows = made_log(RISING, "layer_1", stage=0, feature_std=[0.3 * 1.2**place for place in range(20)])
    assert names(judge(rows, [stage_row(num_frozen=1, target="layer_1")], 200)) == [HEALTHY]


@pytest.mark.parametrize(
    ("label", "num_frozen", "expected"),
    [
        ("pixels", 0, False),
        ("layer_2", 2, False),
        ("layer_3", 2, True),
        ("teacher_layer_2", 5, True),
        ("depth_4/pixels", 0, False),
        ("depth_4/layer_3", 0, True),
    ],
)
def test_targets_that_move(label, num_frozen, expected):
    assert moves(label, num_frozen) == expected


def two_stages(explained):
    """A first stage that is well, and a second one, which ends the run."""
    stages = [stage_row(), stage_row(200, 1, "layer_1")]
    rows = made_log(RISING) + made_log(explained, "layer_1", stage=1, start=200)
    return rows, stages, 200 + 10 * len(explained)


def test_a_stage_that_ends_while_its_target_is_being_learnt():
    (verdict,) = judge(*two_stages([0.05 * place for place in range(12)])).verdicts
    assert (verdict.name, verdict.stage) == (TOO_SHORT, 1)
    assert "from 0.28 in the middle to 0.48 at the end" in verdict.text
    assert names(judge(*two_stages([0.6 * (1 - 0.7**place) for place in range(12)]))) == [HEALTHY]


def test_a_stage_that_goes_on_is_not_too_short():
    rows, stages, max_steps = two_stages([0.05 * place for place in range(12)])
    assert names(judge(rows, stages, max_steps + 10)) == [HEALTHY]


def test_a_stage_that_goes_on_with_the_target_before_has_no_fresh_head():
    stages = [stage_row(), stage_row(200, 1)]
    rows = made_log(RISING) + made_log([0.4 + 0.05 * place for place in range(12)], stage=1, start=200)
    assert names(judge(rows, stages, 320)) == [HEALTHY]


def test_nothing_is_explained():
    (verdict,) = judge(*recorded("learning-rate-too-low")).verdicts
    assert "the explained variance is -2.94 in the first third of the lines, -2.92 in the last" in verdict.text
    assert verdict.holds
    assert "Raise learning_rate, which was 9.9e-10 at most" in verdict.advice
    (verdict,) = judge(*recorded("constant-videos")).verdicts
    assert "the target pixels does not vary: its variance is 8.9e-16 at most" in verdict.text


NEARING = [-0.5 * 0.8**place for place in range(20)]  # the mean of the target


@pytest.mark.parametrize(
    ("explained", "num_steps", "expected"),
    [
        ([-0.3 + 0.02 * (place % 3) for place in range(20)], 1000, NOT_LEARNING),
        (NEARING, 200, HEALTHY),  # it may be about to learn
        ([-3.0 + 0.02 * place for place in range(20)], 1000, HEALTHY),  # while it gets better,
        ([-3.0 + 0.02 * place for place in range(20)], 200, NOT_LEARNING),  # until it ends far off
        ([-0.001] * 20, 200, HEALTHY),
        ([-0.001] * 50, 500, NOT_LEARNING),
        ([-0.001] * 50, 1000, HEALTHY),
        ([-0.001] * 45 + [0.1] * 5, 500, HEALTHY),
        ([-0.01] * 60, 1000, NOT_LEARNING),  # for 500 steps and more,
        ([-3.0 + 0.05 * place for place in range(60)] + [-0.01] * 40, 2000, HEALTHY),  # near the mean
        ([-3.0 + 1e-5 * place for place in range(60)], 1000, NOT_LEARNING),  # which is millions of steps away
        ([-0.3] * 9, 1000, TOO_EARLY),
    ],
)
def test_a_stage_that_explains_nothing(explained, num_steps, expected):
    assert names(judge(made_log(explained), [stage_row()], num_steps)) == [expected]


def test_latents_that_are_never_explained():
    (verdict,) = judge(*two_stages([-0.1, -0.04, -0.05, -0.03, -0.1, -0.03, -0.08])).verdicts
    assert (verdict.name, verdict.stage, verdict.first_step) == (NOT_LEARNING, 1, 210)


def test_a_warm_up_explains_nothing_yet():
    rows = made_log([-0.3] * 20)
    for place, row in enumerate(rows):
        row["learning_rate"] = 1e-5 * place
    assert names(judge(rows, [stage_row()], 1000)) == [TOO_EARLY]


def test_after_a_long_warm_up_learning_has_its_steps():
    rows = made_log([-0.01] * 100)
    for place, row in enumerate(rows):
        row["learning_rate"] = 1e-5 * min(place, 70)
    assert names(judge(rows, [stage_row()], 2000)) == [HEALTHY]
    for place, row in enumerate(rows):
        row["learning_rate"] = 1e-5 * min(place, 30)
    assert names(judge(rows, [stage_row()], 2000)) == [NOT_LEARNING]


LOST = [0.3] * 40 + [-0.2] * 30


@pytest.mark.parametrize(
    ("explained", "num_steps", "expected"),
    [
        (LOST, 700, FORGETTING),
        (LOST, 5000, FORGETTING),  # while the run goes on, too
        (LOST[:45], 5000, HEALTHY),  # a few lines may be a dip,
        ([*LOST, *[0.1] * 20], 5000, HEALTHY),  # or it comes back
        ([*RISING[:10], *[-0.2, 0.02] * 10], 300, FORGETTING),
        ([0.3, *[-0.001] * 30], 1000, HEALTHY),  # one line has learnt nothing
    ],
)
def test_a_stage_that_loses_what_it_had_learnt(explained, num_steps, expected):
    assert names(judge(made_log(explained), [stage_row()], num_steps)) == [expected]


def test_what_is_told_of_a_loss():
    (verdict,) = judge(made_log(LOST), [stage_row()], 700).verdicts
    assert "0.30 at best and above 0.05 until step 400; it is -0.20 in the last third" in verdict.text
    assert "from step 400 on" in verdict.text and (verdict.first_step, verdict.last_step) == (400, 700)
    assert verdict.advice.startswith("Lower learning_rate") and verdict.advice.endswith("before step 400")


def test_waiting_for_data_in_a_late_stage():
    """Steps get cheaper with every freezing, until data is what takes the time."""
    rows, stages, max_steps = two_stages(RISING)
    for row in rows:
        row["data_wait_fraction"] = 0.02 if row["stage"] == 0 else 0.6
    (verdict,) = judge(rows, stages, max_steps).verdicts
    assert (verdict.name, verdict.stage, verdict.holds) == (STARVED, 1, True) and "60% of the time" in verdict.text
    rows[20]["data_wait_fraction"] = 1.0  # the first line alone, which holds the switch
    for row in rows[21:]:
        row["data_wait_fraction"] = 0.02
    assert names(judge(rows, stages, max_steps)) == [HEALTHY]


def test_a_rising_learning_rate_is_too_early():
    rows = made_log(RISING)
    for place, row in enumerate(rows):
        row["learning_rate"] = 0.01 * place
    (verdict,) = judge(rows, [stage_row()], 1000).verdicts
    assert verdict.name == TOO_EARLY and "still rising in step 200" in verdict.text


def test_what_is_not_finite_is_left_out():
    rows = made_log(RISING, effective_rank=[30.0] * 19 + [float("nan")])
    for row in rows[:2]:
        row["grad_norm"] = float("inf")  # of fp16, whose scale is still too high
    found = judge(rows, [stage_row()], 200)
    assert (
        found.is_healthy and "NaN" not in json.dumps(found.to_json()) and "Infinity" not in json.dumps(found.to_json())
    )


def test_several_verdicts_hold():
    rows, *rest = recorded("diverging")
    for row in rows:
        row["data_wait_fraction"] = 0.9
    assert names(judge(rows, *rest)) == [DIVERGING, STARVED]


def test_logs_that_cannot_be_judged():
    with pytest.raises(ValueError, match="metrics.jsonl must hold losses, got no line with any: let the run log"):
        judge([{"step": 0, "readout/knn_accuracy_layer_2": 0.5}], [stage_row()], 10)
    with pytest.raises(ValueError, match="must be of the 1 stages of stages.json, got stage 1: were files of two"):
        judge(made_log(RISING, stage=1), [stage_row()], 10)


@pytest.mark.parametrize(
    ("stages", "max_steps", "told"),
    [
        (
            [stage_row()],
            150,
            "the 150 steps of settings.json, got step 160 in stage 0, which is that of steps 1 to 150",
        ),
        ([stage_row(), stage_row(1240, 1)], 200, "got step 10 in stage 1, which is that of steps 1,241 to 200"),
    ],
)
def test_files_of_two_runs(stages, max_steps, told):
    with pytest.raises(ValueError, match=f"{told}: were files of two runs mixed"):
        judge(made_log(RISING, stage=len(stages) - 1), stages, max_steps)


def test_the_summary_of_a_stage():
    found = judge(*recorded("demo"))
    pixels, first_latents, second = found.stages
    assert [stage["start"] for stage in found.stages] == [0, 200, 270]
    explained = first_latents["objectives"]["layer_1"]
    assert explained["first_explained_variance"] < 0.2 < explained["last_explained_variance"]
    assert explained["last_explained_variance"] <= explained["best_explained_variance"]
    assert 30 < explained["steps_to_recover"] < 70
    assert explained["last_target_variance"] == pytest.approx(10.7, rel=0.1)
    assert pixels["effective_rank"]["first"] > 50 and pixels["effective_rank"]["lowest"] < 13
    assert 0 <= second["data_wait_fraction"] < 0.1 and second["clipped_fraction"] > 0.5


@pytest.mark.parametrize("name", ["demo", "diverging", "demo-blockwise"])
def test_the_picture(name, tmp_path):
    plot_health(*recorded(name), tmp_path / "health.png")
    assert (tmp_path / "health.png").stat().st_size > 20_000


def test_the_margins_of_healthy_runs():
    """The constants stand where no healthy run comes near: within a factor of 1.5."""
    for name in SOUND:
        stages = judge(*recorded(name)).stages
        for stage in stages:
            for measured, values in stage.items():
                if measured.endswith("content_fraction"):
                    assert values["lowest"] > 1.5 * health_rules.MIN_CONTENT, (name, measured)
                if measured.endswith("effective_rank"):
                    assert values["lowest"] > 1.5 * health_rules.MIN_RANK, (name, measured)
                if measured.endswith("feature_std"):
                    assert values["last"] > 1.5 * health_rules.MIN_SPREAD * values["highest"], (name, measured)
            assert stage["data_wait_fraction"] < health_rules.MAX_WAIT / 1.5, name
