"""The picture of costs: what it draws, and that it says so."""

import pytest
from matplotlib.figure import Figure

from layerlock_hf.analysis import Machine, cost_plot, find_gpu, plan_cost


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draw a plan; the figure, whose file is checked."""
    figures = []

    class Kept(Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            figures.append(self)

    def draw(run, **changes):
        plan = plan_cost(run, Machine(find_gpu("a100"))) | changes
        cost_plot.plot_cost(plan, tmp_path / "cost.png")
        assert (tmp_path / "cost.png").stat().st_size > 10_000
        return figures[-1].axes[0], plan

    monkeypatch.setattr(cost_plot, "Figure", Kept)
    return draw


def test_three_curves_end_at_their_totals(drawn, plan_run, two_freezes):
    axes, plan = drawn(plan_run(**two_freezes))
    lines = {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}
    unit = 1e9  # 40 MFLOP of a clip, 800 clips
    assert "10^{9}" in axes.get_ylabel() and axes.get_xlabel() == "step of the optimizer"
    totals = {"tiny": "total_flops", "the same recipe without freezing": "total_flops_unfrozen"}
    totals["MAE on all patches"] = "total_flops_mae"
    for name, key in totals.items():
        (label,) = (label for label in lines if label.startswith(f"{name}: "))
        assert label == f"{name}: {plan[key] / unit:.2f}"
        assert lines[label].get_ydata()[-1] == pytest.approx(plan[key] / unit)
        assert lines[label].get_xdata()[-1] == 100
    assert {text.get_text() for text in axes.get_legend().get_texts()} == set(lines)
    # Borders of stages, and what they are above
    assert {40, 50} < {line.get_xdata()[0] for line in axes.get_lines() if len(line.get_xdata())}
    (top,) = axes.child_axes
    assert [label.get_text() for label in top.get_xticklabels()] == ["0", "2", "4"]


def test_a_run_of_one_stage(drawn, plan_run):
    axes, _ = drawn(plan_run())
    assert "a stage begins" not in {text.get_text() for text in axes.get_legend().get_texts()}


def test_many_stages_are_not_all_named(drawn, plan_run):
    stages = [
        {"start": start, "num_steps": 2, "num_frozen": start // 2, "cumulative_flops": 1e9 * start}
        for start in range(0, 42, 2)
    ]
    axes, _ = drawn(plan_run(), stages=stages)
    (top,) = axes.child_axes
    named = [int(label.get_text()) for label in top.get_xticklabels()]
    assert named[:2] == [0, 1] and named[-1] == 20 and 5 < len(named) <= 13
