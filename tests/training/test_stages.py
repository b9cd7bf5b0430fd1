import pytest

from layerlock_hf.training import (
    FreezeSchedule,
    Latents,
    Objective,
    Pixels,
    Stage,
    blockwise,
    blockwise_in_sequence,
    check_stages,
    locked,
    mae,
    mae_and_latents,
    stage_at,
    teacher_latents,
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
        ({"num_freezes": 2, "target_layers": (1,)}, "target_layers must name 2 layers, one per freezing, got 1"),
        (
            {"num_freezes": 2, "target_layers": (1, 3)},
            "target_layers must lie within the frozen layers, got layer 3 from step 15 on, when only 2 layers",
        ),
        (
            {"num_freezes": 2, "target_layers": (0, 1)},
            "target_layers must lie within the frozen layers, got layer 0 from step 10",
        ),
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
        ([stage(0, 0), stage(5, 1), stage(5, 2)], "stages must have ascending starts, got 5 and then 5"),
        ([stage(0, 0), stage(5, 1), stage(3, 2)], "stages must have ascending starts"),
        ([stage(0, 2), stage(5, 1)], "num_frozen must not fall, .* got 2 -> 1 for the stage at step 5"),
    ],
)
def test_check_stages(stages, message):
    with pytest.raises(ValueError, match=message):
        check_stages(stages)


def test_check_stages_returns_what_is_right():
    stages = [stage(0, 0), stage(5, 0), stage(6, 2)]
    assert check_stages(stages) is stages


def test_locked_refuses_a_base_that_ends_too_late():
    with pytest.raises(ValueError, match="stages must have ascending starts"):
        locked([stage(0, 0), stage(10, 0)], FreezeSchedule(10, 5, num_freezes=1))


def test_locked_refuses_to_drop_objectives():
    schedule = FreezeSchedule(10, 5, 2, num_freezes=2)
    for base in (blockwise([2, 4, 6]), mae_and_latents(6, [2])):
        with pytest.raises(ValueError, match="set predict_latents to False"):
            locked(base, schedule)
        kept = locked(base, schedule, predict_latents=False)
        assert [s.num_frozen for s in kept] == [0, 2, 4]
        assert {s.objectives for s in kept} == {base[0].objectives}


def test_locked_that_keeps_its_targets():
    stages = locked(mae(6), FreezeSchedule(10, 5, 2, num_freezes=2), keep_targets=True, patch_fraction=0.5)
    new = [Objective(6, Latents(depth, has_own_head=True), patch_fraction=0.5) for depth in (2, 4)]
    assert [s.objectives for s in stages] == [mae(6)[0].objectives, (Objective(6, Pixels()), new[0])] + [
        (Objective(6, Pixels()), *new)
    ]


def test_layerlock_on_vjepa():
    """Layer 1 of the teacher from the start, then the last frozen one; normalised and with L1 throughout."""
    stages = locked(teacher_latents(24, 1), FreezeSchedule(10, 5, num_freezes=3))
    targets = [s.objectives[0].target for s in stages]
    assert targets == [Latents(depth, of="teacher", normalize=True, loss="l1") for depth in (1, 1, 2, 3)]
    assert [s.num_frozen for s in stages] == [0, 1, 2, 3]


def test_blockwise():
    (stage,) = blockwise([3, 6, 9, 12], overlap=1)
    assert stage.objectives == tuple(Objective(depth, Pixels(normalize=True)) for depth in (3, 6, 9, 12))
    assert (stage.local, stage.overlap, stage.num_frozen) == (True, 1, 0)
    assert stage.labels == [f"depth_{depth}/pixels" for depth in (3, 6, 9, 12)]
    in_sequence = blockwise_in_sequence([3, 6, 9, 12], 100, normalize=False)
    assert [(s.start, s.num_frozen, s.objectives[0].read_at) for s in in_sequence] == [
        (0, 0, 3),
        (100, 3, 6),
        (200, 6, 9),
        (300, 9, 12),
    ]
    assert check_stages(in_sequence) and not any(s.local for s in in_sequence)
    assert {s.objectives[0].target for s in in_sequence} == {Pixels()}


@pytest.mark.parametrize("overlap, local", [(-1, True), (1, False)])
def test_impossible_overlaps(overlap, local):
    with pytest.raises(ValueError, match="overlap must not be negative, and needs a local stage"):
        Stage(0, 0, mae(6)[0].objectives, local=local, overlap=overlap)


def test_a_head_predicts_one_target():
    pair = (Objective(6, Latents(1)), Objective(6, Latents(2)))
    with pytest.raises(ValueError, match="several targets with one head"):
        Stage(0, 2, pair)
    Stage(0, 2, (pair[0], Objective(6, Latents(2, has_own_head=True))))
    Stage(0, 2, (pair[0], Objective(4, Latents(2))))


def test_weights_rise_along_a_cosine():
    objective = Objective(6, Pixels(), weight=2.0, weight_ramp_steps=4)
    weights = [objective.weight_at(step) for step in (0, 1, 2, 3, 4, 100)]
    assert weights == pytest.approx([0, 1 - 0.5**0.5, 1, 1 + 0.5**0.5, 2, 2])
    (now,) = Stage(0, 0, (objective,)).at(2).objectives
    assert now == Objective(6, Pixels(), weight=pytest.approx(1.0))
