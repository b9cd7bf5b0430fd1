"""Shared by the tests of runs of readouts."""

import pytest
from readout_runs import write_inputs

from layerlock_hf.evaluation import report


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The folder of `write_inputs`."""
    folder = tmp_path_factory.mktemp("readout")
    write_inputs(folder)
    return folder


@pytest.fixture
def without_pictures(monkeypatch):
    """Without those of a sweep, which take most of the time of a short run; fixtures of a module have them."""
    for name in ("plot_sweep", "plot_curves", "plot_confusion", "plot_depth"):
        monkeypatch.setattr(report, name, lambda *_: None)
