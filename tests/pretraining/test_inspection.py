"""The look at the data of a run: what it shows is what the run sees, and its advice follows from what it measures."""

import json
import shutil

import matplotlib.image
import numpy as np
import pytest
import torch
import yaml

from layerlock_hf import LayerLockViTConfig
from layerlock_hf.cli import inspect as inspect_data
from layerlock_hf.data import Augmentation, BadVideos, ClipTransform, PretrainingClips, load_videos
from layerlock_hf.data.inspection import advice as inspect_data_advice
from layerlock_hf.data.inspection import plots as inspect_data_plots
from layerlock_hf.data.inspection import steps as inspect_data_steps
from layerlock_hf.data.procedural import write_procedural_dataset


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder of four videos of 8 frames of 16 x 16 pixels, and one that is none."""
    folder = write_procedural_dataset(
        tmp_path_factory.mktemp("data"), 4, num_frames=8, image_size=16, progress=False
    ).with_name("videos")
    (folder / "broken.mp4").write_bytes(b"\x00 no video" * 100)
    return folder


@pytest.fixture
def inspect(videos, tiny_sizes, tmp_path):
    """Run the program on a recipe with some settings changed."""

    def inspect(*flags, **changes):
        settings = {
            "preset": "tiny",
            **tiny_sizes,
            "frame_stride": 1,
            "mask_ratio": 0.75,
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "train_data": str(videos),
            "report_to": "none",
            "use_cpu": True,
            **changes,
        }
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(settings))
        inspect_data.main(["--config", str(recipe), "--seconds", "0.1", *map(str, flags)])

    return inspect


@pytest.mark.parametrize("changes", [{}, {"augment_on_device": True, "clips_per_video": 2}], ids=repr)
def test_it_shows_clips_measures_them_and_leaves_a_run_alone(inspect, tmp_path, capfd, changes):
    report = tmp_path / "out" / "bad_videos.jsonl"
    report.parent.mkdir()
    report.write_text(json.dumps({"path": "before", "reason": "of a run", "used": False}) + "\n")
    before = report.read_bytes()
    inspect(
        "--output_dir", tmp_path / "out", "--num_clips", 3, "--step_seconds", 0.01, dataloader_num_workers=1, **changes
    )
    printed = capfd.readouterr().out
    assert report.read_bytes() == before
    assert sorted(path.name for path in report.parent.iterdir()) == ["bad_videos.jsonl", "clips.png", "times.png"]
    for name in ("clips.png", "times.png"):
        picture = matplotlib.image.imread(report.parent / name)
        assert min(picture.shape[:2]) > 300 and picture[..., :3].std() > 0.05
    for step in ("fetch", "decode", "transform", "hand over", "collate"):
        assert f"\n{step.rjust(9)}  " in printed
    assert "transfer" not in printed, "there is no GPU"
    assert ("augment, beside the model" in printed) == bool(changes)
    assert "that a worker spends on a clip on average" in printed
    assert "clips/s by 1 worker\n" in printed
    assert "The model takes 200.0 clips/s" in printed
    assert "replaced: " in printed and "broken.mp4: Invalid data" in printed


@pytest.mark.parametrize(
    "flags, culprit",
    [
        (["--num_clips", 0], "num_clips must be above 0, got 0"),
        (["--seconds", "nan"], "seconds must be above 0, got nan"),
        (["--mask_ration", 0.5], "mask_ration"),
        (["--train_data", "/nowhere"], "train_data"),
        (["--crop_scale", 0.3, 2.0], "crop_scale"),
    ],
)
def test_errors_are_for_people(inspect, tmp_path, flags, culprit):
    with pytest.raises(SystemExit, match=f"error: .*{culprit}"):
        inspect("--output_dir", tmp_path / "out", *flags)


def test_no_video_at_all(inspect, videos, tmp_path):
    (tmp_path / "videos").mkdir()
    shutil.copy(videos / "broken.mp4", tmp_path / "videos")
    with pytest.raises(SystemExit, match="none of 1 videos can be decoded.*broken.mp4"):
        inspect("--output_dir", tmp_path / "out", "--train_data", tmp_path / "videos")


@pytest.mark.parametrize("decode_timeout", [0, 20])
@pytest.mark.parametrize(
    "options",
    [{}, {"clips_per_video": 2, "frame_rate": 18.0}, {"augment_on_device": True}],
    ids=repr,
)
def test_what_it_shows_is_what_the_run_sees(videos, options, decode_timeout):
    transform = ClipTransform(12, crop_scale=(0.3, 1.0), jitter_strength=1.0)
    clips = PretrainingClips(
        load_videos(str(videos)), 10, 4, 3, transform, seed=7, decode_timeout=decode_timeout, **options
    )
    report = BadVideos(None, 5)
    looks = inspect_data_steps.look_at_clips(clips, decode_timeout, 10, report)
    assert len(looks) == len({look.name for look in looks}) == 4
    for look in looks:
        sample = clips[look.position]
        assert look.sample.keys() == sample.keys()
        if "augment_on_device" in options:
            assert torch.equal(look.sample["crop"], sample["crop"])
            assert look.augmentation == sample["augmentation"]
        else:
            assert np.array_equal(look.clip(12, 4), sample["pixel_values_videos"])
        assert look.clip(12, 4).shape == (4, 3, 12, 12)
        assert sample["is_padded"] and len(look.timestamps) < 4, "a clip spans 10 frames, of which there are 8"
        assert ("hand over" in look.seconds) == (decode_timeout > 0)
        assert (look.facts.height, look.facts.width) == (16, 16)
    assert report.count() == 1 + clips.bad_videos.count(), "the broken one, and what the run says of the others"
    assert clips.bad_videos.count() == (4 if "frame_rate" in options else 0)


def test_hidden_patches_are_covered(tiny_sizes):
    config = LayerLockViTConfig.from_preset("tiny", **tiny_sizes)  # a grid of (2, 4, 4)
    frames = np.full((4, 3, 16, 16), 200, np.uint8)
    shaded = inspect_data_plots._shade(frames, torch.tensor([0, 21]), torch.tensor([0, 1, 31]), config.grid_size)
    assert (shaded[:2, :, :4, :4] == 200).all(), "the first patch is seen in the first two frames"
    assert (shaded[2:, :, 4:8, 4:8] == 200).all(), "patch 21 is (1, 1, 1)"
    covered = np.array(shaded != 200).any(axis=1)
    assert covered.sum() == covered.size - 2 * 2 * 16
    red, _, blue = shaded[0, :, 0, 4]
    assert blue > red, "patch 1 is to be predicted"
    assert len(set(shaded[0, :, 0, 8])) == 1, "patch 2 is not"


def measured_of(seconds, **changes):
    """Measurements of one clip of a typical video."""
    facts = inspect_data_steps.Facts(height=1080, width=1920, codec="h264", frame_rate=30.0, keyframe_interval=250.0)
    drawn = Augmentation((0, 0, 940, 940), False, None)
    look = inspect_data_steps.Look(
        name="a.mp4",
        position=0,
        sample={"pixel_values_videos": torch.zeros(16, 3, 224, 224, dtype=torch.uint8)},
        timestamps=[index / 30 for index in range(16)],
        num_frames=300,
        facts=facts,
        augmentation=drawn,
        seconds={"fetch": 1e-3, "decode": 1e-3, "transform": 1e-3, "hand over": 1e-3} | seconds,
    )
    settings = {
        "rates": {1: 30.0, 4: 110.0},
        "num_workers": 4,
        "num_cores": 16,
        "load": 0.0,
        "has_gpu": True,
        "image_size": 224,
        "span": 31,
        "shortest_side": 258,
        "clips_per_video": 1,
        "clips_per_step": 32,
    }
    return inspect_data_advice.Measured([look], {"collate": 1e-3}, **{**settings, **changes})


@pytest.mark.parametrize(
    "seconds, expected",
    [
        ({"fetch": 16e-3}, ["fetch: 80% of the 20.0 ms", "copy of the videos on a local disk"]),
        (
            {"decode": 16e-3},
            ["decode: 80%", "1920x1080", "17.5 times", "every 250 frames", "--short_side 258 --gop 16"],
        ),
        ({"transform": 16e-3}, ["transform: 80%", "940x940", "224x224", "augment_on_device", "--short_side 258"]),
        ({"hand over": 16e-3}, ["hand over: 80%", "decode_timeout 0"]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_advice_follows_from_the_slowest_step(seconds, expected):
    told = " ".join(inspect_data_advice.advice(measured_of(seconds)))
    for words in expected:
        assert words in told
    assert ("clips_per_video" in told) == ("decode" in seconds)


def test_nothing_is_gained_by_preparing_small_videos_again():
    measured = measured_of({"decode": 16e-3})
    facts = measured.looks[0].facts
    facts.height, facts.width, facts.keyframe_interval = 256, 340, 12.0
    told = " ".join(inspect_data_advice.advice(measured))
    assert "340x256 (h264) with a keyframe every 12 frames" in told and "--short_side" not in told


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, "4 workers on 16 cores: 110.0 clips/s, 3.7 times one worker's 30.0. With dataloader_num_workers 16"),
        ({"num_cores": 4}, "all cores are in use"),
        ({"rates": {1: 30.0, 4: 45.0}}, "less than independent workers would make"),
        ({"num_workers": 0, "rates": {0: 25.0, 1: 30.0}}, "Without workers"),
        ({"num_workers": 1, "rates": {1: 30.0}}, "1 worker on 16 cores: 30.0 clips/s. With"),
        ({"load": 12.0}, "load average 12.0"),
        ({}, "one worker took 33.3 ms per clip"),  # while the steps take 5 ms
        ({"step_seconds": 0.4}, "takes 80.0 clips/s (32 per step of 0.4 s): the workers keep up"),
        ({"step_seconds": 0.2}, "come at 110.0: it waits 31% of the time. 6 workers would do"),
        (
            {"num_workers": 0, "rates": {0: 25.0, 1: 30.0}, "step_seconds": 0.4},
            "come at 25.0: it waits 76% of the time. 3 workers would do",
        ),
    ],
    ids=repr,
)
def test_advice_about_workers(changes, expected):
    assert expected in " ".join(inspect_data_advice.advice(measured_of({}, **changes)))


def test_advice_about_the_main_process():
    measured = measured_of({})
    measured.per_clip |= {"transfer": 15e-3, "augment": 5e-3}
    told = " ".join(inspect_data_advice.advice(measured))
    assert (
        "transfer and augment, beside the model: 20.00 ms per clip, at most 50 clips/s, less than the workers" in told
    )
