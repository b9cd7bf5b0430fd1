import csv
import logging
import os
import sys
from pathlib import Path

import pytest
import torch

from layerlock_hf.data import DecodingError, decoder_name, decoding, read_clip, read_clip_pyav


def middle(num_frames):
    start = max(0, num_frames // 2 - 4)
    return list(range(start, min(num_frames, start + 8)))


@pytest.fixture
def without_torchcodec(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    decoding._torchcodec_decoder.cache_clear()
    yield
    decoding._torchcodec_decoder.cache_clear()


@pytest.mark.parametrize("read", [read_clip, read_clip_pyav])
def test_reads_the_chosen_frames(video, read):
    clip = read(video, lambda num_frames: [0, 7, num_frames - 1])
    assert clip.frames.shape == (3, 3, 48, 64)
    assert clip.frames.dtype == torch.uint8
    assert (clip.num_frames, clip.note) == (30, None)
    brightness = clip.frames.float().mean(dim=(1, 2, 3))
    assert torch.allclose(brightness, torch.tensor([7.5, 63.5, 239.5]), atol=4)


@pytest.mark.parametrize("read", [read_clip, read_clip_pyav])
def test_bytes_read_as_the_file_does(video, read):
    assert torch.equal(read(Path(video).read_bytes(), middle).frames, read(video, middle).frames)


def test_both_decoders_give_the_same_frames(video):
    assert torch.equal(read_clip(video, middle).frames, read_clip_pyav(video, middle).frames)


@pytest.mark.parametrize(
    "name", ["rotation_90__video_90.mov", "rotation_180__video_180.mov", "gen_odd_size_97x53__a.mp4"]
)
def test_both_decoders_turn_frames_upright(shared, name):
    clip = read_clip(str(shared / "odd" / name), middle)
    assert torch.equal(clip.frames, read_clip_pyav(str(shared / "odd" / name), middle).frames)


def test_old_444_files_are_not_garbled_by_seeking(shared):
    path = str(shared / "unlabelled" / "dlc_mouse_yuv444.mp4")
    assert torch.equal(read_clip(path, middle).frames, read_clip_pyav(path, middle).frames)


@pytest.mark.slow
def test_both_decoders_agree_on_real_videos(shared):
    # Missing timestamps make the order of this one a matter of opinion.
    paths = sorted(set((shared / "unlabelled").glob("*.*")) - {shared / "unlabelled" / "hmdb51_cartwheel.avi"})
    for path in paths:
        if path.suffix not in (".csv", ".json", ".npz"):
            clip = read_clip(str(path), middle)
            if clip.note is None:
                difference = clip.frames.int() - read_clip_pyav(str(path), middle).frames.int()
                assert difference.abs().max() == 0, path


@pytest.mark.slow
def test_odd_files_decode_or_fail_as_listed(shared):
    with open(shared / "odd" / "manifest.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        try:
            clip = read_clip(str(shared / "odd" / row["path"]), middle)
        except DecodingError as error:
            assert row["expected"] == "fail", row["path"]
            assert str(error) and "\n" not in str(error)
        else:
            assert row["expected"] != "fail" or clip.note is not None, row["path"]


@pytest.mark.parametrize("read", [read_clip, read_clip_pyav])
def test_truncated_video_gives_the_part_that_decodes(truncated, read):
    clip = read(truncated, lambda num_frames: [0, num_frames - 1])
    assert 10 < clip.num_frames < 120
    assert clip.note == f"only {clip.num_frames} of 120 frames decode"
    assert clip.frames.shape[0] == 2


@pytest.mark.parametrize("read", [read_clip, read_clip_pyav])
@pytest.mark.parametrize("source", [b"", b"text" * 100, "missing.mp4", "http://localhost/a.mp4"])
def test_what_is_no_video_is_a_decoding_error(source, read):
    with pytest.raises(DecodingError):
        read(source, middle)


def test_names_are_no_protocols(video, tmp_path, monkeypatch):
    (tmp_path / "concat:a.mp4").write_bytes(Path(video).read_bytes())
    monkeypatch.chdir(tmp_path)
    assert read_clip("concat:a.mp4", middle).num_frames == 30
    assert read_clip_pyav("concat:a.mp4", middle).num_frames == 30


def test_what_is_not_a_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (tmp_path / "pipe.mp4", tmp_path, Path("/dev/zero")):
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
        monkeypatch.setattr(decoding, "PLAYLISTS", ())
        monkeypatch.setattr(decoding, "TEXT", b"")
    address, requests = server
    for target in (f"{address}/a.mp4", f"file:{video}") if guarded else (f"{address}/a.mp4",):
        text = playlists(target)[name]
        for file in (name, "b.mp4"):
            (tmp_path / file).write_text(text)
            for source in (str(tmp_path / file), text.encode()):
                for read in (read_clip, read_clip_pyav):
                    with pytest.raises(DecodingError):
                        read(source, middle)
    assert requests == []


def test_frames_of_changing_size_are_a_decoding_error(tmp_path, monkeypatch, video):
    sizes = iter([(3, 8, 8), (3, 8, 9)])
    monkeypatch.setattr(decoding, "_to_tensor", lambda frame: torch.zeros(next(sizes), dtype=torch.uint8))
    with pytest.raises(DecodingError, match="RuntimeError: .*size"):
        read_clip_pyav(video, lambda num_frames: [0, 1])


def test_pyav_takes_over_with_one_warning(video, without_torchcodec, caplog):
    with caplog.at_level(logging.WARNING):
        assert decoder_name() == "PyAV"
        assert read_clip(video, middle).note is None
    assert len(caplog.records) == 1
    assert "PyAV" in caplog.text
