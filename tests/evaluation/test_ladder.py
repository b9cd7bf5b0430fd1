from dataclasses import replace

import pytest
import torch
from ladder_clips import FakeEncoder, draw_clips

from layerlock_hf.evaluation import RUNGS, climb
from layerlock_hf.evaluation.ladder import MIN_CLIPS, measured


RIDGE = {"position_r2", "velocity_r2", "future_r2", "easy_motion_accuracy", "motion_accuracy", "depth_r2"}


@pytest.fixture(scope="module")
def sets():
    fit, test = draw_clips(80, seed=1), draw_clips(40, seed=2)
    return {"easy": (fit, test), "full": (fit, test)}


@pytest.fixture(scope="module")
def scores(sets):
    """Of an encoder that knows all answers at depth 2, and none at depths 1 and 3."""
    return climb(FakeEncoder(*sets["full"], knows={2}), sets, [1, 2, 3])


def test_who_knows_the_answers_scores_all(scores):
    assert all(scores[name] > 0.9 for name in RIDGE), {name: scores[name] for name in RIDGE}
    assert scores["depth_abs_rel"] < 0.1
    assert scores["motion_accuracy_attention"] > 0.9 and scores["position_r2_attention"] > 0.8


def test_noise_scores_nothing(sets):
    scores = climb(FakeEncoder(*sets["full"]), sets, [1])
    for name in RIDGE:
        for ending in ("", "_attention"):
            assert scores[name + ending] < (0.35 if "accuracy" in name else 0.15)
    assert scores["depth_abs_rel"] > 0.2


def test_the_layer_and_its_scores_belong_together(scores):
    for rung in RUNGS:
        metric = rung.form.measure.main_metric
        for ending in ("", "_attention"):
            assert scores[f"{rung.name}_layer{ending}"] == 2
            row = scores["layers"][1]
            assert row["layer"] == 2
            assert row[f"{rung.name}_{metric}{ending}"] == scores[f"{rung.name}_{metric}{ending}"]
            low, high = scores["intervals"][f"{rung.name}_{metric}{ending}"]
            assert low <= scores[f"{rung.name}_{metric}{ending}"] <= high


def test_test_clips_do_not_choose_the_layer(sets):
    """Depth 1 knows the answers of the test clips alone, depth 2 those of the others."""
    fit, test = sets["full"]
    told, silent = FakeEncoder(fit, knows={2}), FakeEncoder(test, knows={1})
    encoder = FakeEncoder(fit, test)
    encoder.tap = lambda video, depths: (
        told if (video[0] * 255).round().byte().numpy().tobytes() in told.tables else silent
    ).tap(video, depths)
    scores = climb(encoder, {"full": (fit, test)}, [1, 2])
    assert scores["motion_layer"] == scores["depth_layer"] == scores["motion_layer_attention"] == 2
    # Other test clips, the same layers
    other = replace(test, labels=test.labels.flip(0), metres=test.metres.flip(0))
    again = climb(encoder, {"full": (fit, other)}, [1, 2])
    for row, other_row in zip(scores["layers"], again["layers"], strict=True):
        assert {k: v for k, v in row.items() if "held_out" in k} == {
            k: v for k, v in other_row.items() if "held_out" in k
        }


def test_scores_are_reproducible(sets, scores):
    torch.rand(3)
    assert climb(FakeEncoder(*sets["full"], knows={2}), sets, [1, 2, 3]) == scores


def test_clips_without_an_answer_are_not_asked(sets):
    fit, test = sets["easy"]
    nowhere = test.futures.clone()
    nowhere[::2] = torch.nan
    kept = test.where(torch.arange(len(test)) % 2 == 1)
    encoder = FakeEncoder(fit, test, knows={1})
    future = [rung for rung in RUNGS if rung.name == "future"]
    some, rest = (
        climb(encoder, {"easy": (fit, clips)}, [1], future) for clips in (replace(test, futures=nowhere), kept)
    )
    assert some["future_r2"] == pytest.approx(rest["future_r2"]) and some["future_r2"] > 0.9


def test_rungs_without_scenes_or_answers_are_left_out(sets):
    fit, test = sets["full"]
    futures = test.futures.clone()
    futures[MIN_CLIPS - 1 :] = torch.nan
    scores = climb(FakeEncoder(fit, test), {"easy": (fit, replace(test, futures=futures))}, [1])
    assert "position_r2" in scores
    assert not [name for name in scores if name.startswith(("future", "motion", "depth"))]


def test_the_bootstrap_draws_videos():
    """Copies of a clip within a video tell nothing new; as videos of their own they would."""
    once, copied = draw_clips(40, seed=3, clips_per_video=1), draw_clips(40, seed=3, clips_per_video=8)
    rung = next(rung for rung in RUNGS if rung.name == "motion")
    ids = torch.arange(40)
    is_right = torch.arange(40) % 4 > 0

    def width(clips, which):
        clips = replace(clips, labels=which % 8)
        predicted = torch.nn.functional.one_hot((which % 8 + ~is_right[which]) % 8, 8).float()
        low, high = measured(rung, predicted, clips)["intervals"]["motion_accuracy"]
        return high - low

    alone, of_videos = width(once, ids), width(copied, ids.repeat_interleave(8))
    of_clips = width(replace(copied, videos=torch.arange(320)), ids.repeat_interleave(8))
    assert of_videos == pytest.approx(alone, rel=0.15)
    assert of_clips < 0.6 * of_videos
