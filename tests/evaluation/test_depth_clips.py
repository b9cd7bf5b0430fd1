import os
import pickle
import signal
from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from torch.utils.data import DataLoader

from layerlock_hf.data import BadData, BadVideos, ClipTransform, DecodingError
from layerlock_hf.evaluation import DepthTestClips, DepthTrainingClips, count_windows
from layerlock_hf.evaluation.depth_clips import crop_depth


HEIGHT, WIDTH = 120, 160
# Of rows and frames in a depth that holds both, and columns
ROW, FRAME = 2**9, 2**17


@dataclass
class Ramp:
    """Red and green are the column and the row of a pixel, blue the frame; depth is all three of them.

    The depth at column x and row y of the colours, or between two, is 2 x + 2^9 (2 y) + 2^17 (frame + 1).
    """

    name: str
    num_frames: int
    group: str = "scene"
    depth_scale: int = 1  # colour pixels per depth pixel
    bad: tuple = ()
    height: int = HEIGHT
    width: int = WIDTH

    def __len__(self):
        return self.num_frames

    def read(self, indices):
        if set(indices) & set(self.bad):
            raise DecodingError(f"frame {min(set(indices) & set(self.bad))} is damaged")
        frames = torch.tensor(indices).view(-1, 1, 1)
        shape = len(indices), self.height, self.width
        rows, columns = torch.arange(self.height).view(-1, 1), torch.arange(self.width)
        colors = torch.stack([columns.expand(shape), rows.expand(shape), frames.expand(shape)], dim=1).byte()
        scale = self.depth_scale
        rows, columns = (torch.arange(size // scale) * scale + (scale - 1) / 2 for size in shape[1:])
        return colors, 2 * columns + ROW * 2 * rows.view(-1, 1) + FRAME * (frames + 1)


@dataclass
class Crash(Ramp):
    def read(self, indices):
        os.kill(os.getpid(), signal.SIGSEGV)


@dataclass
class Short(Ramp):
    def read(self, indices):
        colors, depths = super().read(indices)
        return colors, depths[1:]


def small(name, num_frames, **options):
    return Ramp(name, num_frames, height=6, width=8, **options)


SMALL = ClipTransform(4, resize_factor=1.0)


def training(sequences, num_samples=24, transform=SMALL, **options):
    return DepthTrainingClips(sequences, num_samples, num_frames=4, transform=transform, **options)


def in_order(sequences, transform=SMALL, **options):
    return DepthTestClips(sequences, num_frames=4, transform=transform, **options)


def frames_of(item):
    """The numbers of the frames of which depth is known."""
    numbers = [int(depth.max() // FRAME) - 1 for depth in item["labels"]]
    return [number for number in numbers if number >= 0]


def same(items, others):
    for item, other in zip(items, others, strict=True):
        assert item.keys() == other.keys()
        for name, value in item.items():
            assert torch.equal(value, other[name]) if torch.is_tensor(value) else value == other[name]
    return True


@pytest.mark.parametrize("depth_scale", [1, 2, 4])
@pytest.mark.parametrize(
    "options",
    [{"resize_factor": 1.0}, {"resize_factor": 1.7}, {"crop_scale": (0.2, 1.0)}, {"ignores_aspect": True}],
    ids=repr,
)
def test_colours_and_depth_are_aligned(depth_scale, options):
    """To half a pixel of depth and the rounding of the colours; on average to a fraction of that."""
    transform = ClipTransform(32, **options)
    clips = training([Ramp("ramp", 20, depth_scale=depth_scale)], 12, transform, decode_timeout=0)
    test = in_order([Ramp("ramp", 20, depth_scale=depth_scale)], transform, decode_timeout=0)
    are_flipped = set()
    for item in [*(clips[position] for position in range(12)), test[0]]:
        colors, depth = item["pixel_values_videos"].view(4, 3, 32, 32).float(), item["labels"]
        assert depth.shape == (4, 32, 32) and depth.dtype == torch.float32
        assert torch.equal(depth // FRAME - 1, colors[:, 2]), "the same frames"
        # At the borders of a crop the filter that resizes colours is cut, which shifts them
        columns, rows = depth % ROW / 2, depth % FRAME // ROW / 2
        for seen, expected in ((columns, colors[:, 0]), (rows, colors[:, 1])):
            difference = (seen - expected)[..., 1:-1, 1:-1]
            assert difference.abs().max() <= depth_scale / 2 + 1
            assert difference.mean().abs() < 0.3 + depth_scale / 8
        are_flipped.add(bool(columns[0, 0, 0] > columns[0, 0, -1]))
    assert are_flipped == {False, True}


def test_crops_that_need_no_resizing_are_exact():
    transform = ClipTransform(60, resize_factor=2.0)
    for clips in (training([Ramp("ramp", 9)], transform=transform), in_order([Ramp("ramp", 9)], transform)):
        item = clips[0]
        columns, rows, frames = item["pixel_values_videos"].view(4, 3, 60, 60).float().unbind(dim=1)
        assert torch.equal(item["labels"], 2 * columns + ROW * 2 * rows + FRAME * (frames + 1))


def test_depth_is_never_averaged_and_what_is_unknown_stays_so():
    depths = torch.tensor([0.0, 1.0, 9.0])[torch.randint(3, (2, 24, 32))]
    transform = ClipTransform(20, crop_scale=(0.2, 1.0))
    for seed in range(20):
        augmentation = transform.draw(48, 64, torch.Generator().manual_seed(seed))
        assert set(crop_depth(depths, augmentation, 48, 64, 20).unique().tolist()) == {0.0, 1.0, 9.0}


def test_no_crop_of_any_shape_leaves_the_depth():
    for shape in [(1, 1), (7, 3), (480, 640)]:
        for size in (1, 3, 50):
            for seed in range(5):
                generator = torch.Generator().manual_seed(seed)
                augmentation = ClipTransform(size, crop_scale=(0.01, 1.0)).draw(48, 64, generator)
                assert crop_depth(torch.ones(1, *shape), augmentation, 48, 64, size).shape == (1, size, size)


def test_every_window_is_as_likely():
    sequences = [small("a", 10), small("short", 3), small("b", 30)]
    assert count_windows(sequences, 4, 2) == 4 + 1 + 24
    clips = training(sequences, 1450, decode_timeout=0)
    counts = Counter((len(frames), frames[0]) for frames in map(frames_of, (clips[index] for index in range(1450))))
    # Those of a and b that begin at frames 0 to 3 look alike here
    assert counts.keys() == {(2, 0)} | {(4, first) for first in range(24)}
    assert 20 < counts.pop((2, 0)) < 90
    for (_, first), count in counts.items():
        assert 20 < count / (2 if first < 4 else 1) < 90


def test_clips_depend_on_seed_and_position_alone():
    sequences = [small("a", 10), small("bad", 20, bad=(5,)), small("b", 30)]
    first = [training(sequences)[position] for position in range(24)]
    again = pickle.loads(pickle.dumps(training(sequences, decode_timeout=0)))
    assert same(first, [again[position] for position in reversed(range(24))][::-1])
    assert not torch.equal(first[0]["labels"], training(sequences, seed=1)[0]["labels"])


@pytest.mark.parametrize("make", [training, in_order])
def test_workers_change_nothing(make):
    sequences = [small("a", 10), small("bad", 20, bad=(5,)), small("b", 30)]
    alone = make(sequences)
    loader = DataLoader(make(sequences), batch_size=3, num_workers=2, collate_fn=list)
    assert same([item for batch in loader for item in batch], [alone[index] for index in range(len(alone))])


def test_short_sequences_repeat_their_last_frame_whose_depth_is_unknown():
    for item in (training([small("short", 3)], frame_stride=1)[0], in_order([small("short", 3)], frame_stride=1)[0]):
        colors = item["pixel_values_videos"].view(4, 3, 4, 4)
        assert colors[:, 2, 0, 0].tolist() == [0, 1, 2, 2]
        assert frames_of(item) == [0, 1, 2]
        assert not item["labels"][3].any()


def test_windows_that_cannot_be_read_are_replaced_and_reported(tmp_path):
    sequences = [small("good", 12), small("bad", 12, bad=(5,))]
    reports = BadVideos(str(tmp_path / "bad.jsonl"), count_windows(sequences, 4, 2))
    clips = training(sequences, 60, bad_videos=reports)
    first = [clips[position] for position in range(60)]
    assert {tuple(frames_of(item)) for item in first} == {tuple(range(start, start + 7, 2)) for start in range(6)}
    report = (tmp_path / "bad.jsonl").read_text()
    # 1, 3, 5, 7 and so on, whichever of them were drawn
    assert '{"path": "bad, frames 1 to 7", "kind": "damaged", "reason": "frame 5 is damaged", "used": false}' in report
    assert reports.count() == 3


def test_a_run_ends_where_nothing_can_be_read():
    with pytest.raises(BadData, match="10 windows in a row.*bad, frames"):
        training([small("bad", 300, bad=tuple(range(300)))])[0]
    with pytest.raises(BadData, match="of 6 videos cannot be used"):
        [training([small("bad", 12, bad=(5, 6))], 50)[position] for position in range(50)]


def test_a_crash_is_waited_for_once(monkeypatch):
    clips = training([Crash("crash", 7)], bad_videos=BadVideos(None, 1, 1.0))
    with pytest.raises(BadData, match="crash, frames 0 to 6 .the process that decodes it dies"):
        clips[0]
    monkeypatch.setattr(clips, "_read", None)
    with pytest.raises(BadData, match="dies"):
        clips[1]


def test_test_clips_do_not_overlap():
    sequences = [small("a", 10), small("short", 3), small("b", 30, group="other")]
    items = list(in_order(sequences))
    assert [frames_of(item) for item in items] == [
        [0, 2, 4, 6],
        [0, 2],
        *([first, first + 2, first + 4, first + 6] for first in (0, 8, 16)),
    ]
    assert [item["group"] for item in items] == ["scene"] * 2 + ["other"] * 3
    assert [item["index"] for item in items] == list(range(5))
    assert items[0]["pixel_values_videos"].shape == (1, 4, 3, 4, 4)
    assert items[0]["labels"].shape == (4, 4, 4)


@pytest.mark.parametrize(
    "max_clips, firsts", [(1, [48]), (2, [24, 72]), (5, [8, 24, 48, 64, 80]), (99, [*range(0, 90, 8)])]
)
def test_fewer_test_clips_are_spread_over_all(max_clips, firsts):
    items = list(in_order([small("long", 96)], max_clips=max_clips))
    assert [frames_of(item)[0] for item in items] == firsts


def test_test_clips_that_cannot_be_read_are_named():
    items = list(in_order([small("a", 8), small("bad", 24, bad=(12,)), Crash("crash", 8)]))
    assert ["error" in item for item in items] == [False, False, True, False, True]
    error = {"error": "frame 12 is damaged", "kind": "damaged"}
    assert items[2] == {"index": 2, "name": "bad, frames 8 to 14", **error}
    assert "dies" in items[4]["error"]


def test_a_reader_that_gives_too_little_is_a_mistake():
    for clips in (training([Short("short", 9)], decode_timeout=0), in_order([Short("short", 9)], decode_timeout=0)):
        with pytest.raises(ValueError, match="`read` must give 4 frames, got 4 of colour and 3 of depth"):
            clips[0]


@pytest.mark.parametrize("make", [training, in_order])
@pytest.mark.parametrize(
    "sequences, options, culprit",
    [
        ([], {}, "sequences must hold at least one sequence, got none"),
        ([small("empty", 0)], {}, "sequence 'empty' has no frames"),
        ([small("a", 9)], {"frame_stride": 0}, "frame_stride must be at least 1, got 0"),
        ([small("a", 9)], {"decode_timeout": 0.01}, "decode_timeout must be between 0.1 and .* got 0.01"),
    ],
    ids=repr,
)
def test_wrong_settings(make, sequences, options, culprit):
    with pytest.raises(ValueError, match=culprit):
        make(sequences, **options)
    with pytest.raises(ValueError, match="max_clips must be at least 1, got 0"):
        in_order([small("a", 9)], max_clips=0)


def test_positions_outside_are_refused():
    with pytest.raises(IndexError, match="position must be at least 0 and less than num_samples=24, got 24"):
        training([small("a", 9)])[24]
    with pytest.raises(IndexError, match="index must be at least 0 and less than 1, the number of clips, got 1"):
        in_order([small("a", 9)])[1]
