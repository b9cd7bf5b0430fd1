"""Two processes: what is communicated is what learns, and nothing is left behind at a switch."""

import json

import pytest
from launching import HERE, launch


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """One launch for all: the lines of `savings_run`, among the logs that the Trainer prints."""
    printed = launch(HERE / "savings_run.py", tmp_path_factory.mktemp("run"), timeout=500)
    return [json.loads(line) for line in printed if line.startswith('{"run"')]


def of(lines, run):
    return [line for line in lines if line["run"] == run]


@pytest.mark.slow
@pytest.mark.parametrize("run", ["accumulation 1", "accumulation 2", "large"])
def test_what_learns_is_reduced_and_nothing_else(lines, run):
    rows = of(lines, run)
    assert len(rows) == 20
    for row in rows:
        # The first backward of a wrapper is discarded; accumulated steps communicate once
        assert row["syncs"] == [row["learning"]] * (1 + row["is_new"]), row
        assert row["moments"] == 2 * row["learning"]
        assert row["gradients_agree"] and row["parameters_agree"], row
        assert row["moved"] == [] and row["stale"] == 0, row


@pytest.mark.slow
def test_less_is_reduced_after_every_freezing(lines):
    rows = [row for row in of(lines, "accumulation 1") if row["rank"] == 0]
    assert [row["step"] for row in rows if row["is_new"]] == [1, 4, 6, 8]
    assert [row["num_frozen"] for row in rows if row["is_new"]] == [0, 2, 4, 6]
    sizes = [row["learning"] for row in rows if row["is_new"]]
    assert sizes == sorted(set(sizes), reverse=True) and sizes[-1] == 4 * (32 * 32 + 32)


@pytest.mark.slow
def test_eight_switches_leave_no_memory_behind(lines):
    for rank in (0, 1):
        rows = [row for row in of(lines, "large") if row["rank"] == rank]
        assert sum(row["is_new"] for row in rows) == 9
        assert {row["wrappers"] for row in rows} == {1}
        assert rows[0]["model"] > 135 * 2**20
        growth = rows[-1]["resident"] - rows[1]["resident"]
        assert growth < 0.6 * rows[0]["model"], [row["resident"] / 2**20 for row in rows]


@pytest.mark.slow
def test_frozen_dtype_and_compiling_change_nothing(lines):
    rows = {(line["run"], line["rank"]): line for line in lines if "rows" in line}
    assert {row["wrapper"] for row in rows.values()} == {"DistributedDataParallel"}
    assert rows["halved", 0]["rows"] == rows["bf16", 0]["rows"] and len(rows["bf16", 0]["rows"]) == 10
    assert rows["compiled", 0]["rows"] == rows["eager", 0]["rows"] and rows["compiled", 0]["graphs"] > 0
