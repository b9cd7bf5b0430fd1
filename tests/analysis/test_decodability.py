import sys

import pytest
import torch

from layerlock_hf.analysis.decodability import (
    check_folds,
    check_scikit_learn,
    cross_validated_accuracy,
    keep_patches,
    majority_share,
    occlusion_drop,
    probe_accuracy,
    random_places,
)


def test_what_is_linear_is_read_and_what_is_noise_is_not():
    labels = torch.arange(120) % 3
    features = torch.cat([torch.eye(3)[labels] * 2, torch.randn(120, 5)], dim=1)
    assert cross_validated_accuracy(features, labels) == 1
    assert probe_accuracy(features[:60], labels[:60], features[60:], labels[60:]) == 1
    assert cross_validated_accuracy(torch.randn(120, 5), labels) == pytest.approx(1 / 3, abs=0.15)


def test_the_accuracies_of_targets_are_averaged():
    known, unknown = torch.arange(90) % 2, torch.randint(0, 3, (90,))
    features = known[:, None] + 0.01 * torch.randn(90, 4)
    both = cross_validated_accuracy(features, torch.stack([known, unknown], dim=1))
    assert both == pytest.approx((1 + cross_validated_accuracy(features, unknown)) / 2)
    assert majority_share(torch.stack([known, torch.zeros(90).long()], dim=1)) == pytest.approx(0.75)


def test_clips_of_a_video_lie_in_one_fold():
    """Each video can be told from all others, but says nothing of the class: with it in both parts all is right."""
    videos = torch.arange(120) // 4
    labels = torch.randint(0, 2, (30,))[videos]
    features = torch.eye(30)[videos] * 5
    assert cross_validated_accuracy(features, labels) > 0.95
    assert cross_validated_accuracy(features, labels, videos) < 0.75


def test_a_class_needs_a_video_per_fold():
    check_folds([0, 0, 0, 2, 2, 2], ["up", "down", "left"])
    with pytest.raises(ValueError, match="at least 3 videos of every class .*, got 2 of down: give more, or"):
        check_folds([0, 1, 0, 1, 0], ["up", "down"])


def test_patches_that_are_kept():
    clips = torch.randint(1, 255, (2, 3, 3, 32, 48), dtype=torch.uint8)
    kept = keep_patches(clips, torch.tensor([[0], [4]]))
    assert torch.equal(kept[0, ..., :16, :16], clips[0, ..., :16, :16])
    assert torch.equal(kept[1, ..., 16:, 16:32], clips[1, ..., 16:, 16:32])
    assert ((kept > 0).sum(dim=(1, 2, 3, 4)) == 3 * 3 * 16 * 16).all()


def test_one_patch_in_each_half():
    clips = torch.full((1, 2, 3, 32, 64), 9, dtype=torch.uint8)
    kept = keep_patches(clips, torch.tensor([[3, 0]]))[0, 0, 0] > 0
    assert kept[16:, 16:32].all() and kept[:16, 32:48].all() and kept.sum() == 2 * 16 * 16


def test_places_depend_on_the_index_alone():
    clips = torch.zeros(64, 1, 3, 32, 48)
    places = random_places(clips, range(64))
    assert torch.equal(places[5:9], random_places(clips[5:9], range(5, 9)))
    assert set(places.flatten().tolist()) == set(range(6))
    with pytest.raises(ValueError, match="room for two patches of 16 x 16 pixels for OccDrop, got 16 x 16"):
        keep_patches(torch.zeros(1, 1, 3, 16, 16), torch.zeros(1, 1).long())


def one_patch_model(clips: torch.Tensor) -> torch.Tensor:
    """Looks at the patch at the top left alone: (B, T, C, H, W) -> (B, 3)."""
    return clips[..., :16, :16].float().mean(dim=(1, 3, 4))


def test_what_a_model_that_looks_at_one_patch_loses():
    """Nothing where its patch is kept; where one of four is kept at random, what it does not see it guesses."""
    labels = torch.arange(400) % 3
    clips = (torch.eye(3)[labels] * 200)[:, None, :, None, None].expand(-1, 2, -1, 32, 32).byte()
    whole = cross_validated_accuracy(one_patch_model(clips), labels)
    its_own = keep_patches(clips, torch.zeros(400, 1).long())
    assert whole == 1
    assert occlusion_drop(whole, cross_validated_accuracy(one_patch_model(its_own), labels)) == 0
    hidden = keep_patches(clips, random_places(clips, range(400)))
    drop = occlusion_drop(whole, cross_validated_accuracy(one_patch_model(hidden), labels))
    assert drop == pytest.approx(3 / 4 * (1 - 1 / 3), abs=0.06)


def test_without_scikit_learn(monkeypatch):
    check_scikit_learn()
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ValueError, match=r'scikit-learn must be installed .*: pip install "layerlock_hf\[analysis\]"'):
        check_scikit_learn()
