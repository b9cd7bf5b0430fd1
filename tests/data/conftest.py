import http.server
import threading
from pathlib import Path

import av
import numpy as np
import pytest


SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def encode(path, num_frames=30, height=48, width=64, codec="libx264", rate=10):
    """A video whose frame i has brightness 5 + 8 i (below 250) over a horizontal ramp."""
    ramp = np.linspace(0, 5, width, dtype=np.uint8)[None, :, None]
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.gop_size = 8
        for index in range(num_frames):
            image = np.full((height, width, 3), 5 + 8 * index % 240, np.uint8) + ramp
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return str(path)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Seven videos, one of them short, and side files."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "sub").mkdir()
    for index in range(6):
        encode(folder / ("sub" if index % 2 else ".") / f"v{index}.mp4", num_frames=30, rate=10 + index)
    encode(folder / "short.mp4", num_frames=5)
    (folder / "README.md").write_text("no video")
    (folder / "poster.jpg").write_bytes(b"no video")
    (folder / ".hidden.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture(scope="session")
def video(folder):
    return str(folder / "v0.mp4")


@pytest.fixture
def truncated(tmp_path):
    """A video of 120 frames of which only the beginning is there."""
    whole = Path(encode(tmp_path / "whole.mp4", num_frames=120)).read_bytes()
    path = tmp_path / "truncated.mp4"
    path.write_bytes(whole[: len(whole) * 6 // 10])
    return str(path)


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"this is no video" * 100)
    return str(path)


@pytest.fixture(scope="session")
def shared():
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent")
    return SHARED


@pytest.fixture
def server():
    """The address of a server, and the requests that reach it."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", requests
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def make_video():
    """A function that writes a video of moving ramps with the times (in frames) and shape it is told."""

    def make(
        path,
        times=tuple(range(30)),
        height=48,
        width=64,
        rate=10,
        gop=8,
        codec="libx264",
        pixel_format="yuv420p",
    ):
        with av.open(str(path), "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as container:
            stream = container.add_stream(codec, rate=rate)
            stream.height, stream.width, stream.pix_fmt, stream.gop_size = height, width, pixel_format, gop
            for time in times:
                image = np.add.outer(np.arange(height), np.arange(width))[..., None] + np.array([8 * time, 0, 60])
                frame = av.VideoFrame.from_ndarray((image % 256).astype(np.uint8), format="rgb24")
                frame.pts = time
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return make
