from dataclasses import replace

import av
import pytest
import torch

from layerlock_hf.data import read_clip
from layerlock_hf.data.preparing.probing import probe_video
from layerlock_hf.data.preparing.transcoding import needs_transcoding, target_size, transcode


def frames_of(path):
    return read_clip(str(path), lambda num_frames: list(range(num_frames))).frames.float()


@pytest.fixture
def path(tmp_path, make_video):
    return make_video(tmp_path / "video.mp4")


@pytest.fixture
def facts(path):
    return probe_video(str(path))[0]


def test_smaller_with_more_keyframes_and_the_same_times(tmp_path, path, facts):
    target = tmp_path / "target.mp4"
    transcode(str(path), str(target), facts, short_side=24, gop=4)
    found, damage = probe_video(str(target))
    assert damage is None
    assert (found.height, found.width, found.keyframe_interval, found.num_frames) == (24, 32, 4, 30)
    assert (found.codec, found.pixel_format, found.fps) == ("h264", "yuv420p", 10)
    assert found.has_constant_frame_rate
    assert not needs_transcoding(found, damage, 24, 4)


def test_the_same_bytes_again(tmp_path, path, facts):
    contents = set()
    for number in range(4):
        transcode(str(path), str(tmp_path / f"{number}.mp4"), facts, short_side=24, gop=4)
        contents.add((tmp_path / f"{number}.mp4").read_bytes())
    assert len(contents) == 1


def test_a_variable_frame_rate_stays(tmp_path, make_video):
    times = [*range(10), *range(20, 30)]
    source, target = make_video(tmp_path / "vfr.mp4", times=times), tmp_path / "target.mp4"
    facts, _ = probe_video(str(source))
    transcode(str(source), str(target), facts, gop=4)
    with av.open(str(target)) as container:
        found = [frame.time for frame in container.decode(video=0)]
    assert found == pytest.approx([time / 10 for time in times])


def test_times_that_matroska_rounds_are_exact_again(tmp_path, make_video):
    source, target = make_video(tmp_path / "video.mkv", rate=30), tmp_path / "target.mp4"
    facts, _ = probe_video(str(source))
    assert not facts.has_constant_frame_rate  # its header does not count the frames
    transcode(str(source), str(target), facts, gop=4)
    assert probe_video(str(target))[0].has_constant_frame_rate


@pytest.mark.parametrize(
    "rotation, rows",
    [(90, "0-+0"), (180, "-00-"), (270, "0+-0"), (180, "-00+"), (0, "+00-"), (270, "0++0"), (90, "0--0")],
    ids=["90", "180", "270", "mirrored", "upside down", "transposed", "transversed"],
)
def test_frames_are_shown_upright(tmp_path, path, rotation, rows):
    # What a phone writes: the matrix of the track's header (ISO/IEC 14496-12, 8.3.2), in 16.16 and 2.30 fixed point
    one = 0x00010000
    rows = [{"+": one, "-": 0xFFFF0000, "0": 0}[sign] for sign in rows]

    def matrix(a, b, c, d):
        return b"".join(value.to_bytes(4, "big") for value in (a, b, 0, c, d, 0, 0, 0, 0x40000000))

    content = path.read_bytes()
    start = content.index(b"tkhd")
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(content[:start] + content[start:].replace(matrix(one, 0, 0, one), matrix(*rows), 1))
    facts, _ = probe_video(str(turned))
    assert facts.rotation == rotation
    assert needs_transcoding(facts, None, None, 300) == (rotation != 0)
    target = tmp_path / "target.mp4"
    transcode(str(turned), str(target), facts, crf=1)
    assert probe_video(str(target))[0].rotation == 0
    assert (frames_of(turned) - frames_of(target)).abs().mean() < 3


def test_square_pixels_and_even_sides_without_enlarging(facts):
    assert target_size(facts, None) == (48, 64)
    assert target_size(facts, 100) == (48, 64)
    assert target_size(replace(facts, sample_aspect_ratio=2.0), None) == (24, 64)
    assert target_size(replace(facts, sample_aspect_ratio=0.5), None) == (48, 32)
    assert target_size(replace(facts, sample_aspect_ratio=2.0, rotation=90), None) == (48, 32)
    assert target_size(replace(facts, height=53, width=97), 31) == (30, 56)


def test_frames_after_the_damage_are_left_out(tmp_path, truncated):
    facts, damage = probe_video(truncated)
    assert needs_transcoding(facts, damage, None, 300) and not needs_transcoding(facts, damage, None, None)
    target = tmp_path / "target.mp4"
    transcode(truncated, str(target), facts, gop=16, crf=1)
    found, damage = probe_video(str(target))
    assert (found.num_frames, damage) == (facts.num_frames, None)
    assert (frames_of(target) - frames_of(truncated)).abs().mean() < 3


def test_colours_of_full_range(tmp_path, make_video):
    source, target = (
        make_video(tmp_path / "video.avi", codec="mjpeg", pixel_format="yuvj420p"),
        tmp_path / "target.mp4",
    )
    facts, _ = probe_video(str(source))
    assert facts.codec == "mjpeg" and needs_transcoding(facts, None, 300, None)
    transcode(str(source), str(target), facts, crf=1)
    difference = frames_of(source) - frames_of(target)
    assert torch.allclose(difference.mean((0, 2, 3)), torch.zeros(3), atol=1.5)
