import numpy as np
import pytest
import torch

from layerlock_hf.data.procedural import read_tracks, video_scene, write_procedural_dataset
from layerlock_hf.evaluation import ProbeClips, load_clips
from layerlock_hf.evaluation.probe_clips import FUTURE


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    settings = {"num_frames": 14, "image_size": 32, "with_depth": True, "num_objects": 1, "progress": False}
    return write_procedural_dataset(tmp_path_factory.mktemp("easy"), 10, seed=3, **settings).parent


@pytest.fixture
def clips(folder, tiny_config) -> ProbeClips:
    return load_clips(folder, tiny_config, 1.0)


def test_clips_and_their_answers(folder, clips, tiny_config):
    assert clips.clips.shape == (30, 4, 3, 16, 16) and clips.clips.dtype == torch.uint8
    assert clips.metres.shape == (30, 32) and clips.metres.isfinite().all()
    assert torch.equal(clips.videos, torch.arange(10).repeat_interleave(3))
    for clip in range(30):
        video, start = clip // 3, clip % 3 * 4
        scene, label = video_scene(3, video, num_objects=1)
        assert clips.labels[clip] == label
        (track,), (is_seen,) = read_tracks(folder / "depth" / f"{video:06d}.npz")
        middle, later = start + 2, start + 3 + FUTURE
        assert clips.positions[clip].isnan().all() == ~is_seen[middle]
        if is_seen[middle]:
            torch.testing.assert_close(clips.positions[clip], track[middle])
            torch.testing.assert_close(clips.velocities[clip], (track[middle + 1] - track[middle - 1]) / 2)
            assert clips.velocities[clip].abs().max() < 0.2
        if later >= 14 or not is_seen[middle : later + 1].all():
            assert clips.futures[clip].isnan().all()
        else:
            torch.testing.assert_close(clips.futures[clip], track[later])
    assert 0 < len(clips.in_sight) < 30
    assert clips.in_sight.positions.isfinite().all() and clips.in_sight.velocities.isfinite().all()
    assert clips.futures.isfinite().any()


def test_positions_are_those_in_the_crop(folder, clips, tiny_config):
    """A crop by 1.25 shows 26 of the 32 pixels: from the fourth on."""
    cropped = load_clips(folder, tiny_config, 1.25)
    kept = cropped.positions.isfinite().all(dim=1)
    assert 0 < kept.sum() <= clips.positions.isfinite().all(dim=1).sum()
    torch.testing.assert_close(cropped.positions[kept], (clips.positions[kept] * 32 - 3) / 26)
    torch.testing.assert_close(cropped.velocities[kept], clips.velocities[kept] * 32 / 26)


def test_processes_read_the_same(folder, clips, tiny_config):
    other = load_clips(folder, tiny_config, 1.0, num_workers=2)
    for name, values in vars(clips).items():
        assert torch.equal(values.nan_to_num(-9), vars(other)[name].nan_to_num(-9))


def test_sets_are_joined(clips):
    both = ProbeClips.joined([clips, clips.where(clips.videos < 2)])
    assert len(both) == 36 and both.videos[-1] == 11 and len(both.videos.unique()) == 12


def test_videos_without_depth_or_tracks(folder, clips, tiny_config, tmp_path):
    write_procedural_dataset(tmp_path / "plain", 2, num_frames=4, image_size=32, progress=False)
    plain = load_clips(tmp_path / "plain", tiny_config, 1.0)
    assert plain.metres.isnan().all() and plain.positions.isnan().all() and len(plain.labels) == 2
    write_procedural_dataset(tmp_path / "old", 1, num_frames=4, image_size=32, with_depth=True, progress=False)
    np.savez_compressed(tmp_path / "old" / "depth" / "000000.npz", depth=np.ones((4, 32, 32), np.float32))
    with pytest.raises(ValueError, match="holds no tracks of objects"):
        load_clips(tmp_path / "old", tiny_config, 1.0)
    write_procedural_dataset(tmp_path / "short", 1, num_frames=3, image_size=32, progress=False)
    with pytest.raises(ValueError, match="must have at least 4 frames, those of a clip, got 3"):
        load_clips(tmp_path / "short", tiny_config, 1.0)
