"""The pictures of a sweep of readouts show what they are given; how they look is for eyes."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from layerlock_hf.evaluation import plots
from layerlock_hf.evaluation.plots import (
    UNKNOWN_COLOUR,
    DepthClip,
    plot_confusion,
    plot_curves,
    plot_depth,
    plot_sweep,
)


@pytest.fixture
def texts(monkeypatch):
    """All texts of the figures that are saved, as they are closed."""
    found = []

    def close(figure):
        artists = figure.findobj(lambda artist: hasattr(artist, "get_text"))
        found.extend(artist.get_text() for artist in artists if artist.get_text())

    monkeypatch.setattr(plots.plt, "close", close)
    yield found
    monkeypatch.undo()
    plots.plt.close("all")


def sweep(values: dict, task="classification", metric="top1"):
    members = [
        {"depth": depth, "depth_fraction": depth / 12, "learning_rate": rate, "metrics": {metric: value}}
        for (depth, rate), value in values.items()
    ]
    best = members[0] | {"metrics": {metric: {"value": 0.75, "low": 0.5, "high": 1.0}}, "is_chosen_on": "test"}
    diverged = best | {"depth": members[-1]["depth"], "metrics": {metric: dict.fromkeys(("value", "low", "high"))}}
    about = {"task": task, "model": "org/a$b$c", "dataset": "actions"}
    baselines = {"frame_size": {metric: {"value": 0.25, "low": 0.2, "high": 0.3}}}
    return {**about, "members": members, "best": best, "per_depth": [best, diverged], "baselines": baselines}


def test_a_sweep_with_gaps_and_a_member_that_diverged(tmp_path, texts):
    plot_sweep(sweep({(7, 1e-3): 0.75, (7, 1e-4): 0.5, (10, 1e-3): None}), tmp_path / "sweep.png")
    assert {"75.0", "50.0", "diverged", "frame size"} <= set(texts)
    assert imread(tmp_path / "sweep.png").std() > 0.05


def test_differences_within_the_interval_have_colours_alike(tmp_path):
    results = sweep({(7, 1e-3): 0.75, (7, 1e-4): 0.74})
    norm = plots._norm(np.array([[75.0, 74.0]]), results)
    assert (norm.vmin, norm.vmax) == (49.5, 99.5)  # as wide as the interval, 50 to 100
    norm = plots._norm(np.array([[75.0, 5.0]]), results)
    assert (norm.vmin, norm.vmax) == (5, 75)


def test_relative_errors_are_not_percentages(tmp_path, texts):
    plot_sweep(sweep({(7, 1e-3): 0.0934, (7, 1e-4): 0.5}, "depth", "abs_rel"), tmp_path / "sweep.png")
    assert {"0.093", "0.500"} <= set(texts)


def test_probes_are_lines_over_the_depths_of_the_sweep(tmp_path, texts, monkeypatch):
    found = {}
    keep = plots.plt.Axes.plot

    def plot(axes, places, values, **style):
        found[style.get("label")] = list(places), list(values)
        return keep(axes, places, values, **style)

    monkeypatch.setattr(plots.plt.Axes, "plot", plot)
    results = sweep({(7, 1e-3): 0.75, (10, 1e-3): 0.5})
    plot_sweep(results, tmp_path / "sweep.png")
    assert not found and "best readout" in texts
    probes = [{"depth": 7, "knn_top1": 0.25, "ridge_top1": 0.5}, {"depth": 10, "knn_top1": 0.125, "ridge_top1": 0.75}]
    plot_sweep(results | {"probes": probes}, tmp_path / "sweep.png")
    assert found == {"k-NN": ([0, 1], [25, 12.5]), "ridge": ([0, 1], [50, 75])}
    assert {"k-NN", "ridge"} <= set(texts)


def test_curves(tmp_path, texts):
    rows = [
        {"step": step, "depth": depth, "learning_rate": rate, "loss": 1 / step if rate < 1e-3 else None}
        for step in range(1, 300)
        for depth in (4, 9)
        for rate in (1e-4, 1e-3)
    ]
    plot_curves(rows, "classification", tmp_path / "curves.png")
    assert {"learning rate 0.0001", "learning rate 0.001", "4", "9"} <= set(texts)
    assert "top-1 accuracy (%)" not in texts
    texts.clear()
    rows += [{"step": 150, "depth": 4, "learning_rate": 1e-4, "top1": 0.5}]
    plot_curves(rows, "classification", tmp_path / "curves.png")
    assert "top-1 accuracy (%)" not in texts  # a lone dot is no curve
    rows += [{"step": 299, "depth": 4, "learning_rate": 1e-4, "top1": 0.6}]
    plot_curves(rows, "classification", tmp_path / "curves.png")
    assert "top-1 accuracy (%)" in texts
    with pytest.raises(ValueError, match="log more often"):
        plot_curves([], "depth", tmp_path / "none.png")


@pytest.mark.parametrize("num_classes", [2, 174])
def test_confusions(tmp_path, texts, num_classes):
    confusion = 7 * np.eye(num_classes, dtype=int)
    confusion[1, 0] = 5
    names = [f"Pretending to put {'something ' * 6} number {number}" for number in range(num_classes)]
    nums = confusion.sum(axis=1).tolist()
    results = sweep({(7, 1e-3): 0.75}) | {
        "confusion": confusion.tolist(),
        "per_class": [{"name": name, "num": num, "accuracy": 0.5} for name, num in zip(names, nums, strict=True)],
    }
    plot_confusion(results, tmp_path / "confusion.png")
    (listed,) = [text for text in texts if ": 5 of 12" in text]
    assert listed.index("number 1") < listed.index("number 0: 5 of 12")
    assert imread(tmp_path / "confusion.png").shape[0] > 500


def test_unknown_depth_is_grey(tmp_path):
    metres = 1 + torch.rand(4, 16, 24)
    clip = DepthClip("redkitchen", (255 * torch.rand(4, 3, 16, 24)).byte(), metres, metres)

    def share_of_grey(clips) -> float:
        plot_depth(clips, tmp_path / "depth.png", num_frames=2)
        picture = imread(tmp_path / "depth.png")[..., :3]
        return (np.abs(picture - to_rgb(UNKNOWN_COLOUR)).max(axis=-1) < 0.01).mean()

    known = share_of_grey([clip, clip])
    metres = metres.clone()
    metres[:, :8] = 0
    metres[:, :2] = 30
    unknown = share_of_grey([clip, DepthClip("fr1", clip.video, metres, clip.predicted)])
    # Half of two of the four pictures of every frame of one clip of two
    assert unknown - known > 0.05
    share_of_grey([DepthClip("none", clip.video, 0 * metres, clip.predicted)])
