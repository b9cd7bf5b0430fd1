"""Shared by the tests that kill runs, and by those of teachers."""

import crash_run
import forked
import pytest
import torch


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The final state of a run of two processes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert forked.finish(forked.start(2, crash_run.run, folder, {})) == [0, 0]
    final = torch.load(folder / "final-0.pt")
    assert [row["step"] for row in final["log"]] == list(range(1, crash_run.NUM_STEPS + 1))
    assert {row["num_frozen"] for row in final["log"]} == {0, 2, 4, 6}
    return final


@pytest.fixture
def batch():
    """Two clips under two types of mask."""
    orders = [torch.rand(2, 32).argsort(dim=1) for _ in range(2)]
    return {
        "pixel_values_videos": torch.rand(2, 4, 3, 16, 16),
        "context_ids": [orders[0][:, :10], orders[1][:, :6]],
        "target_ids": [orders[0][:, 10:20], orders[1][:, 6:30]],
    }
