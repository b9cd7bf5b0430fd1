"""Ordered convergence: the grid, the arithmetic on known answers, and the picture."""

import pytest
from matplotlib.figure import Figure

from layerlock_hf.analysis import convergence_plot
from layerlock_hf.analysis.convergence import Grid, converged_at, final_loss, rank_correlation, summarise_convergence


PAPER = Grid((3, 6, 9, 12), (2000, 4000, 6000, 8000, 10_000, 12_000), 1000)


def test_the_grid_of_the_paper():
    assert Grid.of(num_layers=16, max_steps=14_000) == PAPER
    assert len(PAPER.points()) == 24 and PAPER.points()[:2] == [(3, 2000), (3, 4000)]


def test_the_grid_of_another_run_is_scaled_and_what_is_given_counts():
    assert Grid.of(8, 420) == Grid((2, 3, 4, 6), (60, 120, 180, 240, 300, 360), 30)
    assert Grid.of(2, 10) == Grid((1, 2), (1, 2, 3, 4, 5, 6), 1)
    assert Grid.of(8, 420, [0, 8], [7], 5) == Grid((0, 8), (7,), 5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layers": [3, 3]}, r"layers must ascend, got \[3, 3\]"),
        ({"steps": [200, 100]}, r"steps must ascend, got \[200, 100\]"),
        ({"layers": [9]}, r"layers must be from 0 to 8, those of the encoder, got \[9\]"),
        ({"layers": [-1, 2]}, "layers must be from 0 to 8"),
        ({"steps": [0, 100]}, "steps must be from 1 to 390"),
        ({"steps": [391]}, "steps must be from 1 to 390, as the loss is averaged over the last 30 of 420 steps"),
        ({"last_steps": 420}, "steps must be from 1 to 0"),
        ({"last_steps": -1}, "last_steps must be at least 1, got -1"),
    ],
)
def test_grids_that_do_not_fit(given, message):
    with pytest.raises(ValueError, match=message):
        Grid.of(8, 420, **given)


def test_final_loss_is_the_mean_of_the_last_steps_and_of_no_other():
    rows = [{"step": step, "loss": 10.0 if step <= 7 else float(step)} for step in range(1, 11)]
    assert final_loss(rows, max_steps=10, last_steps=3) == 9
    with pytest.raises(ValueError, match="every one of the last 3 steps up to 10, got 2"):
        final_loss([row for row in rows if row["step"] != 9], 10, 3)


@pytest.mark.parametrize(
    ("deviations", "step"),
    [
        ({2: 0.9, 4: 0.5, 6: -0.1}, 2),
        ({2: 0.2, 4: 1.0, 6: 0.9}, 6),  # below, and above once more
        ({6: 0.5, 2: 3.0, 4: 0.5}, 4),
        ({2: 0.5, 4: 0.5, 6: 1.5}, None),
        ({2: float("nan"), 4: 0.5}, 4),
    ],
)
def test_converged_from_the_earliest_step_on(deviations, step):
    assert converged_at(deviations, threshold=1.0) == step


def test_rank_correlations():
    assert rank_correlation([3, 6, 9], [10, 20, 21]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(0.6)  # 1 - 6 * 4 / (4 * 15)
    assert rank_correlation([1, 2, 3], [1, float("inf"), float("inf")]) == pytest.approx(3**0.5 / 2)
    assert rank_correlation([1, 2, 3], [5, 5, 5]) is None


def losses(grid):
    """Of a net whose deeper layers need longer: L layers cost (400 L / T)% and nothing from there on."""
    return {(layers, step): 2 * (1 + 4 * layers / step) for layers, step in grid.points()}


@pytest.fixture
def results():
    grid = Grid((0, 1, 2, 4, 16), (400, 800, 1200, 1600), 100)
    summary = summarise_convergence(2.0, losses(grid), threshold=1.1)
    return summary | {"recipe": "mine", "max_steps": 2000, "last_steps": 100}


def test_a_summary_by_hand(results):
    point = next(one for one in results["points"] if (one["layers"], one["step"]) == (2, 800))
    assert point["loss"] == pytest.approx(2.02) and point["deviation_percent"] == pytest.approx(1)
    assert [(row["layers"], row["step"]) for row in results["converged"]] == [
        (0, 400),
        (1, 400),
        (2, 800),
        (4, 1600),
        (16, None),
    ]
    # The control counts in neither; what never converges comes last
    assert results["step_correlation"] == pytest.approx(1)
    assert results["deviation_correlation"] == pytest.approx(1)


def test_layers_that_converge_in_the_other_order():
    grid = Grid((1, 2, 4), (400, 800), 100)
    found = summarise_convergence(2.0, {(layers, step): 2 + 1 / layers / step for layers, step in grid.points()}, 0.1)
    assert found["step_correlation"] < 0 and found["deviation_correlation"] == pytest.approx(-1)


def test_the_picture_says_what_it_shows(results, tmp_path, monkeypatch):
    figures = []

    class Kept(Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            figures.append(self)

    monkeypatch.setattr(convergence_plot, "Figure", Kept)
    convergence_plot.plot_convergence(results, tmp_path / "convergence.png")
    assert (tmp_path / "convergence.png").stat().st_size > 10_000
    (axes,) = figures[0].axes
    assert axes.get_xlabel() == "step T at which the layers are frozen" and "in %" in axes.get_ylabel()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "never frozen: loss 2",
        "limit: 1.1%",
        "L = 0: step 400",
        "L = 1: step 400",
        "L = 2: step 800",
        "L = 4: step 1,600",
        "L = 16: not within the grid",
    ]
    curve = next(line for line in axes.get_lines() if line.get_label().startswith("L = 4"))
    assert list(curve.get_xdata()) == [400, 800, 1200, 1600]
    assert list(curve.get_ydata()) == pytest.approx([4, 2, 4 / 3, 1])
    hollow = [list(line.get_xdata()) for line in axes.get_lines() if str(line.get_markerfacecolor()) == "white"]
    assert hollow == [[400], [400, 800, 1200], [400, 800, 1200, 1600]]
    assert "1.00" in axes.get_title() and "mine" in figures[0].get_suptitle()
