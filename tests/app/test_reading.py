"""What is taken of videos of strangers."""

import pytest

from layerlock_hf import LayerLockVideoProcessor
from layerlock_hf.app.reading import Reader, told
from layerlock_hf.data import DecodingError


def reader(max_mb: float = 1, max_seconds: float = 30, **settings) -> Reader:
    return Reader({"encoder": LayerLockVideoProcessor(num_frames=4, size=16, **settings)}, max_mb, max_seconds)


def numbers_of(taken) -> list[int]:
    """Of the frames of `counting`."""
    return [round(grey / 4) for grey in taken.frames.float().mean(dim=(1, 2, 3)).tolist()]


@pytest.mark.parametrize(
    ("max_seconds", "settings", "numbers"),
    [
        (30, {"frame_stride": 1}, [28, 29, 30, 31]),
        (2, {"frame_stride": 1}, [8, 9, 10, 11]),
        (2, {"frame_stride": 2}, [6, 8, 10, 12]),
        (2, {"frame_stride": 1, "frame_rate": 5}, [7, 9, 11, 13]),
        (0.2, {"frame_stride": 1}, [0, 1]),
    ],
)
def test_the_clip_is_the_middle_of_the_first_seconds(counting, max_seconds, settings, numbers):
    taken = reader(max_seconds=max_seconds, **settings)(counting)["encoder"]
    assert numbers_of(taken) == numbers
    assert taken.pixels.shape == (1, 4, 3, 16, 16)
    assert taken.span == pytest.approx((numbers[0] / 10, numbers[-1] / 10))
    start, end = taken.span
    assert taken.frame_rate == pytest.approx((len(numbers) - 1) / (end - start))
    assert told("/a/b.gif", taken) == f"{len(numbers)} frames of b.gif, from {start:.2f} to {end:.2f} s"


def test_large_files_are_not_opened(tmp_path):
    path = tmp_path / "large.mp4"
    with path.open("wb") as file:
        file.truncate(2_500_000)
    message = "^the file must have at most 1 MB, got 2.5 MB: cut the video, or choose a smaller one$"
    with pytest.raises(DecodingError, match=message):
        reader()(str(path))


def test_what_is_no_video_is_told_and_the_next_one_is_read(broken, counting):
    read = reader()
    with pytest.raises(DecodingError, match="^text, no video$"):
        read(broken)
    assert read(counting)["encoder"].note is None
