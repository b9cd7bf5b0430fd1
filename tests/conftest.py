"""Shared by all tests: no network, one thread per process, seeded, and a config small enough to train on a CPU."""

import gc
import gzip
import http.server
import io
import os
import re
import signal
import tarfile
import threading
import time
from pathlib import Path


# Read when huggingface_hub is imported, hence before the imports below. Subprocesses inherit it.
os.environ["HF_HUB_OFFLINE"] = "1"
# Where tests run in the background, shells let them ignore Ctrl-C, and the programs that they start would, too
signal.signal(signal.SIGINT, signal.default_int_handler)
# Imports and the collection of tests leave no garbage, and looking for some would be a fifth of their time
gc.disable()

import pytest  # noqa: E402
import torch  # noqa: E402

from layerlock_hf import LayerLockViTConfig  # noqa: E402


# pytest-xdist already runs a process per core
torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--write_golden", metavar="REASON", help="Record tests/golden anew; the files keep the reason.")


@pytest.hookimpl(trylast=True)
def pytest_collection_finish():
    """What there is by now stays: every training ends with `gc.collect`, which would visit a million objects of it."""
    gc.freeze()
    gc.enable()


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no GPU")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> str:
    """Every device that there is, for what must hold on each."""
    return request.param


@pytest.fixture(autouse=True)
def seed():
    """The same random numbers in every test, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_sizes() -> dict[str, int]:
    """Six layers of width 32, the last two of them decoding, for clips of 4 frames of 16 x 16 pixels: 32 tokens."""
    return {
        "hidden_size": 32,
        "num_hidden_layers": 6,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 16,
        "patch_size": 4,
        "num_frames": 4,
        "num_decoder_layers": 2,
    }


@pytest.fixture
def tiny_config(tiny_sizes) -> LayerLockViTConfig:
    """The configuration of `tiny_sizes`."""
    return LayerLockViTConfig.from_preset("tiny", **tiny_sizes)


class Website:
    """A web server that knows ranges and listings, and misbehaves on demand.

    Attributes:
        root: the folder that it serves.
        url: its address.
        requests: (method, path, Range) of every request so far.
        faults: what goes wrong with the next GET requests, first to last: a status, "cut" in the middle, "close"
            without an answer, "hang" or None.
        has_ranges: whether it heeds ranges.
        encoding: how it compresses files, whether asked to or not.
        latency: seconds until it answers.
    """

    def __init__(self, root, url):
        self.root, self.url = root, url
        self.requests, self.faults, self.has_ranges, self.encoding = [], [], True, None
        self.latency = 0.0


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
            if fault == "close":
                self.close_connection = True
                return None
            time.sleep(site.latency)
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
