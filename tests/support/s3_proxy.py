"""Between the product and an S3 server: connections that are cut, bytes that change on the way, a server that refuses."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class S3Proxy:
    """Forwards TCP to ``target``. ``cut``: connections that end, in either direction together, after so many bytes; None: none.

    ``change`` sees every block from the client and gives what is forwarded.
    """

    target: tuple[str, int]
    cut: int | None = None
    cuts_left: int = 0
    change: Callable[[bytes], bytes] = lambda block: block
    cuts: int = 0  # made
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _listener: socket.socket = field(default_factory=socket.socket)

    def start(self) -> None:
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self.target)
            seen = [0]
            for source, sink, outward in ((near, far, True), (far, near, False)):
                threading.Thread(target=self._pump, args=(source, sink, outward, seen), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, outward: bool, seen: list[int]) -> None:
        try:
            while block := source.recv(65536):
                seen[0] += len(block)
                if self._cuts(seen[0]):
                    seen[0] = -(10**12)  # the other direction does not count as another cut
                    break
                sink.sendall(self.change(block) if outward else block)
        except OSError:
            pass
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _cuts(self, seen: int) -> bool:
        with self._lock:
            if self.cut is None or seen < self.cut or self.cuts_left <= 0:
                return False
            self.cuts_left -= 1
            self.cuts += 1
            return True


@contextlib.contextmanager
def running_proxy(endpoint: str) -> Iterator[S3Proxy]:
    parts = urlsplit(endpoint)
    proxy = S3Proxy((parts.hostname or "", parts.port or 80))
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()


@contextlib.contextmanager
def refusing(status: int, code: str) -> Iterator[str]:
    """The URL of a server that answers everything with one of S3's errors, as it writes them, with a text that repeats a secret."""

    class Refuses(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            text = (
                f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code>'
                f"<Message>you sent {self.headers.get('Authorization')}</Message></Error>"
            ).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(text)))
            self.send_header("Connection", "close")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815 - http.server's names

        def handle_expect_100(self) -> bool:
            self.send_response_only(100)
            self.end_headers()
            return True

        def log_message(self, *_: object) -> None:
            """Silence."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
