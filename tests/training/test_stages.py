import pytest

from layerlock_hf.training import (
    FreezeSchedule,
    Latents,
    Objective,
    Pixels,
    Stage,
    check_stages,
    locked,
    mae,
    stage_at,
)


def stage(start, num_frozen):
    return Stage(start, num_frozen, (Objective(6, Pixels()),))


def test_stage_at_borders():
    stages = [stage(0, 0), stage(10, 1), stage(20, 2)]
    found = {step: stage_at(stages, step).num_frozen for step in (0, 9, 10, 11, 19, 20, 10**6)}
    assert found == {0: 0, 9: 0, 10: 1, 11: 1, 19: 1, 20: 2, 10**6: 2}
    assert stage_at(list(reversed(stages)), 10) is stages[1]


@pytest.mark.parametrize(
    "schedule, freezings",
    [
        (FreezeSchedule(10, 5, num_freezes=3), [(10, 1), (15, 2), (20, 3)]),
        (FreezeSchedule(10, 5, 2, num_freezes=2), [(10, 2), (15, 4)]),
        (FreezeSchedule(10, 5, 2, max_frozen=5), [(10, 2), (15, 4), (20, 5)]),
        (FreezeSchedule(10, 5, 2, max_frozen=4), [(10, 2), (15, 4)]),
        (FreezeSchedule(10, 5, 2, num_freezes=4, max_frozen=5), [(10, 2), (15, 4), (20, 5), (25, 5)]),
        (FreezeSchedule(10, 5, 2, num_freezes=1, max_frozen=5), [(10, 2)]),
    ],
)
def test_freezings(schedule, freezings):
    assert schedule.freezings() == freezings


@pytest.mark.parametrize(
    "fields, message",
    [
        ({}, "num_freezes or max_frozen"),
        ({"start": 0, "num_freezes": 1}, "start must be at least 1"),
        ({"interval": 0, "num_freezes": 1}, "interval must be at least 1"),
        ({"layers_per_freeze": 0, "num_freezes": 1}, "layers_per_freeze must be at least 1"),
        ({"num_freezes": 0}, "num_freezes must be at least 1"),
        ({"max_frozen": -1}, "max_frozen must be at least 1"),
        ({"num_freezes": 2, "target_layers": (1,)}, "target_layers names 1 layers for 2 freezings"),
        ({"num_freezes": 2, "target_layers": (1, 3)}, "target_layers: layer 3 .* step 15 .* 2 layers"),
        ({"num_freezes": 2, "target_layers": (0, 1)}, "target_layers: layer 0"),
    ],
)
def test_impossible_schedules(fields, message):
    with pytest.raises(ValueError, match=message):
        FreezeSchedule(**{"start": 10, "interval": 5, **fields})


def test_mae():
    assert mae(6) == [Stage(0, 0, (Objective(6, Pixels()),))]
    assert mae(6, True, 0.5) == [Stage(0, 0, (Objective(6, Pixels(True), patch_fraction=0.5),))]


def test_locked():
    schedule = FreezeSchedule(10, 5, 2, num_freezes=2)
    base = mae(6, patch_fraction=0.5)
    assert locked(base, schedule, patch_fraction=0.25) == [
        *base,
        Stage(10, 2, (Objective(6, Latents(2), patch_fraction=0.25),)),
        Stage(15, 4, (Objective(6, Latents(4), patch_fraction=0.25),)),
    ]
    targets = locked(base, FreezeSchedule(10, 5, 2, num_freezes=2, target_layers=(1, 3)))
    assert [stage.objectives[0].target for stage in targets] == [Pixels(), Latents(1), Latents(3)]
    assert [stage.num_frozen for stage in targets] == [0, 2, 4]
    assert len(base) == 1  # not changed in place


def test_locked_that_goes_on_predicting_pixels():
    stages = locked(mae(6), FreezeSchedule(10, 5, num_freezes=2), predict_latents=False)
    assert [(stage.start, stage.num_frozen) for stage in stages] == [(0, 0), (10, 1), (15, 2)]
    assert {stage.objectives for stage in stages} == {mae(6)[0].objectives}


@pytest.mark.parametrize(
    "stages, message",
    [
        ([], "start at step 0"),
        ([stage(1, 0)], "start at step 0"),
        ([stage(0, 0), stage(5, 1), stage(5, 2)], "one after the other, got starts 5 and 5"),
        ([stage(0, 0), stage(5, 1), stage(3, 2)], "one after the other"),
        ([stage(0, 2), stage(5, 1)], "unfreezes layers: 2 -> 1"),
    ],
)
def test_check_stages(stages, message):
    with pytest.raises(ValueError, match=message):
        check_stages(stages)


def test_check_stages_returns_what_is_right():
    stages = [stage(0, 0), stage(5, 0), stage(6, 2)]
    assert check_stages(stages) is stages


def test_locked_refuses_a_base_that_ends_too_late():
    with pytest.raises(ValueError, match="one after the other"):
        locked([stage(0, 0), stage(10, 0)], FreezeSchedule(10, 5, num_freezes=1))
