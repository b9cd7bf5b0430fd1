import gzip
import http.server
import io
import re
import tarfile
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


class Website:
    """A web server that knows ranges and listings, and misbehaves on demand.

    Attributes:
        root: the folder that it serves.
        url: its address.
        requests: (method, path, Range) of every request so far.
        faults: what goes wrong with the next GET requests, first to last: a status, "cut", "hang" or None.
        has_ranges: whether it heeds ranges.
        encoding: how it compresses files, whether asked to or not.
    """

    def __init__(self, root, url):
        self.root, self.url = root, url
        self.requests, self.faults, self.has_ranges, self.encoding = [], [], True, None


@pytest.fixture
def website(tmp_path):
    pytest.importorskip("aiohttp", reason="fsspec needs it for https://")
    (tmp_path / "website").mkdir()
    closing = threading.Event()

    class Handler(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 2**16  # an answer in one piece: TCP waits 40 ms before a second one

        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(site.root))

        def do_GET(self):
            site.requests.append((self.command, self.path, self.headers.get("Range")))
            fault = site.faults.pop(0) if site.faults and self.command == "GET" else None
            if fault == "hang":
                closing.wait(30)
            if isinstance(fault, int):
                return self.send_error(fault)
            path = Path(self.translate_path(self.path))
            if not path.is_file():
                return super().do_GET() if self.command == "GET" else super().do_HEAD()
            data, status = path.read_bytes(), 200
            limits = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if limits and site.has_ranges:
                if int(limits[1]) >= len(data):
                    return self.send_error(416)
                data, status = data[int(limits[1]) : int(limits[2]) + 1], 206
            self.send_response(status)
            if site.encoding == "gzip":
                data = gzip.compress(data)
                self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
            self.close_connection = fault is not None

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64  # a connection beyond waits a second

    with Server(("127.0.0.1", 0), Handler) as server:
        site = Website(tmp_path / "website", f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield site
        closing.set()
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def write_tar():
    """A function that writes a tar of (name, bytes)."""

    def write(path, members):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for name, data in members:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        return str(path)

    return write


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
