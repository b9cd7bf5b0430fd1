import json
import pickle
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from layerlock_hf.data import BadVideos, ClipTransform, PretrainingClips, center_crop, load_videos, read_clip
from layerlock_hf.evaluation import TrainingClips
from layerlock_hf.evaluation import labelled_clips as module


# By another name, as pytest takes what begins with Test for tests
ClipsInOrder = module.TestClips
TRANSFORM = ClipTransform(16, resize_factor=1.0)


def encode(path, number, num_frames=30, height=32, width=48, pixel_aspect=1):
    """A video that tells its number by red, the number of the frame by green, and left from right by blue."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = height, width, "yuv444p", 8
        stream.codec_context.sample_aspect_ratio = Fraction(pixel_aspect)
        for index in range(num_frames):
            image = np.empty((height, width, 3), np.uint8)
            image[...] = 30 + 40 * number, 8 * index % 240, 0
            image[:, width // 2 :, 2] = 100
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return str(path)


def number_of(frames):
    """The number of the video that frames (..., T, C, H, W) are of."""
    return round((float(frames[..., 0, :, :].float().mean()) - 30) / 40)


def indices_of(frames):
    """The numbers of the frames (..., T, C, H, W)."""
    return (frames[..., 1, :, :].float().mean(dim=(-1, -2)) / 8).round().int().tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four videos, of which the last has five frames; one that is truncated; one that is none; one that is absent."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(4):
        encode(folder / f"{number}.mp4", number, num_frames=5 if number == 3 else 30)
    whole = Path(encode(folder / "whole.mp4", 4, num_frames=120)).read_bytes()
    (folder / "4.mp4").write_bytes(whole[: len(whole) * 6 // 10])
    (folder / "5.mp4").write_bytes(b"this is no video" * 100)
    return folder


def listed(folder, *numbers):
    """The videos of these numbers, which are their labels, too."""
    path = folder / f"{'-'.join(map(str, numbers))}.jsonl"
    path.write_text("\n".join(json.dumps({"path": f"{number}.mp4"}) for number in numbers))
    return load_videos(str(path)), list(numbers)


@pytest.fixture
def healthy(folder):
    return listed(folder, 0, 1, 2, 3)


@pytest.fixture
def mixed(folder):
    return listed(folder, *range(7))


def training(labelled, num_samples=24, is_still=False, transform=TRANSFORM, **options):
    videos, labels = labelled
    reports = BadVideos(None, len(videos))
    clips = PretrainingClips(videos, num_samples, 4, transform=transform, bad_videos=reports, **options)
    return TrainingClips(clips, labels, is_still)


def in_order(labelled, **options):
    return ClipsInOrder(*labelled, num_frames=4, **{"transform": TRANSFORM, **options})


def same(items, others):
    for item, other in zip(items, others, strict=True):
        assert item.keys() == other.keys()
        for name, value in item.items():
            assert torch.equal(value, other[name]) if torch.is_tensor(value) else value == other[name]
    return True


def test_labels_are_those_of_the_videos_that_are_shown(mixed):
    clips = training(mixed, 28)
    samples = [clips[position] for position in range(28)]
    assert [sample["position"] for sample in samples] == list(range(28))
    assert all(sample.keys() == {"pixel_values_videos", "labels", "position"} for sample in samples)
    labels = [sample["labels"] for sample in samples]
    assert labels == [number_of(sample["pixel_values_videos"]) for sample in samples]
    assert set(labels) == set(range(5)), "5 and 6 cannot be shown, and 4 in part"
    assert clips.clips.bad_videos.count() == 3
    assert same(samples, clips.__getitems__(range(28)))


def test_clips_depend_on_seed_and_position_alone(mixed):
    transform = ClipTransform(16, jitter_strength=1.0, jitter_probability=0.8, gray_probability=0.1)
    runs = [training(mixed, transform=transform, seed=seed) for seed in (0, 0, 1)]
    first = [runs[0][position] for position in range(24)]
    again = pickle.loads(pickle.dumps(runs[1]))
    assert same(first, [again[position] for position in reversed(range(24))][::-1])
    other = [runs[2][position]["pixel_values_videos"] for position in range(24)]
    assert any(not torch.equal(a["pixel_values_videos"], b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("make", [training, in_order])
def test_workers_change_nothing(mixed, make):
    alone = make(mixed)
    loader = DataLoader(make(mixed), batch_size=3, num_workers=2, collate_fn=list)
    assert same([item for batch in loader for item in batch], [alone[index] for index in range(len(alone))])


@pytest.mark.parametrize("num_windows, starts", [(1, [11]), (2, [0, 23]), (7, [0, 4, 8, 12, 15, 19, 23])])
def test_windows_are_equally_spaced(healthy, num_windows, starts):
    item = in_order(healthy, num_windows=num_windows)[1]
    assert item["pixel_values_videos"].shape == (num_windows, 4, 3, 16, 16)
    assert indices_of(item["pixel_values_videos"]) == [list(range(start, start + 7, 2)) for start in starts]
    assert (item["labels"], item["index"], item["note"]) == (1, 1, None)


def test_windows_lie_in_videos_of_any_length(healthy):
    for num_windows in (1, 3, 7):
        clips = in_order(healthy, num_windows=num_windows)
        for available in range(1, 40):
            windows = clips.windows(available)
            assert len(windows) == num_windows
            assert all(0 <= window[0] <= window[-1] < available for window in windows)
            assert {len(window) for window in windows} == {min(4, (available + 1) // 2)}
            if num_windows > 1:
                assert windows[0][0] == 0 and windows[-1][-1] >= available - 2


def test_short_videos_repeat_their_last_frame(healthy):
    item = in_order(healthy, num_windows=3)[3]
    assert indices_of(item["pixel_values_videos"]) == [[0, 2, 4, 4]] * 3


@pytest.mark.parametrize("options", [{}, {"resize_factor": 1.5}, {"ignores_aspect": True}], ids=repr)
def test_the_centre_is_shown_as_it_is(healthy, folder, options):
    transform = ClipTransform(16, jitter_strength=1.0, flip_probability=1.0, **options)
    item = in_order(healthy, transform=transform)[0]
    frames = read_clip(str(folder / "0.mp4"), lambda available: list(range(11, 18, 2))).frames
    expected = center_crop(frames, 16, transform.central_factor, ignores_aspect=transform.ignores_aspect)
    assert torch.equal(item["pixel_values_videos"][0], expected)


def test_the_size_is_that_of_the_picture_as_shown(tmp_path):
    encode(tmp_path / "0.mp4", 0, 8, height=32, width=48, pixel_aspect=2)
    encode(tmp_path / "1.mp4", 1, 8, height=64, width=16)
    clips = in_order(listed(tmp_path, 0, 1))
    assert [clips[index]["size"].tolist() for index in range(2)] == [[32, 96], [64, 16]]


def test_videos_that_cannot_be_decoded_are_named(mixed, folder):
    items = list(in_order(mixed))
    assert [item["index"] for item in items] == list(range(7))
    assert ["error" in item for item in items] == [False] * 5 + [True] * 2
    assert items[5] == {"index": 5, "name": str(folder / "5.mp4"), "error": "text, no video", "kind": "text"}
    assert items[6] == {"index": 6, "name": str(folder / "6.mp4"), "error": "no such file", "kind": "missing"}
    with pytest.raises(IndexError, match="index must be at least 0 and less than 7, the number of videos, got 7"):
        in_order(mixed)[7]


def test_of_a_truncated_video_the_part_that_decodes_is_shown(mixed):
    item = in_order(mixed, num_windows=3)[4]
    first, middle, last = indices_of(item["pixel_values_videos"])  # modulo 30
    assert first == [0, 2, 4, 6] and middle[0] > 0
    num_decoded = int(item["note"].split()[1])
    assert item["note"] == f"only {num_decoded} of 120 frames decode"
    assert last[-1] == (num_decoded - 1) % 30


def test_a_video_is_decoded_once(healthy, monkeypatch):
    calls = []

    def read(*arguments):
        calls.append(arguments)
        return read_clip(*arguments)

    monkeypatch.setattr(module, "read_clip", read)
    in_order(healthy, num_windows=7, decode_timeout=0)[0]
    assert len(calls) == 1


def test_a_video_that_hangs_is_an_error(healthy, monkeypatch):
    monkeypatch.setattr(module, "read_clip", lambda *arguments: time.sleep(1000))
    assert "more than 0.2 seconds" in in_order(healthy, decode_timeout=0.2)[0]["error"]


def test_remote_videos_are_fetched(website, folder):
    (website.root / "0.mp4").write_bytes((folder / "0.mp4").read_bytes())
    (website.root / "list.csv").write_text(f"path\n{website.url}/0.mp4\n{website.url}/absent.mp4\n")
    items = list(in_order((load_videos(str(website.root / "list.csv")), [0, 1])))
    assert same(items[:1], [in_order(listed(folder, 0))[0]])
    assert items[1]["name"] == f"{website.url}/absent.mp4"


def test_a_still_clip_is_its_middle_frame(healthy):
    for make, options in ((training, {}), (in_order, {"num_windows": 3})):
        moving, still = make(healthy, **options)[2], make(healthy, is_still=True, **options)[2]
        frames, middle = still.pop("pixel_values_videos"), moving.pop("pixel_values_videos")[..., 2:3, :, :, :]
        assert str(still) == str(moving)
        assert torch.equal(frames, middle.expand_as(frames))
        assert frames.is_contiguous()


@pytest.mark.parametrize(
    "options, culprit",
    [
        ({"num_frames": 0}, "num_frames must be at least 1, got 0"),
        ({"frame_stride": 0}, "frame_stride must be at least 1, got 0"),
        ({"num_windows": 0}, "num_windows must be at least 1, got 0"),
        ({"frame_rate": 0.0}, "frame_rate must be above 0 .* got 0"),
        ({"decode_timeout": -1}, "decode_timeout must be between 0.1 and .* got -1"),
        ({"labels": [0]}, "labels must be one per video, got 1 for 4"),
    ],
    ids=repr,
)
def test_wrong_settings(healthy, options, culprit):
    with pytest.raises(ValueError, match=culprit):
        ClipsInOrder(**{"videos": healthy[0], "labels": healthy[1], **options})


def test_training_needs_a_label_for_every_video_and_finished_clips(healthy):
    with pytest.raises(ValueError, match="labels must be one per video, got 3 for 4 videos"):
        training((healthy[0], [0, 1, 2]))
    with pytest.raises(ValueError, match="augment_on_device"):
        training(healthy, augment_on_device=True)
