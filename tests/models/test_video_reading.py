"""Reading video files in the processor, against what pretraining reads of them."""

import functools
import http.server
import re
import struct
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from layerlock_hf import LayerLockVideoProcessor
from layerlock_hf.data import files, read_clip
from layerlock_hf.models import video_reading, video_reading_opening
from layerlock_hf.models.video_reading import read_file, read_windows
from layerlock_hf.models.video_reading_pyav import Decoding
from layerlock_hf.models.video_reading_rgb import Upright
from layerlock_hf.models.video_reading_timeline import MAX_GAPS, shown_frames
from layerlock_hf.models.video_reading_torchcodec import read_decoder, read_decoder_windows


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


def write_avi(path, images, codec, num_b_frames):
    """Ten frames (T, H, W, 3) a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options={"bf": str(num_b_frames)})
        _, stream.height, stream.width, _ = images.shape
        stream.pix_fmt = "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return str(path)


def write_xvid(path, images):
    """An AVI as XviD writes it: with B-frames, times of decoding alone, and two packets that hold no frame."""
    with av.open(str(path), "w") as container:
        options = {"bf": "1", "g": "300", "sc_threshold": "1000000000"}
        stream = container.add_stream("mpeg4", rate=10, options=options)
        _, stream.height, stream.width, _ = images.shape
        frames = [av.VideoFrame.from_ndarray(image, format="rgb24") for image in images]
        packets = [bytes(packet) for frame in [*frames, None] for packet in stream.encode(frame)]
        packets[0] = b"\x00\x00\x01\xb2XviD0050" + packets[0]  # user data, without which short packets are damage
        for index, data in enumerate([packets[0], b"\x7f", b"\x7f", *packets[1:]]):
            packet = av.Packet(data)
            packet.stream, packet.dts, packet.pts, packet.time_base = stream, index, index, Fraction(1, 10)
            packet.is_keyframe = index == 0
            container.mux(packet)
    return str(path)


def brightening(num_frames, height=48, width=64):
    """Frame i has brightness 4 i."""
    return np.repeat(np.arange(num_frames, dtype=np.uint8) * 4, height * width * 3).reshape(-1, height, width, 3)


def indices(frames):
    """Of the frames of `brightening` that are shown, from uint8 (T, C, H, W)."""
    return (frames.float().mean(dim=(1, 2, 3)) / 4).round().int().tolist()


def every(num_frames):
    return list(range(num_frames))


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
        "actions/hug/ut_s1_q01_02.avi",
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


@pytest.mark.parametrize(("num_frames", "stride", "frame_rate"), [(4, 1, None), (8, 2, None), (6, 3, None), (6, 1, 4)])
def test_frames_of_wrong_times_are_those_of_pretraining(processor, tmp_path, num_frames, stride, frame_rate):
    path = write_xvid(tmp_path / "a.avi", brightening(60))
    with av.open(path) as container:
        assert container.streams.video[0].frames == 62
        assert 55 < sum(1 for _ in container.decode(video=0)) < 62
    processor.num_frames, processor.frame_stride = num_frames, stride
    frames, _ = read_file(path, processor.sample_frames, frame_rate)
    assert torch.equal(frames, read_clip(path, processor.sample_frames, frame_rate=frame_rate).frames)


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
    assert torch.equal(frames, torch.cat([window for window, _, _ in read_windows(data, lambda rate: 3)])[middle(8)])


@pytest.mark.parametrize("num_frames", [1, 7, 8, 20])
def test_windows_hold_every_frame_once(tmp_path, num_frames):
    path = write_video(tmp_path / "a.mp4", brightening(15), rate=8)
    windows = list(read_windows(path, lambda rate: round(num_frames * rate / 8)))
    assert [len(window) for window, _, _ in windows[:-1]] == [num_frames] * (len(windows) - 1)
    assert indices(torch.cat([window for window, _, _ in windows])) == list(range(15))
    assert {(aspect, rate) for _, aspect, rate in windows} == {(1.0, 8.0)}
    decoded = list(read_decoder_windows(torchcodec_decoder(path), lambda rate: num_frames))
    assert torch.equal(torch.cat([window for window, _, _ in decoded]), torch.cat([window for window, *_ in windows]))
    assert {(aspect, rate) for _, aspect, rate in decoded} == {(1.0, 8.0)}


def test_windows_end_at_damage(tmp_path, caplog):
    whole = Path(write_video(tmp_path / "a.mp4", brightening(60))).read_bytes()
    start = whole.index(b"mdat") + 4
    half = (int.from_bytes(whole[start - 8 : start - 4], "big") - 8) // 2
    damaged = whole[: start + half] + bytes(half) + whole[start + 2 * half :]
    num_read = sum(len(window) for window, _, _ in read_windows(damaged, lambda rate: 8))
    assert 0 < num_read < 60
    assert f"only {num_read} of 60 frames decode" in caplog.text
    with pytest.raises(ValueError, match="64 bytes: "):
        next(read_windows(bytes(64), lambda rate: 8))


@pytest.mark.parametrize(("codec", "num_concealed"), [("libx264", 0), ("libx265", 9)])
def test_frames_after_damage_come_if_asked_for(tmp_path, codec, num_concealed):
    """With their times, as from `ffmpeg`; the frame whose packet does not decode is missing.

    In HEVC, FFmpeg takes all frames until the next keyframe for concealed, and would leave them out.
    """
    path, images = tmp_path / "a.mp4", brightening(60)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options={"bf": "0", "x265-params": "bframes=0:log-level=none"})
        _, stream.height, stream.width, _ = images.shape
        stream.pix_fmt, stream.gop_size = "yuv420p", 30
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        lost = [packet for packet in container.demux(video=0) if packet.size][20]
        data = bytearray(path.read_bytes())
        data[lost.pos : lost.pos + lost.size] = bytes(lost.size)
    path.write_bytes(data)
    before, all_there_are = Decoding(str(path)), Decoding(str(path), stops_at_damage=False)
    assert [round(10 * frame.time) for frame in before] == list(range(20))
    assert before.note == "only 20 of 60 frames decode" and before.is_damaged
    assert [round(10 * frame.time) for frame in all_there_are] == [*range(20), *range(21, 60)]
    note = "damaged at 2.00 s: 1 of 60 packets do not decode"
    if num_concealed:
        note += f", {num_concealed} of 59 frames have errors that FFmpeg conceals"
    assert all_there_are.note == note and all_there_are.is_damaged


def test_a_file_that_is_cut_short_after_damage_is_told_with_both(tmp_path):
    noise = np.random.default_rng(0).integers(0, 200, (60, 48, 64, 3), dtype=np.uint8)
    path = Path(write_avi(tmp_path / "a.avi", noise, "mpeg4", 0))
    data = bytearray(path.read_bytes()[: path.stat().st_size * 3 // 4])
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    path.write_bytes(data)
    decoding = Decoding(str(path), stops_at_damage=False)
    num_read = sum(1 for _ in decoding)
    concealed = r"damaged at \d\.\d0 s: .*\d+ of \d+ frames have errors that FFmpeg conceals"
    assert re.fullmatch(rf"{concealed}; only {num_read} of 60 frames decode", decoding.note)


# With B-frames AVI has no times of showing: frames are counted
@pytest.mark.parametrize(("codec", "num_b_frames"), [("mpeg4", 0), ("mpeg4", 2), ("libx264", 2)])
@pytest.mark.parametrize("part", [0.9, 0.6])
def test_lost_frames_of_a_truncated_file_are_told_as_in_pretraining(tmp_path, caplog, codec, num_b_frames, part):
    noise = np.random.default_rng(0).integers(0, 16, (60, 48, 64, 3), dtype=np.uint8)
    path = write_avi(tmp_path / "a.avi", brightening(60) + noise, codec, num_b_frames)
    assert (len(read_file(path, every)[0]), read_clip(path, every).note, caplog.text) == (60, None, "")
    whole = Path(path).read_bytes()
    Path(path).write_bytes(whole[: int(part * len(whole))])
    clip = read_clip(path, every)
    assert re.fullmatch(r"only \d+ of 60 frames decode", clip.note)
    assert clip.is_partial
    frames, _ = read_file(path, every)
    windows = torch.cat([window for window, _, _ in read_windows(path, lambda rate: 8)])
    assert torch.equal(frames, clip.frames)
    assert 0 < len(windows) <= len(frames) < 60
    assert [record.getMessage() for record in caplog.records] == [f"{path}: {clip.note}"] * 2


def test_frames_without_a_time_base_are_read():
    """Such as some that a decoder still holds when it meets damage."""
    image = brightening(20)[-1]
    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
    assert frame.time_base is None
    box = (3, 4, 20, 30)
    assert torch.equal(Upright(frame, box)(frame), torch.from_numpy(image).permute(2, 0, 1)[:, 3:23, 4:34])


def test_rounding_decides_between_frames_as_it_always_did():
    """Where the rate varies, the middle of a tick may be the very moment at which a frame appears."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        seconds = np.cumsum(rng.choice([1, 1, 1, 2, 3], rng.integers(5, 400))) / 30
        usual, average = np.median(np.diff(seconds)), np.diff(seconds).mean()
        if average <= MAX_GAPS * usual:
            continue
        times = seconds[0] + (np.arange(len(seconds)) + 0.5) * average
        expected = np.searchsorted(seconds, times, side="right") - 1
        assert shown_frames(torch.from_numpy(seconds)).tolist() == expected.tolist()


