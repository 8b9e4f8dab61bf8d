"""An endpoint that keeps checkpoints, as docs/operations.md describes one: POST keeps a note, GET gives the newest."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class AnchorServer:
    """``faults``: status codes that the next requests are answered with instead; ``reads``: whether a GET is answered."""

    url: str = ""
    notes: dict[int, bytes] = field(default_factory=dict)
    faults: list[int] = field(default_factory=list)
    reads: bool = True
    authorization: list[str | None] = field(default_factory=list)
    flood: bool = False


@contextlib.contextmanager
def running_anchor_server() -> Iterator[AnchorServer]:
    state = AnchorServer()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, status: int, body: bytes = b"") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body)

        def do_GET(self) -> None:
            state.authorization.append(self.headers.get("Authorization"))
            if state.faults:
                self._answer(state.faults.pop(0))
            elif state.flood:
                self._answer(200, b"x" * 4_000_000)
            elif not state.reads:
                self._answer(405)
            elif not state.notes:
                self._answer(404)
            else:
                self._answer(200, state.notes[max(state.notes)])

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            state.authorization.append(self.headers.get("Authorization"))
            if state.faults:
                self._answer(state.faults.pop(0))
                return
            size = int(body.decode().split("\n")[1])
            if any(known > size or (known == size and note != body) for known, note in state.notes.items()):
                self._answer(409)
                return
            state.notes[size] = body
            self._answer(201)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/anchors"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
