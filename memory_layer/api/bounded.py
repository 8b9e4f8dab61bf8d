"""The HTTP protocol with bounds: of a request's head, of the time that head and body take, and of what one connection may queue.

uvicorn's own reads a head of any length, at any pace, into memory. The bounds lie here, under the parser, because nothing above sees
a head before it is whole. A refusal is the API's own error, sent once; what still comes is thrown away for a moment, so that the
answer is not lost with the connection.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, ClassVar, Final, NoReturn

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from memory_layer.api.replies import error_answer
from memory_layer.api.tls import Network, comes_from, extension
from memory_layer.errors import Forbidden, HeadersTooLarge, MemoryLayerError, RequestTimeout, Unauthenticated
from memory_layer.model import uuid7
from memory_layer.telemetry.logs import get_logger

log = get_logger("memory_layer.api.requests")

MAX_HEAD: Final = 64 * 1024  # bytes of request line and headers, trailers included
MAX_HEADERS: Final = 100
MAX_QUEUED: Final = 32  # requests of one connection that wait for the answer to an earlier one
HEAD_SECONDS: Final = 20.0  # from the first byte of a head to its last
IDLE_SECONDS: Final = 30.0  # of a connection before its first request; uvicorn's keep-alive is the same between two
BODY_WINDOW: Final = 30.0  # seconds in which a body must bring BODY_BYTES, while it is read
BODY_BYTES: Final = 30 * 1024
UNREAD_SECONDS: Final = 60.0  # in which a client that takes nothing of its answer is given up
LINGER_SECONDS: Final = (
    2.0  # in which what a refused client goes on sending is thrown away, so that it gets to read why
)
LINGER_BYTES: Final = 1024 * 1024
_TICK: Final = 1.0  # seconds
_CHUNK: Final = 16 * 1024  # bytes that the parser is given at once while it reads a head
_PROBES: Final = (b"/livez", b"/readyz")  # asked by what has no certificate
_FRAMING: Final = 16  # bytes of framing that a byte of a body may cost: chunks of one byte take five


class _Refused(Exception):
    """Ends the parser's work at once."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection. Subclasses say whose it may be (``serve.py``)."""

    proxies: ClassVar[tuple[Network, ...] | None] = None  # None: anybody's
    wants_certificate: ClassVar[bool] = False  # of the client, for all but probes

    def __init__(self, *words: Any, **options: Any) -> None:
        super().__init__(*words, **options)
        self._in_head = True
        self._asked = False  # whether there was a request
        self._raw = 0  # bytes since the last request ended
        self._body = 0  # of these, bytes of the body
        self._size = self._count = 0  # of the head's parts
        self._since = 0.0  # the head's first byte
        self._refused = False
        self._error: MemoryLayerError | None = None  # why the parser's work was ended
        self._tls: dict[object, object] | None = None
        self._thrown = 0  # bytes that came after a refusal
        self._mark = (0.0, 0)  # when so many bytes of the body were here
        self._answered: float | None = None  # since when there is an answer although the body is not complete
        self._unread = (0.0, 0)  # since when so many bytes of an answer are unsent
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since = self.loop.time()
        self._timer = self.loop.call_later(_TICK, self._tick)
        if (connection := transport.get_extra_info("ssl_object")) is not None:
            self._tls = extension(connection)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            self._thrown += len(data)
            if self._thrown > LINGER_BYTES:
                self.transport.close()
            return
        if not self._in_head or len(data) <= _CHUNK:
            self._feed(data)
            return
        for start in range(0, len(data), _CHUNK):
            self._feed(data[start : start + _CHUNK])

    def _feed(self, data: bytes) -> None:
        if self._refused or self.transport.is_closing():
            return
        if self._raw == 0:
            self._since = self.loop.time()
        self._raw += len(data)
        super().data_received(data)
        if self._raw - self._body > MAX_HEAD + _FRAMING * self._body:
            self._refuse(HeadersTooLarge())

    def send_400_response(self, msg: str) -> None:
        if self._error is not None:
            self._refuse(self._error)
        else:
            super().send_400_response(msg)

    # What the parser calls.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._size = self._count = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._size += len(url)
        if self._size > MAX_HEAD:
            self._end(HeadersTooLarge())

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count += 1
        self._size += len(name) + len(value) + 4
        if self._size > MAX_HEAD or self._count > MAX_HEADERS:
            self._end(HeadersTooLarge())
        super().on_header(name, value)

    def _end(self, error: MemoryLayerError) -> NoReturn:
        self._error = error
        raise _Refused

    def on_headers_complete(self) -> None:
        self._check_peer()
        self._in_head, self._answered, self._asked = False, None, True
        self._mark = self.loop.time(), 0
        super().on_headers_complete()
        if self._tls is not None:
            self.scope["extensions"] = {"tls": dict(self._tls)}  # uvicorn itself has none
        if len(self.pipeline) > MAX_QUEUED:
            self._drop()

    def _check_peer(self) -> None:
        """Whether a request may come from here; what it asks is not looked at if not."""
        if self.proxies is not None and not comes_from(self.client and self.client[0], self.proxies):
            self._end(
                Forbidden("This server answers the proxies in front of it (TRUSTED_PROXIES) alone. Ask one of those.")
            )
        if self.wants_certificate and not (self._tls and self._tls["client_cert_chain"]) and self.url not in _PROBES:
            self._end(Unauthenticated("This server wants a client certificate (TLS_CLIENT_CA), and none was shown."))

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head, self._raw, self._body = True, 0, 0

    def _unsupported_upgrade_warning(self) -> None:
        """A header that asks for another protocol is ignored; a line in the log for each is of no use to anybody."""

    # Time.

    def _tick(self) -> None:
        if self.transport.is_closing():
            # What was refused is closed by its own timer; a peer that takes nothing keeps a closing connection open.
            self._give_up_unread()
        elif self._in_head:
            self._watch_head()
        else:
            self._watch_body()
        if not self.transport.is_closing():
            self._give_up_unread()
        self._timer = self.loop.call_later(_TICK, self._tick)

    def _watch_head(self) -> None:
        waited = self.loop.time() - self._since
        if self._busy():
            return
        if self._raw and waited > HEAD_SECONDS:
            self._refuse(RequestTimeout(f"The request's head was not complete within {HEAD_SECONDS:.0f} s."))
        elif not self._asked and waited > IDLE_SECONDS:
            self.transport.close()

    def _watch_body(self) -> None:
        now, (since, before) = self.loop.time(), self._mark
        if self.cycle.response_complete:
            self._answered = self._answered or now
            if now - self._answered > LINGER_SECONDS:
                self._drop()
        elif self.flow.read_paused or self._body - before >= BODY_BYTES:  # it is the reader who is slow
            self._mark = now, self._body
        elif now - since > BODY_WINDOW:
            self._refuse(
                RequestTimeout(
                    f"Less than {BODY_BYTES // 1024} KB of the body came in {BODY_WINDOW:.0f} s. Send it again, faster."
                )
            )

    def _give_up_unread(self) -> None:
        now, unsent = self.loop.time(), self.transport.get_write_buffer_size()
        if unsent != self._unread[1] or not unsent:
            self._unread = now, unsent
        elif now - self._unread[0] > UNREAD_SECONDS:
            self.transport.abort()

    # The end.

    def _busy(self) -> bool:
        """Whether an answer is being made or sent, into which nothing else may be written."""
        return self._asked and not self.cycle.response_complete

    def _refuse(self, error: MemoryLayerError) -> None:
        """Send the error and close, unless another answer is under way: then only close."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        begun = self._in_head and self._busy()
        if self._busy():
            begun = begun or self.cycle.response_started or bool(self.pipeline)
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if begun:
            self._drop()
            return
        request_id = str(uuid7())
        log.info(
            "a request was refused before it was whole", status=error.status, code=error.code, requestId=request_id
        )
        answer = error_answer(error, request_id)
        body = msgspec.json.encode(answer.body)
        headers = {
            "content-type": "application/json",
            "content-length": len(body),
            **answer.headers,
            "connection": "close",
        }
        lines = [
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}",
            *(f"{k.lower()}: {v}" for k, v in headers.items()),
        ]
        self.transport.write("\r\n".join([*lines, "", ""]).encode("ascii") + body)
        self.flow.resume_reading()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _drop(self) -> None:
        self._refused = True
        self.transport.close()
