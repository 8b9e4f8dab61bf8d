"""What the stand-ins for key services share: an HTTP server on loopback that can be slow, broken or wrong on request."""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

# What `fault` may be, besides the names that a service knows: nothing is answered; half an answer, then a reset connection; an
# answer that is no JSON; a signature with one bit changed; a good signature by a key that nobody asked for.
FAULTS = ("hang", "torn", "garbage", "500", "throttle", "wrong signature", "another key")


class StandIn(ThreadingHTTPServer):
    """One service. ``fault`` strikes the calls that sign, for ``times`` calls (None: until it is set to None)."""

    daemon_threads = True
    request_queue_size = 512
    allow_reuse_address = True

    def __init__(self, handler: type[Handler], port: int = 0, delay: float = 0.0) -> None:
        super().__init__(("127.0.0.1", port), handler)
        self.delay = delay  # seconds before a signature is answered
        self.calls: list[str] = []  # what was asked, in order
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.lock = threading.RLock()
        self._fault: str | None = None
        self._times: int | None = None
        self.let_go = threading.Event()  # ends what hangs
        self._connections: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def set_fault(self, name: str | None, times: int | None = None) -> None:
        with self.lock:
            if name is None:
                self.let_go.set()
            else:
                self.let_go = threading.Event()
            self._fault, self._times = name, times

    def take_fault(self) -> str | None:
        with self.lock:
            if self._fault is None or self._times == 0:
                return None
            if self._times is not None:
                self._times -= 1
            return self._fault

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that the client gave up are part of the tests."""

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True, name=type(self).__name__).start()

    def stop(self) -> None:
        self.let_go.set()
        self.shutdown()
        self.server_close()
        for connection in list(self._connections):  # kept alive; a service that is gone answers nobody
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class Handler(BaseHTTPRequestHandler):
    """JSON in, JSON out, kept alive; header and body leave in one packet."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: StandIn

    def do_GET(self) -> None:
        self.handle_call("GET")

    def do_POST(self) -> None:
        if self.path == "/_control":
            self.control()
        else:
            self.handle_call("POST")

    def do_PUT(self) -> None:
        self.handle_call("PUT")

    def handle_call(self, method: str) -> None:
        """Answer one request of the service."""
        raise NotImplementedError

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, status: int, value: object, content_type: str = "application/json") -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def fail_on_the_wire(self, fault: str | None) -> bool:
        """Whether the fault was one of the connection, and is done."""
        if fault == "hang":
            self.server.let_go.wait(30)
        elif fault == "torn":
            with contextlib.suppress(OSError):
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{")
                self.wfile.flush()
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif fault == "garbage":
            self.answer(200, b"<html>a proxy's page</html>", "text/html")
            return True
        else:
            return False
        self.close_connection = True
        return True

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def control(self) -> None:
        """POST /_control {"fault": name or null, "times": n or null, "delayMs": n}: for a stand-in in a process of its own."""
        wish = json.loads(self.body() or b"{}")
        if "delayMs" in wish:
            self.server.delay = wish["delayMs"] / 1000
        if "fault" in wish:
            self.server.set_fault(wish["fault"], wish.get("times"))
        self.answer(200, {"delayMs": self.server.delay * 1000, "calls": len(self.server.calls)})


@contextlib.contextmanager
def running(server: Any) -> Iterator[Any]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


def options(description: str, argv: Sequence[str] | None, kinds: Sequence[str]) -> argparse.Namespace:
    """The command line of a stand-in in a process of its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay-ms", type=float, default=0.0, help="before each signature is answered")
    parser.add_argument("--key", choices=kinds, default=kinds[0], help="what kind of key is there from the start")
    parser.add_argument("--state", type=Path, help="keep the keys in this file, for a restart with the same keys")
    return parser.parse_args(argv)


def run_until_killed(server: StandIn) -> None:
    """Print the URL on one line, and serve."""
    print(server.url, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever(0.2)
