"""A Hub on this machine, for the real client, with faults on demand."""

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from hub_routes import JSON, ROUTES, Request
from hub_state import Hub, Refusal


@dataclass
class Fault:
    """What happens to the next `times` requests of a kind, in place of an answer or before it."""

    method: str
    path: re.Pattern
    times: int
    act: Callable[["Handler"], bool]  # -> whether that was the answer


class HubServer(Hub):
    """What the Hub holds, and what tests do to it.

    Attributes:
        requests: (method, path) of every request so far.
        faults: what goes wrong with the next requests, see `before`, `fail` and `cut`.
        lock: one request is answered at a time.
    """

    def __init__(self, url: str):
        super().__init__(url)
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()

    def environment(self, home: Path, token: str = "write") -> dict[str, str]:
        """What lets another process speak to this Hub, and to no other."""
        settings = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        return {**settings, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": token}

    def answer(self, method: str, path: str, request: Request) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers."""
        try:
            request.role()  # a token that is not valid is refused whatever it is for
            for asked, pattern, function in ROUTES:
                match = pattern.fullmatch(path)
                if match and asked == method:
                    parts = {name: unquote(part) for name, part in match.groupdict().items() if part is not None}
                    with self.lock:
                        result = function(request, **parts)
                    return result if isinstance(result, tuple) else (200, json.dumps(result).encode(), JSON)
            raise Refusal(404, f"Sorry, there is no page {method} {path}")
        except Refusal as refusal:
            headers = {**JSON, "X-Error-Message": refusal.message, "X-Error-Code": refusal.code}
            return refusal.status, json.dumps({"error": refusal.message}).encode(), headers

    def count(self, method: str, path: str) -> int:
        """How many requests there were whose path holds this pattern."""
        return sum(asked == method and re.search(path, where) is not None for asked, where in self.requests)

    def before(self, method: str, path: str, act: Callable[[], object], times: int = 1):
        """Call something before the next requests are answered."""

        def call(handler: Handler) -> bool:
            act()
            return False

        self.faults.append(Fault(method, re.compile(path), times, call))

    def fail(self, method, path, status: int, times: int = 1, headers: dict[str, str] | None = None, body=b"<html>"):
        """Refuse the next requests. The body is no JSON, as where what stands before the Hub refuses."""

        def refuse(handler: Handler) -> bool:
            handler.read_body()
            handler.send(status, body, headers or {})
            return True

        self.faults.append(Fault(method, re.compile(path), times, refuse))

    def cut(self, method: str, path: str, times: int = 1, is_done: bool = False):
        """Cut the connections of the next requests: in the middle of what is sent, or once all of it is done."""

        def close(handler: Handler) -> bool:
            if is_done:
                handler.find_answer()
            else:
                handler.rfile.read(int(handler.headers.get("Content-Length", 0)) // 2)
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return True

        self.faults.append(Fault(method, re.compile(path), times, close))


class Handler(BaseHTTPRequestHandler):
    """One connection to `hub`."""

    protocol_version = "HTTP/1.1"
    wbufsize = 2**16  # an answer in one piece: TCP waits 40 ms before a second one
    hub: HubServer

    def handle_request(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        for fault in self.hub.faults:
            if fault.times > 0 and fault.method == self.command and fault.path.search(path):
                fault.times -= 1
                if fault.act(self):
                    return
        self.send(*self.find_answer())

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_request

    def find_answer(self) -> tuple[int, bytes, dict[str, str]]:
        url = urlsplit(self.path)
        request = Request(self.hub, self.headers, parse_qs(url.query), self.read_body())
        return self.hub.answer("GET" if self.command == "HEAD" else self.command, url.path, request)

    def read_body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def send(self, status: int, body: bytes, headers: dict[str, str]):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # a connection beyond waits a second


@contextmanager
def serve() -> Iterator[HubServer]:
    """An empty Hub, which ends with the block."""
    handler = type("HubHandler", (Handler,), {})
    with Server(("127.0.0.1", 0), handler) as server:
        handler.hub = HubServer(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield handler.hub
        server.shutdown()
        thread.join()
