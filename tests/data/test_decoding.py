import csv
import logging
import os
import re
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from layerlock_hf.data import Crop, DecodingError, decoding, read_clip
from layerlock_hf.data.decoding_pyav import read_pyav
from layerlock_hf.data.decoding_torchcodec import read_torchcodec
from layerlock_hf.data.transforms import resize
from layerlock_hf.models import video_reading_opening, video_reading_pyav
from layerlock_hf.models.video_reading_torchcodec import torchcodec_decoder

from .conftest import encode


def middle(num_frames):
    start = max(0, num_frames // 2 - 4)
    return list(range(start, min(num_frames, start + 8)))


def by(reader):
    """`read_clip` with this decoder alone."""

    def read(source, choose, crop=None, frame_rate=None):
        with video_reading_opening.openable(source) as file:
            return reader(file, choose, crop, frame_rate, "cpu")

    return read


READERS = [read_clip, by(read_pyav), by(read_torchcodec)]


@pytest.fixture
def without_torchcodec(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    torchcodec_decoder.cache_clear()
    yield
    torchcodec_decoder.cache_clear()


@pytest.mark.parametrize("read", READERS)
def test_reads_the_chosen_frames(video, read):
    clip = read(video, lambda num_frames: [0, 7, num_frames - 1])
    assert clip.frames.shape == (3, 3, 48, 64)
    assert clip.frames.dtype == torch.uint8
    assert (clip.num_frames, clip.note) == (30, None)
    brightness = clip.frames.float().mean(dim=(1, 2, 3))
    assert torch.allclose(brightness, torch.tensor([7.5, 63.5, 239.5]), atol=4)


@pytest.mark.parametrize("read", READERS)
def test_bytes_read_as_the_file_does(video, read):
    assert torch.equal(read(Path(video).read_bytes(), middle).frames, read(video, middle).frames)


def assert_same(clip, other):
    assert torch.equal(clip.frames, other.frames)
    assert torch.allclose(clip.timestamps, other.timestamps, atol=1e-3, equal_nan=True)
    assert (clip.num_frames, clip.pixel_aspect) == (other.num_frames, other.pixel_aspect)


def assert_decoders_agree(path, choose=middle):
    assert_same(by(read_pyav)(path, choose), by(read_torchcodec)(path, choose))


def test_both_decoders_give_the_same_frames(video):
    assert_decoders_agree(video)


@pytest.mark.parametrize(
    "name",
    [
        "rotation_90__video_90.mov",
        "rotation_180__video_180.mov",
        "gen_odd_size_97x53__a.mp4",
        "h264_10bit__h264_10bits.mp4",
        "gen_interlaced_mpeg2_mp4__a.mp4",
        "gen_vfr__a.mp4",
        "gen_start_offset_10s__a.mp4",
    ],
)
def test_both_decoders_agree_on_odd_videos(shared, name):
    assert_decoders_agree(str(shared / "odd" / name))


def test_old_444_files_are_not_garbled_by_seeking(shared):
    assert_decoders_agree(str(shared / "unlabelled" / "dlc_mouse_yuv444.mp4"))


def windows(num_frames):
    """A few frames here and there, backwards from nothing: each group is sought for."""
    return [i for start in range(0, num_frames, 37) for i in (start, start + 2) if i < num_frames]


@pytest.mark.slow
def test_both_decoders_agree_on_real_videos(shared):
    # torchcodec takes what is no frame for one in this
    paths = sorted(set((shared / "unlabelled").glob("*.*")) - {shared / "unlabelled" / "hmdb51_cartwheel.avi"})
    for path in paths:
        if path.suffix not in (".csv", ".json", ".npz"):
            assert_decoders_agree(str(path))


def by_ffmpeg(path, num_frames):
    """What the program `ffmpeg` decodes: frames (N, H, W, 3) and their times."""
    command = ["ffmpeg", "-nostdin", "-copyts", "-i", f"file:{path}", "-an", "-sn", "-vsync", "passthrough"]
    command += ["-vf", "showinfo", "-frames:v", str(num_frames), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    run = subprocess.run(command, capture_output=True, check=False)
    log = run.stderr.decode(errors="replace")
    width, height = map(int, re.search(r"Video: rawvideo.*?, (\d+)x(\d+)", log).groups())
    times = [float(time) for time in re.findall(r"pts_time:\s*(-?[\d.]+)", log)]
    return np.frombuffer(run.stdout, np.uint8).reshape(-1, height, width, 3), times


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is absent")
def test_healthy_odd_files_decode_as_by_ffmpeg(shared):
    with open(shared / "odd" / "manifest.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["expected"] == "ok"]
    # ffmpeg turns the first before it makes it RGB; decoders of two versions of FFmpeg differ on the second
    tolerated = {"hevc_dovi_rotated__dolbyVision-hdr.MOV": 12, "mpeg4_avi_bframes__sample.avi": 2}
    assert len(rows) == 78
    for row in rows:
        path = str(shared / "odd" / row["path"])
        frames, times = by_ffmpeg(path, 60)
        clip = read_clip(path, lambda num_frames: list(range(min(30, num_frames))))
        for frame, time in zip(clip.frames, clip.timestamps.tolist(), strict=True):
            nearest = int(np.argmin(np.abs(np.array(times) - time)))
            assert abs(times[nearest] - time) < 2e-3, (row["path"], time)
            difference = np.abs(frame.permute(1, 2, 0).numpy().astype(int) - frames[nearest])
            assert difference.max() <= tolerated.get(row["path"], 0), (row["path"], time)


@pytest.mark.slow
def test_seeking_gives_what_decoding_from_the_first_frame_gives(shared, monkeypatch):
    paths = [path for path in sorted((shared / "unlabelled").glob("*.*")) if path.suffix not in (".csv", ".json")]
    for path in paths[::2]:
        clip = read_clip(str(path), windows)
        with monkeypatch.context() as patch:
            for reader in ("_read_wanted", "_read_in_order"):
                patch.setattr(video_reading_pyav, reader, lambda *arguments: None)
            other = read_clip(str(path), windows)
        # Some frames are missing from these two, where only decoding all of them can tell
        if path.name not in ("dlib_mot20.mp4", "hmdb51_cartwheel.avi"):
            assert_same(clip, other)


@pytest.mark.slow
def test_odd_files_decode_or_fail_as_listed(shared):
    with open(shared / "odd" / "manifest.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        try:
            read_clip(str(shared / "odd" / row["path"]), middle)
        except DecodingError as error:
            assert row["expected"] == "fail", row["path"]
            assert str(error) and "\n" not in str(error)
        else:  # FFmpeg knows VVC from version 7.1 on
            assert row["expected"] != "fail" or row["codec"] == "" and "vvc" in row["path"], row["path"]


@pytest.mark.parametrize("read", READERS[:2])
def test_truncated_video_gives_the_part_that_decodes(truncated, read):
    clip = read(truncated, lambda num_frames: [0, num_frames - 1])
    assert 10 < clip.num_frames < 120
    assert clip.note == f"only {clip.num_frames} of 120 frames decode"
    assert clip.frames.shape[0] == 2


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("source", [b"", b"text" * 100, "missing.mp4", "http://localhost/a.mp4"])
def test_what_is_no_video_is_a_decoding_error(source, read):
    with pytest.raises(DecodingError):
        read(source, middle)


def test_names_are_no_protocols(video, tmp_path, monkeypatch):
    (tmp_path / "concat:a.mp4").write_bytes(Path(video).read_bytes())
    monkeypatch.chdir(tmp_path)
    assert read_clip("concat:a.mp4", middle).num_frames == 30
    assert by(read_torchcodec)("concat:a.mp4", middle).num_frames == 30


def test_what_is_not_a_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (tmp_path / "pipe.mp4", Path("/dev/zero")):
        with pytest.raises(DecodingError, match="not a regular file"):
            read_clip(str(path), middle)


def playlists(address):
    """Text that FFmpeg takes for a video at this address."""
    profile = "urn:mpeg:dash:profile:isoff-on-demand:2011"
    return {
        "a.mpd": f"""<?xml version="1.0"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="{profile}" type="static" mediaPresentationDuration="PT4S">
<Period><AdaptationSet mimeType="video/mp4" contentType="video"><Representation id="1" bandwidth="1000" width="64"
height="48" codecs="avc1.4d401f"><BaseURL>{address}</BaseURL></Representation></AdaptationSet></Period></MPD>""",
        "a.m3u8": f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{address}\n#EXT-X-ENDLIST\n",
        "a.ffconcat": f"ffconcat version 1.0\nfile {address}\n",
    }


@pytest.mark.parametrize("name", playlists(""))
@pytest.mark.parametrize("guarded", [True, False])
def test_what_a_playlist_names_is_not_opened(tmp_path, server, video, monkeypatch, name, guarded):
    if not guarded:  # FFmpeg itself keeps from the network what has got past the check
        monkeypatch.setattr(video_reading_opening, "PLAYLISTS", ())
        monkeypatch.setattr(video_reading_opening, "TEXT", b"")
    address, requests = server
    for target in (f"{address}/a.mp4", f"file:{video}") if guarded else (f"{address}/a.mp4",):
        text = playlists(target)[name]
        for file in (name, "b.mp4"):
            (tmp_path / file).write_text(text)
            for source in (str(tmp_path / file), text.encode()):
                for read in READERS:
                    with pytest.raises(DecodingError):
                        read(source, middle)
    assert requests == []


def test_frames_of_changing_size_are_a_decoding_error(tmp_path):
    small, large = (encode(tmp_path / name, 10, size, size) for name, size in (("a.mp4", 64), ("b.mp4", 96)))
    both = b""
    for path in (small, large):
        stream = subprocess.run(
            ["ffmpeg", "-v", "error", "-i", path, "-c", "copy", "-f", "h264", "-"], capture_output=True, check=True
        ).stdout
        both += stream
    with pytest.raises(DecodingError, match="size of the frames changes"):
        read_clip(both, lambda num_frames: list(range(20)))


def test_a_crop_keeps_a_part(video):
    asked = []

    def box(height, width, aspect):
        asked.append((height, width, aspect))
        return 4, 6, 20, 30

    whole = read_clip(video, middle).frames
    for read in READERS:
        assert torch.equal(read(video, middle, Crop(box)).frames, whole[..., 4:24, 6:36])
        resized = read(video, middle, Crop(box, image_size=16)).frames
        assert torch.equal(resized, resize(whole[..., 4:24, 6:36], 16))
    assert asked == [(48, 64, 1.0)] * 6


@pytest.mark.slow
def test_a_crop_of_odd_videos_is_part_of_the_whole(shared):
    with open(shared / "odd" / "manifest.csv", newline="") as file:
        paths = [str(shared / "odd" / row["path"]) for row in csv.DictReader(file) if row["expected"] == "ok"]
    for path in paths:
        boxes = []

        def box(height, width, aspect, boxes=boxes):
            boxes.append((height // 3, width // 5, height - height // 3, width // 2))
            return boxes[0]

        ways = (Crop(box), None)
        part, whole = (read_clip(path, lambda count: list(range(0, min(count, 9), 4)), crop) for crop in ways)
        top, left, height, width = boxes[0]
        assert torch.equal(part.frames, whole.frames[..., top : top + height, left : left + width]), path


def test_pixels_that_are_not_square_are_told(shared):
    for name, aspect in (("gen_sar_2_1__a.mp4", 2), ("sar_16_9__h264_white_frame_sar_16_9.mp4", 16 / 9)):
        for read in READERS:
            assert read(str(shared / "odd" / name), lambda num_frames: [0]).pixel_aspect == pytest.approx(aspect)


@pytest.fixture
def halting(tmp_path):
    """A video whose first half shows 20 frames a second and its second 5: frame i has brightness 5 + 8 i."""
    path = tmp_path / "halting.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20)
        stream.height, stream.width, stream.pix_fmt, stream.time_base = 48, 64, "yuv420p", Fraction(1, 100)
        for index in range(24):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 5 + 8 * index, np.uint8), format="rgb24")
            frame.pts, frame.time_base = 5 * min(index, 16) + 20 * max(0, index - 16), stream.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


@pytest.mark.parametrize("read", READERS)
def test_where_the_rate_varies_frames_are_counted_by_time(halting, read):
    clip = read(halting, lambda num_frames: list(range(num_frames)))
    assert clip.num_frames == 24
    tick = 2.2 / 23  # 24 frames over 0.8 and 1.4 seconds
    for index, time in enumerate(clip.timestamps.tolist()):
        shown_until = time + (0.05 if time < 0.79 else 0.2)
        assert time <= (index + 0.5) * tick < shown_until
    assert torch.all(clip.timestamps.diff() >= 0) and len(clip.timestamps.unique()) < 24


@pytest.mark.parametrize("read", READERS)
def test_a_frame_rate_resamples_the_timeline(video, read):
    """Of 30 frames at 10 per second."""
    slower = read(video, lambda num_frames: list(range(num_frames)), frame_rate=5)
    assert slower.num_frames == 15
    assert torch.allclose(slower.timestamps.diff(), torch.tensor(0.2, dtype=torch.float64))
    faster = read(video, lambda num_frames: list(range(num_frames)), frame_rate=20)
    assert faster.num_frames == 60
    assert torch.equal(faster.frames[::2], faster.frames[1::2])


def test_few_packets_are_read_and_few_frames_decoded(tmp_path, monkeypatch):
    """Of a long file with an index and a keyframe every 8 frames."""
    path = encode(tmp_path / "long.mp4", num_frames=400)
    runs = []
    decode_run = video_reading_pyav._decode_run
    monkeypatch.setattr(video_reading_pyav, "_decode_run", lambda *args: runs.append(args[2]) or decode_run(*args))
    monkeypatch.setattr(video_reading_pyav, "timeline_of_packets", None)  # would fail if called
    monkeypatch.setattr(video_reading_pyav, "_read_up_to_damage", None)
    clip = read_clip(path, lambda num_frames: [300, 301, 310, 390])
    assert clip.num_frames == 400
    assert [len(run) for run in runs] == [3, 1], "one seek for neighbouring groups of pictures"
    assert_decoders_agree(path, lambda num_frames: [300, 301, 310, 390])


def test_frames_that_depend_on_none_are_decoded_alone(tmp_path):
    path = encode(tmp_path / "intra.avi", num_frames=100, codec="ffv1")
    assert_decoders_agree(path, lambda num_frames: [3, 5, 7, 60])


def test_without_torchcodec_one_warning_is_all(broken, without_torchcodec, caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with pytest.raises(DecodingError):
                read_clip(broken, middle)
    assert len(caplog.records) <= 1


def test_the_other_decoder_takes_over_and_says_so(video, monkeypatch):
    def fail(*arguments):
        raise DecodingError("out of order")

    fail.__name__ = "read_pyav"
    monkeypatch.setattr(decoding, "read_pyav", fail)
    clip = read_clip(video, middle)
    assert "torchcodec" in clip.note and "out of order" in clip.note
    assert_same(clip, by(read_torchcodec)(video, middle))