def test_downloads_are_as_large_as_those_of_pretraining():
    assert video_reading.MAX_SIZE == files.MAX_SIZE


def test_files_that_cannot_be_opened_are_named(tmp_path, monkeypatch):
    def deny(name, mode):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.mp4").write_bytes(b"")
    monkeypatch.setattr(video_reading_opening, "open", deny, raising=False)
    with pytest.raises(ValueError, match="a.mp4: Permission denied"):
        read_file(tmp_path / "a.mp4")


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def serve():
    """Starts a server of this handler; its address."""
    servers = []

    def start(handler):
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_urls_are_downloaded(processor, tmp_path, serve):
    path = write_video(tmp_path / "a.mp4", brightening(15))
    address = serve(functools.partial(QuietHandler, directory=str(tmp_path)))
    expected = processor(path).pixel_values_videos
    assert torch.equal(processor(f"{address}/a.mp4").pixel_values_videos, expected)
    assert torch.equal(processor(f"{address}/a.mp4".replace("http", "HTTP")).pixel_values_videos, expected)
    with pytest.raises(ValueError, match="video 0.*missing.mp4.*404"):
        processor(f"{address}/missing.mp4")


ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: "


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (ANSWER + b"100\r\n\r\n" + bytes(60), "ends after 60 of 100 bytes"),
        (ANSWER + b"5000000000\r\n\r\n", "5000000000 bytes, more than 4294967296"),
        (ANSWER + b"many\r\n\r\n", "invalid literal"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + bytes(3 * 2**20), "more than 2000000 bytes"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno\r\n", "IncompleteRead"),
        (b"no HTTP", "a.mp4: "),
        (b"", "a.mp4: "),
    ],
)
def test_answers_that_are_no_file_are_named(serve, monkeypatch, answer, message):
    class Odd(QuietHandler):
        def do_GET(self):
            self.wfile.write(answer)

    if "2000000" in message:
        monkeypatch.setattr(video_reading, "MAX_SIZE", 2_000_000)
    with pytest.raises(ValueError, match=message):
        read_file(f"{serve(Odd)}/a.mp4")


