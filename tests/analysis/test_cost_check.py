"""A plan beside logs that keep to it, or do not."""

import pytest

from layerlock_hf.analysis import Machine, compare_with_log, find_gpu, plan_cost


@pytest.fixture(scope="module")
def planned(plan_run, two_freezes):
    """A run of three stages on one GPU, and its plan."""
    run = plan_run(**two_freezes)
    return run, plan_cost(run, Machine(find_gpu("a100")))


def log_of(plan, factors=(1.0, 1.0, 1.0), memory=1.0):
    """Two lines of every stage, whose steps take so many times as long as planned; the first tells of the switch."""
    rows, flops = [], 0.0
    for index, (stage, factor) in enumerate(zip(plan["stages"], factors, strict=True)):
        speed = 1e9 / stage["executed_flops_per_clip"] / factor
        for step, share in ((stage["start"] + 2, 0.1), (stage["start"] + stage["num_steps"], 1.0)):
            row = {"step": step, "stage": index, "num_frozen": stage["num_frozen"], "clips_per_second": share * speed}
            row |= {"peak_memory_gib": memory * plan["peak_memory_bytes"] / 2**30}
            flops = (
                stage["cumulative_flops"]
                - (stage["start"] + stage["num_steps"] - step) * 8 * (stage["step_flops_per_clip"])
            )
            rows.append(row | {"total_flops": flops})
    return rows


def test_a_run_as_planned(planned):
    run, plan = planned
    found = compare_with_log(run, plan, log_of(plan), knows_memory=True)
    assert [stage["is_off"] for stage in found["stages"]] == [False] * 3
    for stage in found["stages"]:
        assert stage["time_ratio"] == pytest.approx(stage["planned_time_ratio"])
        assert stage["flops_per_second"] == pytest.approx(1e9)
    assert len({stage["planned_time_ratio"] for stage in found["stages"]}) == 3
    assert found["flops"]["planned"] == pytest.approx(found["flops"]["logged"]) == pytest.approx(plan["total_flops"])
    assert found["memory"] == {
        "planned": plan["peak_memory_bytes"],
        "logged": pytest.approx(plan["peak_memory_bytes"]),
        "is_off": False,
    }


@pytest.mark.parametrize(("factor", "is_off"), [(1.2, False), (1.3, True), (0.85, False), (0.7, True)])
def test_the_stage_that_is_off(planned, factor, is_off):
    run, plan = planned
    found = compare_with_log(run, plan, log_of(plan, (1.0, factor, 1.0)), knows_memory=True)
    assert [stage["is_off"] for stage in found["stages"]] == [False, is_off, False]


def test_memory_that_is_off(planned):
    run, plan = planned
    for knows, memory, is_off in ((True, 1.3, True), (True, 1.2, False), (False, 9.0, None)):
        found = compare_with_log(run, plan, log_of(plan, memory=memory), knows)
        assert found["memory"]["is_off"] is is_off


def test_a_run_that_goes_on(planned):
    """Of which nothing was logged before its second stage, and nothing of its third."""
    run, plan = planned
    found = compare_with_log(run, plan, log_of(plan)[2:3], knows_memory=True)
    (stage,) = found["stages"]
    assert (stage["stage"], stage["time_ratio"], stage["planned_time_ratio"]) == (1, 1, 1)
    assert found["flops"]["step"] == 42 and found["flops"]["planned"] == pytest.approx(found["flops"]["logged"])


def test_logs_that_say_nothing(planned):
    run, plan = planned
    with pytest.raises(ValueError, match="metrics.jsonl must hold clips_per_second, got no line with it"):
        compare_with_log(run, plan, [{"step": 5, "loss": 0.1}], knows_memory=True)
    rows = [row | {"num_frozen": 5} for row in log_of(plan)]
    with pytest.raises(ValueError, match="got 5 frozen layers in stage 0: were files of two runs mixed"):
        compare_with_log(run, plan, rows, knows_memory=True)
