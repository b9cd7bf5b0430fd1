from dataclasses import replace

import pytest
import torch
from ladder_clips import draw_clips

from layerlock_hf.data.procedural import video_scene
from layerlock_hf.evaluation import RUNGS, encode
from layerlock_hf.evaluation.controls import (
    FrameDifferences,
    OneFrame,
    constant_scores,
    labelled_scores,
    train_with_labels,
)
from layerlock_hf.models import LayerLockViTModel


@pytest.fixture
def video():
    return torch.rand(2, 4, 3, 16, 16)


def test_one_frame_sees_nothing_but_the_middle_frame(tiny_config, video):
    encoder = OneFrame(LayerLockViTModel(tiny_config).eval())
    other = torch.rand_like(video)
    other[:, 2] = video[:, 2]
    with torch.no_grad():
        tapped, tapped_other = encoder.tap(video, [2, 6]), encoder.tap(other, [2, 6])
    assert [tokens.shape for tokens in tapped] == [(2, 32, 32)] * 2
    assert all(torch.equal(*pair) for pair in zip(tapped, tapped_other, strict=True))
    first, second = tapped[1].unflatten(1, encoder.grid_size(video)).unbind(1)
    assert torch.equal(first, second)


def test_one_frame_cannot_tell_directions(tiny_config):
    """A clip and the same clip backwards: opposite motions, one middle frame."""
    scene, _ = video_scene(0, 0, num_objects=1)
    frames = scene.render(range(5), 16)[0]
    forwards, backwards = frames[:4], frames.flip(0)[:4]
    assert torch.equal(forwards[2], backwards[2])
    model = LayerLockViTModel(tiny_config).eval()
    clips = torch.stack([forwards, backwards])
    (tokens,) = encode(OneFrame(model), clips, [6])
    assert torch.equal(tokens[0], tokens[1])
    (tokens,) = encode(model, clips, [6])
    assert not torch.allclose(tokens[0], tokens[1])


def test_differences_are_those_of_frames(tiny_config, video):
    control = FrameDifferences(tiny_config)
    (tokens,) = control.tap(video, [0])
    assert tokens.shape == (2, 32, 2 * 4 * 4)
    assert not control.tap(video[:, :1].expand(-1, 4, -1, -1, -1), [0])[0].any()
    brighter = (video + 0.5).clone()
    torch.testing.assert_close(control.tap(brighter, [0])[0], tokens)
    assert control.grid_size(video) == tiny_config.grid_size


def test_constant_answers():
    fit, test = draw_clips(40, 1), draw_clips(40, 2)
    scores = constant_scores(fit, test)
    assert scores["motion_accuracy"] == pytest.approx(1 / 8)
    assert -0.1 < scores["position_r2"] < 0.05
    assert 0.3 < scores["depth_abs_rel"] < 0.8


def test_training_with_labels_learns_them(tiny_config):
    """Brightness tells the class and the depth; clips without depth teach the class alone."""
    clips = draw_clips(48, 1, clips_per_video=1)
    brightness = (clips.labels % 2).float()
    pixels = (60 + 120 * brightness[:, None, None, None, None].expand(-1, 4, 3, 16, 16)).byte()
    metres = (1 + 2 * brightness[:, None]).expand(-1, 32).clone()
    metres[::5] = torch.nan
    clips = replace(clips, clips=pixels, labels=brightness.long(), metres=metres)
    rungs = [rung for rung in RUNGS if rung.scenes == "full"]
    model, learned = train_with_labels(tiny_config, clips, 40, rungs)
    assert learned == rungs
    scores = labelled_scores(model, learned, clips)
    assert scores["motion_accuracy"] == 1 and scores["depth_abs_rel"] < 0.2
    assert scores["intervals"]["motion_accuracy"] == [1, 1]
    metres[:] = torch.nan
    assert [rung.name for rung in train_with_labels(tiny_config, clips, 1, rungs)[1]] == ["motion"]
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        train_with_labels(tiny_config, clips, 0)