@pytest.mark.parametrize("url", ["http://", "http://[", "http://h:port/a.mp4", "http://a b/c d"])
def test_impossible_addresses_are_named(url):
    with pytest.raises(ValueError, match=re.escape(url)):
        read_file(url)


def test_servers_that_hold_a_connection_are_given_up(serve, monkeypatch):
    stopped = threading.Event()

    class Dripping(QuietHandler):
        def do_GET(self):
            self.wfile.write(ANSWER + b"1000\r\n\r\n")
            while not stopped.wait(0.05):
                self.wfile.write(b"x")

    monkeypatch.setattr(video_reading, "URL_TIMEOUT", 0.5)
    try:
        with pytest.raises(ValueError, match="a.mp4: too slow: .* bytes in [01] s"):
            read_file(f"{serve(Dripping)}/a.mp4")
    finally:
        stopped.set()


def test_a_manifest_in_bytes_leads_nowhere(processor, tmp_path, serve, monkeypatch):
    requests = []

    class Counter(QuietHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_error(404)

    address = serve(Counter)
    manifest = (
        '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011" '
        'type="static" mediaPresentationDuration="PT4S"><Period><AdaptationSet mimeType="video/mp4" '
        'contentType="video"><Representation id="1" bandwidth="1000" width="64" height="48" codecs="avc1">'
        f"<BaseURL>{address}/a.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>"
    ).encode()
    (tmp_path / "a.mp4").write_bytes(manifest)
    for source in (manifest, str(tmp_path / "a.mp4")):
        with pytest.raises(ValueError, match="text, no video"):
            processor(source)
        with monkeypatch.context() as patch:  # what gets past the check, FFmpeg keeps from the network
            patch.setattr(video_reading_opening, "TEXT", b"")
            with pytest.raises(ValueError):
                processor(source)
    assert requests == []
