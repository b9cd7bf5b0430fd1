"""Reading video files in the processor, against what pretraining reads of them."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from layerlock_hf import LayerLockVideoProcessor
from layerlock_hf.data import read_clip
from layerlock_hf.models.video_reading import read_decoder, read_file, read_windows


SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture
def processor(tiny_config):
    return LayerLockVideoProcessor.from_config(tiny_config)


def torchcodec_decoder(path):
    decoders = pytest.importorskip("torchcodec.decoders", exc_type=(ImportError, RuntimeError))
    return decoders.VideoDecoder(path)


def write_video(path, images, seconds=None, rate=10):
    """A video of frames (T, H, W, 3), shown from these seconds on."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"bf": "0"})
        stream.codec_context.time_base = Fraction(1, 1000)
        _, stream.height, stream.width, _ = images.shape
        stream.pix_fmt = "yuv420p"
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            time = index / rate if seconds is None else seconds[index]
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


def brightening(num_frames, height=48, width=64):
    """Frame i has brightness 4 i."""
    return np.repeat(np.arange(num_frames, dtype=np.uint8) * 4, height * width * 3).reshape(-1, height, width, 3)


def indices(frames):
    """Of the frames of `brightening` that are shown, from uint8 (T, C, H, W)."""
    return (frames.float().mean(dim=(1, 2, 3)) / 4).round().int().tolist()


def middle(num_frames):
    return list(range(num_frames // 2, num_frames))[:4]


@pytest.mark.parametrize(
    "name",
    [
        "odd/rotation_90__video_90.mov",
        "odd/vp9_odd_161x121__bear-vp9-odd-dimensions.webm",
        "odd/vp9_10bit__roadtrip-vp92-10bit.webm",
        "odd/edit_list_bframes_1fps__iibbibb_editlist_videoonly.mp4",
        "odd/gen_sar_2_1__a.mp4",
        "odd/mpeg4_avi_bframes__sample.avi",
        "unlabelled/dlc_mouse_yuv444.mp4",
    ],
)
def test_odd_files_are_read_as_the_data_does(name):
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    frames, aspect = read_file(str(path), middle)
    clip = read_clip(str(path), middle)
    assert torch.equal(frames, clip.frames)
    assert aspect == clip.pixel_aspect


@pytest.mark.parametrize("frame_rate", [None, 4, 25.0])
def test_frames_are_sampled_in_time_as_in_pretraining(processor, tmp_path, frame_rate):
    seconds = np.cumsum([0, *[0.02] * 30, *[0.5] * 8, *[0.05] * 12])
    path = write_video(tmp_path / "a.mp4", brightening(len(seconds)), seconds)
    clip = read_clip(path, processor.sample_frames, frame_rate=frame_rate)
    frames, _ = read_file(path, processor.sample_frames, frame_rate)
    assert torch.equal(frames, clip.frames)
    same = processor(path, frame_rate=frame_rate).pixel_values_videos
    assert torch.equal(same, processor(clip.frames).pixel_values_videos)
    # Half of the frames take a tenth of the time
    assert min(indices(frames)) > 25
    every, _ = read_file(path)
    assert indices(every) == list(range(len(seconds)))
    decoded, _ = read_decoder(torchcodec_decoder(path), processor.sample_frames, frame_rate)
    assert np.abs(np.subtract(indices(decoded), indices(frames))).max() <= 1  # it does not tell when frames are shown


def test_frame_rate_of_a_constant_one(processor, tmp_path):
    path = write_video(tmp_path / "a.mp4", brightening(60), rate=30)
    frames, _ = read_file(path, lambda available: list(range(available)), 10)
    assert indices(frames) == list(range(1, 60, 3))
    processor.frame_rate = 10
    expected = processor(frames, do_sample_frames=True).pixel_values_videos
    assert torch.equal(processor(path).pixel_values_videos, expected)
    assert torch.equal(processor(torchcodec_decoder(path)).pixel_values_videos, expected)


@pytest.mark.parametrize(
    "matrix",
    [(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0), (0, 1, -1, 0)],
)
def test_frames_are_turned_and_mirrored_as_in_pretraining(tmp_path, matrix):
    images = brightening(8)
    images[:, :10, :20] = 255  # tells all turns and mirrors apart
    data = Path(write_video(tmp_path / "a.mp4", images)).read_bytes()
    place = data.index(struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30), data.index(b"tkhd"))
    a, b, c, d = (value << 16 for value in matrix)
    data = data[:place] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[place + 36 :]
    frames, _ = read_file(data, middle)
    assert torch.equal(frames, read_clip(data, middle).frames)
    assert torch.equal(frames, torch.cat(list(read_windows(data, 3)))[middle(8)])


@pytest.mark.parametrize("num_frames", [1, 7, 8, 20])
def test_windows_hold_every_frame_once(tmp_path, num_frames):
    path = write_video(tmp_path / "a.mp4", brightening(15))
    windows = list(read_windows(path, num_frames))
    assert [len(window) for window in windows[:-1]] == [num_frames] * (len(windows) - 1)
    assert indices(torch.cat(windows)) == list(range(15))


def test_windows_end_at_damage(tmp_path, caplog):
    whole = Path(write_video(tmp_path / "a.mp4", brightening(60))).read_bytes()
    start = whole.index(b"mdat") + 4
    half = (int.from_bytes(whole[start - 8 : start - 4], "big") - 8) // 2
    damaged = whole[: start + half] + bytes(half) + whole[start + 2 * half :]
    num_read = sum(len(window) for window in read_windows(damaged, 8))
    assert 0 < num_read < 60
    assert f"only the first {num_read} frames decode" in caplog.text
    with pytest.raises(ValueError, match="64 bytes: "):
        next(read_windows(bytes(64), 8))
