import csv

import av
import pytest

from layerlock_hf.data import DecodingError
from layerlock_hf.data.preparing.probing import probe_video
from layerlock_hf.data.preparing.transcoding import transcode


MAX_BYTES = 150_000  # of the larger files there are no kinds of their own


def test_the_facts_of_a_video(video):
    facts, damage = probe_video(video)
    assert damage is None
    assert (facts.num_frames, facts.fps, facts.duration) == (30, 10, 3)
    assert (facts.height, facts.width, facts.rotation, facts.sample_aspect_ratio) == (48, 64, 0, 1)
    assert (facts.codec, facts.pixel_format, facts.keyframe_interval) == ("h264", "yuv420p", 8)
    assert facts.has_constant_frame_rate
    assert probe_video(video, decode_all=False) == (facts, None)


def test_a_truncated_video(truncated):
    facts, damage = probe_video(truncated)
    assert 0 < facts.num_frames < 120
    assert damage == f"only {facts.num_frames} of 120 frames decode"
    assert not facts.has_constant_frame_rate


def starts(path):
    """Where each frame begins in the file."""
    with av.open(str(path)) as container:
        return [packet.pos for packet in container.demux(video=0) if packet.size]


def test_a_video_cut_between_two_frames(tmp_path, make_video):
    """Nothing fails to decode; only the header knows that frames are missing."""
    path = make_video(tmp_path / "cut.mp4")
    path.write_bytes(path.read_bytes()[: starts(path)[10]])
    facts, damage = probe_video(str(path))
    assert 0 < facts.num_frames <= 10
    assert damage == f"only {facts.num_frames} of 30 frames decode"


def test_damage_in_the_middle_is_found_by_decoding_all(tmp_path, make_video):
    path = make_video(tmp_path / "rotten.mp4")
    content = bytearray(path.read_bytes())
    start = starts(path)[17]
    content[start : start + 8] = b"\xff" * 8
    path.write_bytes(content)
    facts, damage = probe_video(str(path))
    assert 8 <= facts.num_frames <= 18
    assert damage == f"only {facts.num_frames} of 30 frames decode"
    assert probe_video(str(path), decode_all=False)[1] is None


@pytest.mark.parametrize("decode_all", [True, False])
def test_what_precedes_garbage_in_a_container_counts(tmp_path, video, decode_all):
    path = tmp_path / "a.nut"
    with av.open(video) as source, av.open(str(path), "w", format="nut") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                container.mux(packet)
    path.write_bytes(path.read_bytes() + bytes(100_000))
    facts, damage = probe_video(str(path), decode_all)
    assert (facts.num_frames, damage) == (30, "cannot be read to its end")
    transcode(str(path), str(tmp_path / "whole.mp4"), facts)
    assert probe_video(str(tmp_path / "whole.mp4"))[0].num_frames == 30


def test_a_variable_frame_rate(tmp_path, make_video):
    times = [*range(10), *range(20, 30)]
    facts, damage = probe_video(str(make_video(tmp_path / "vfr.mp4", times=times)))
    assert damage is None and facts.num_frames == 20
    assert facts.fps == pytest.approx(19 / 2.9)
    assert not facts.has_constant_frame_rate


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "empty"),
        (b"this is no video" * 100, "text"),
        (bytes(range(256)) * 20, "damaged"),
        (None, "missing"),
    ],
)
def test_files_that_are_no_videos(tmp_path, content, kind):
    path = tmp_path / "bad.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DecodingError) as caught:
        probe_video(str(path))
    assert caught.value.kind == kind


@pytest.mark.parametrize(("name", "kind"), [(b"encv", "encrypted"), (b"zzzz", "unsupported")])
def test_what_ffmpeg_does_not_decode(tmp_path, video, name, kind):
    with open(video, "rb") as file:
        content = file.read()
    path = tmp_path / "other.mp4"
    path.write_bytes(content.replace(b"avc1", name))
    with pytest.raises(DecodingError) as caught:
        probe_video(str(path))
    assert caught.value.kind == kind


@pytest.mark.slow
def test_odd_files_are_told_apart(shared):
    with open(shared / "odd" / "manifest.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if int(row["bytes"]) > MAX_BYTES:
            continue
        try:
            facts, damage = probe_video(str(shared / "odd" / row["path"]))
        except DecodingError:
            assert row["expected"] == "fail", row["path"]
            continue
        if row["codec"] == "" and row["category"] == "vvc_unsupported":
            continue  # newer versions of FFmpeg decode it
        assert row["expected"] == ("ok" if damage is None else "partial"), row["path"]
        assert facts.num_frames == int(row["decoded_frames"]) or damage is not None, row["path"]
        assert facts.codec == row["codec"], row["path"]
        assert sorted((facts.height, facts.width)) == sorted((int(row["height"]), int(row["width"]))), row["path"]


@pytest.mark.slow
def test_approximate_seeking_is_exact_where_we_say_so(shared):
    decoders = pytest.importorskip("torchcodec.decoders")
    num_constant = 0
    for path in sorted((shared / "odd").iterdir()):
        if path.stat().st_size > MAX_BYTES:
            continue
        try:
            facts, _ = probe_video(str(path), decode_all=False)
        except DecodingError:
            continue
        if not facts.has_constant_frame_rate or facts.num_frames > 400:
            continue
        num_constant += 1
        approximate, exact = (decoders.VideoDecoder(str(path), seek_mode=mode) for mode in ("approximate", "exact"))
        for index in reversed(range(0, facts.num_frames, 7)):
            found, wanted = approximate.get_frame_at(index), exact.get_frame_at(index)
            assert found.pts_seconds == pytest.approx(wanted.pts_seconds, abs=1e-4), (path.name, index)
    assert num_constant > 20
