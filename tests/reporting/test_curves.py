"""The charts: what they show, where lines break, and that thinning loses no spike."""

import math

import pytest

from layerlock_hf.reporting.curves import KINDS, MAX_POINTS, draw_charts


STAGES = [{"start": 0, "num_frozen": 0}, {"start": 100, "num_frozen": 1}]


def draw(rows, max_steps=200):
    return {chart.kind.title: chart for chart in draw_charts(rows, STAGES, max_steps)}


def test_lines_break_at_borders_and_where_there_is_no_number():
    values = {10: 1.0, 20: math.nan, 30: 2.0, 40: 3.0, 100: 4.0, 110: 5.0, 120: 6.0}
    chart = draw([{"step": step, "learning_rate": value} for step, value in values.items()])["Learning rate"]
    (line,) = chart.lines
    assert line.path.count("M") == 2 and line.path.count("L") == 3  # 30, 40, 100, and 110, 120
    assert len(line.dots) == 1  # 10
    assert chart.borders == [(pytest.approx((46 + 328) / 2), "1")]
    assert chart.points["values"] == [[1.0, None, 2.0, 3.0, 4.0, 5.0, 6.0]]
    assert chart.last == [("Learning rate", "6 at step 120")]


def test_a_spike_survives_in_a_long_log():
    rows = [{"step": step, "grad_norm": 1.0} for step in range(1, 50_001)]
    rows[31_234]["grad_norm"] = 77.0
    rows[41_234]["grad_norm"] = math.inf
    chart = draw(rows, 50_000)["Gradient norm"]
    (values,) = chart.points["values"]
    assert 77.0 in values and None in values
    assert len(values) < 2 * MAX_POINTS


def test_targets_are_lines_and_their_sum_is_none():
    row = {"step": 1, "learning_rate": 1.0, "loss": 3.0, "pixels/loss": 1.0, "depth_3/layer_2/loss": 2.0}
    chart = draw([row, {"step": 9, "train_loss": 5.0}])["Loss of each target"]
    assert chart.points["names"] == ["pixels", "depth 3/layer 2"]
    assert draw([{"step": 1, "loss": 3.0}])["Loss of each target"].points["names"] == ["Loss of each target"]


def test_what_lies_below_the_floor_is_drawn_there():
    chart = draw([{"step": step, "pixels/explained_variance": value} for step, value in ((1, -80.0), (2, 0.5))])
    (line,) = chart["Explained variance of each target"].lines
    heights = [float(place.split(",")[1]) for place in line.path[1:].split("L")]
    assert heights[0] == 250 - 22


def test_ticks_are_round_and_within_the_frame():
    for scale in (1e-9, 0.037, 1.0, 4321.0, 1e15):
        rows = [{"step": 10 * place, "learning_rate": scale * place, "grad_norm": scale * place} for place in (1, 7)]
        for chart in draw(rows, 70).values():
            left, right, top, bottom = chart.frame
            assert 2 <= len(chart.y_ticks) <= 8 and 2 <= len(chart.x_ticks) <= 9
            assert all(top - 0.1 <= place <= bottom + 0.1 for place, _ in chart.y_ticks)
            assert all(left - 0.1 <= place <= right + 0.1 for place, _ in chart.x_ticks)
            assert len({text for _, text in chart.y_ticks}) == len(chart.y_ticks)


def test_readouts_during_pretraining_have_a_chart():
    rows = [{"step": step, "readout/knn_accuracy_layer_2": 0.25, "readout/seconds": 1.0} for step in (0, 90, 150)]
    chart = draw(rows)
    assert list(chart) == ["Readouts during pretraining: accuracy"]
    assert chart["Readouts during pretraining: accuracy"].points["names"] == ["knn, layer 2"]
    (line,) = chart["Readouts during pretraining: accuracy"].lines
    assert line.path.count("L") == 2, "accuracies before and after a switch compare"


def test_an_empty_log_has_no_charts():
    assert not draw([{"step": 1, "something": 1.0}])
    assert len({kind.title for kind in KINDS}) == len(KINDS)
