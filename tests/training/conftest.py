"""Shared by the tests that kill runs."""

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
