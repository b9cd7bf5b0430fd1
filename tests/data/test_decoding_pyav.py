import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from layerlock_hf.data import Crop, read_clip
from layerlock_hf.models import video_reading_pyav


def middle(num_frames):
    return list(range(num_frames // 2 - 4, num_frames // 2 + 4))


def every(num_frames):
    return list(range(num_frames))


def last(num_frames):
    return list(range(num_frames - 9, num_frames, 2))


def written(path, codec, images, pixel_format="yuv420p", ticks=1, **options):
    """A video of these frames, every so many ticks of a tenth of a second."""
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, pixel_format
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="pal8" if pixel_format == "pal8" else "rgb24")
            frame.pts, frame.time_base = ticks * index, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


@pytest.fixture
def images():
    """Frame i of 30 has brightness 8 i, give or take some noise."""
    noise = np.random.default_rng(0).integers(0, 9, (48, 64, 3))
    return [(8 * index + noise).astype(np.uint8) for index in range(30)]


def indices(clip):
    """Of the frames of `images` that a clip shows."""
    return ((clip.frames.float().mean(dim=(1, 2, 3)) - 4) / 8).round().int().tolist()


@pytest.mark.parametrize(
    ("matrix", "turned"),
    [
        ((-1, 0, 0, 1), lambda frames: frames.flip(-1)),
        ((1, 0, 0, -1), lambda frames: frames.flip(-2)),
        ((-1, 0, 0, -1), lambda frames: frames.flip(-1, -2)),
        ((0, 1, 1, 0), lambda frames: frames.transpose(-1, -2)),
        ((0, 1, -1, 0), lambda frames: frames.rot90(-1, (-2, -1))),
        ((0, -1, 1, 0), lambda frames: frames.rot90(1, (-2, -1))),
        ((0, 0, 0, 0), lambda frames: frames),
    ],
)
def test_frames_are_turned_and_mirrored_as_the_file_asks(images, tmp_path, matrix, turned):
    path = written(tmp_path / "a.mp4", "libx264", images)
    data, upright = Path(path).read_bytes(), read_clip(path, middle)
    place = data.index(struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30), data.index(b"tkhd"))
    a, b, c, d = (value << 16 for value in matrix)
    data = data[:place] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[place + 36 :]
    assert torch.equal(read_clip(data, middle).frames, turned(upright.frames))
    crop = read_clip(data, middle, Crop(lambda height, width, aspect: (5, 6, 20, 30)))
    assert torch.equal(crop.frames, turned(upright.frames)[..., 5:25, 6:36])


@pytest.mark.parametrize("choose", [every, middle, last])
def test_frames_without_times_of_showing_have_those_at_which_the_decoder_gives_them(images, tmp_path, choose):
    clip = read_clip(written(tmp_path / "a.avi", "libx264", images), choose)  # with B-frames
    assert indices(clip) == choose(30)
    assert torch.allclose(clip.timestamps.diff(), torch.tensor(choose(30), dtype=torch.float64).diff() / 10)


def test_a_frame_rate_resamples_frames_without_times(images, tmp_path):
    path = written(tmp_path / "a.avi", "libx264", images)
    assert indices(read_clip(path, every, frame_rate=5)) == list(range(1, 30, 2))


def test_a_file_that_cannot_be_sought_in_is_read(video, monkeypatch):
    def seek(*arguments):  # fails in this way in some streams of Motion JPEG and Dirac
        raise av.error.ArgumentError(22, "Invalid argument")

    expected = read_clip(video, last)
    monkeypatch.setattr(video_reading_pyav, "_decode_wanted", seek)
    clip = read_clip(video, last)
    assert clip.note is None
    assert torch.equal(clip.frames, expected.frames)


def test_what_precedes_garbage_in_a_container_is_read(images, tmp_path):
    whole = Path(written(tmp_path / "a.nut", "mpeg4", images, format="nut")).read_bytes()
    clip = read_clip(whole + bytes(100_000), middle)
    assert (clip.num_frames, clip.note) == (30, "cannot be read to its end")
    assert indices(clip) == middle(30)


def test_the_palette_of_a_file_is_not_lost_by_seeking(tmp_path):
    palette = np.stack([np.full(256, 255), *[np.arange(256)[::-1]] * 3], axis=1).astype(np.uint8)  # ARGB
    indexed = [(np.full((48, 64), 20 * index, np.uint8), palette) for index in range(10)]
    clip = read_clip(written(tmp_path / "a.avi", "rawvideo", indexed, "pal8"), last)
    assert clip.frames[:, 0, 0, 0].tolist() == [255 - 20 * index for index in last(10)]


def test_frames_that_avi_repeats_are_not_missing(images, tmp_path):
    path = written(tmp_path / "a.avi", "mpeg4", images, ticks=2)
    assert read_clip(path, middle).note is None
    whole = Path(path).read_bytes()
    assert "frames decode" in read_clip(whole[: len(whole) * 8 // 10], middle).note


def test_a_number_of_frames_that_have_no_room_in_the_file_is_not_believed(images, tmp_path):
    data = bytearray(Path(written(tmp_path / "a.avi", "mpeg4", images)).read_bytes())
    place = data.index(b"strh") + 8 + 32  # dwLength of the stream's header
    data[place : place + 4] = struct.pack("<i", 1 << 30)
    clip = read_clip(bytes(data), middle)
    assert (clip.num_frames, clip.note) == (30, None)
