"""Stands between the service and Postgres at a Unix socket, follows the protocol, and strikes at a chosen message or byte.

It understands just enough of the wire protocol to do that: where messages begin, which statement a message runs, and where a
committer's batch begins (https://www.postgresql.org/docs/current/protocol-message-formats.html). It runs in a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, Self
from urllib.parse import unquote

from psycopg.conninfo import conninfo_to_dict, make_conninfo

Side = Literal["to server", "to client"]
COMMITTER: Final = b"memory-layer committer"  # what a committer's connection calls itself before its first batch
_BLOCK: Final = 65536
_STARTUP: Final = 196608  # protocol 3.0 and its minor versions; every other code is a request before the startup


class Moment(NamedTuple):
    """A whole message on its way. ``number`` counts a committer's messages to this side since its batch began; -1 elsewhere.

    ``client`` and ``backend`` are the pids at the two ends.
    """

    side: Side
    number: int
    kind: str
    statement: str
    size: int
    client: int
    backend: int

    @property
    def name(self) -> str:
        """What people read: ``Execute INSERT INTO audit_seals``."""
        return f"{_KINDS[self.side].get(self.kind, self.kind)} {' '.join(self.statement.split()[:4])}".rstrip()


_KINDS: Final[dict[Side, dict[str, str]]] = {
    "to server": {"P": "Parse", "B": "Bind", "D": "Describe", "E": "Execute", "S": "Sync", "Q": "Query", "H": "Flush"},
    "to client": {
        "1": "ParseComplete", "2": "BindComplete", "C": "CommandComplete", "D": "DataRow", "T": "RowDescription",
        "n": "NoData", "Z": "ReadyForQuery", "E": "ErrorResponse",
    },
}  # fmt: skip


@dataclass(eq=False)
class Trap:
    """Strikes once. ``place`` looks at a message of a committer and says how many of its bytes still pass (None: not here).

    ``strike`` is called in a thread while the message is held back; then, with ``cut``, the connection ends on both sides.
    """

    place: Callable[[Moment], int | None]
    strike: Callable[[Moment], object] | None = None
    cut: bool = True
    struck: threading.Event = field(default_factory=threading.Event)
    at: Moment | None = None

    def spring(self) -> None:
        if self.strike is not None and self.at is not None:
            self.strike(self.at)
        self.struck.set()


def at_message(side: Side, number: int, *, passing: float = 0.0) -> Callable[[Moment], int | None]:
    """Where ``Trap`` strikes: before the message of this number, or after that fraction of its bytes."""

    def place(moment: Moment) -> int | None:
        return int(moment.size * passing) if (moment.side, moment.number) == (side, number) else None

    return place


def after_bytes(side: Side, count: int) -> Callable[[Moment], int | None]:
    """After so many bytes of batches, wherever in a message that is."""
    left = count

    def place(moment: Moment) -> int | None:
        nonlocal left
        if moment.side != side or moment.number < 0:
            return None
        left -= moment.size
        return left + moment.size if left < 0 else None

    return place


def at_statement(side: Side, kind: str, start: str, *, passing: float = 0.0) -> Callable[[Moment], int | None]:
    """At the first message of a kind that belongs to a statement with this beginning."""

    def place(moment: Moment) -> int | None:
        fits = moment.side == side and moment.kind == kind and moment.statement.startswith(start)
        return int(moment.size * passing) if fits else None

    return place


class PostgresProxy:
    """``dsn`` is Postgres's own; ``through(dsn)`` is one that comes by here. Survives the server's restarts."""

    def __init__(self, dsn: str) -> None:
        parts = conninfo_to_dict(dsn)
        self._upstream = f"{unquote(str(parts['host']))}/.s.PGSQL.{parts['port']}"
        self._folder = tempfile.TemporaryDirectory(prefix="ml-")
        self._path = f"{self._folder.name}/.s.PGSQL.{parts['port']}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy of Postgres", daemon=True)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._trap: Trap | None = None
        self._watch: Callable[[Moment], None] | None = None

    def through(self, dsn: str) -> str:
        return make_conninfo(dsn, host=self._folder.name)

    def arm(self, trap: Trap) -> Trap:
        """Replaces the one that was armed before."""
        self._trap = trap
        return trap

    def disarm(self) -> None:
        self._trap = None

    @contextlib.contextmanager
    def watching(self, watch: Callable[[Moment], None]) -> Iterator[None]:
        """Tell of every message of committers; called in the proxy's thread."""
        self._watch = watch
        try:
            yield
        finally:
            self._watch = None

    def refuse(self) -> None:
        """Take no new connections; those that there are go on."""
        asyncio.run_coroutine_threadsafe(self._refuse(), self._loop).result(10)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self._folder.cleanup()

    async def _start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self._path)

    async def _refuse(self) -> None:
        assert self._server is not None
        self._server.close()

    async def _stop(self) -> None:
        await self._refuse()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        up: asyncio.StreamWriter | None = None
        try:
            up_reader, up = await asyncio.open_unix_connection(self._upstream)
            credentials = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            await self._follow(_Link(struct.unpack("3i", credentials)[0]), reader, up, up_reader, writer)
        except (OSError, asyncio.CancelledError):  # Postgres is down, a side is gone, or the test is over
            pass
        finally:
            self._tasks.discard(task)
            for end in (writer, up):
                if end is not None and not end.is_closing():
                    end.transport.abort()  # what was not sent yet is not sent any more

    async def _follow(
        self,
        link: _Link,
        reader: asyncio.StreamReader,
        up: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Until one side ends."""
        ways = [
            asyncio.create_task(self._forward("to server", link, reader, up)),
            asyncio.create_task(self._forward("to client", link, up_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _forward(
        self, side: Side, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        buffer = b""
        while data := await reader.read(_BLOCK):
            buffer += data
            passing, place = [], 0
            while (end := link.end_of_message(side, buffer, place)) is not None:
                message = buffer[place:end]
                place = end
                moment = link.hear(side, message)
                if moment.number >= 0 and self._watch is not None:
                    self._watch(moment)
                trap, allowed = self._trap, None
                if trap is not None and moment.number >= 0:
                    allowed = trap.place(moment)
                if trap is None or allowed is None:
                    passing.append(message)
                    continue
                self._trap = None
                trap.at = moment
                writer.write(b"".join(passing) + message[:allowed])
                await writer.drain()
                # A thread, since this task is cancelled when the blow ends the connection.
                await asyncio.to_thread(trap.spring)
                if trap.cut:
                    return  # the kernel has what was written, and hands it over before the end
                passing = [message[allowed:]]
            buffer = buffer[place:]
            if passing:
                writer.write(b"".join(passing))
                await writer.drain()


class _Link:
    """What was heard on one connection."""

    def __init__(self, client: int) -> None:
        self._client, self._backend = client, 0
        self._started = False
        self._single = 0  # one-byte answers to come, to requests before the startup
        self._committer = False
        self._statements: dict[bytes, str] = {}
        self._bound = ""
        self._numbers: dict[Side, int] = {"to server": -1, "to client": -1}

    def end_of_message(self, side: Side, buffer: bytes, place: int) -> int | None:
        """Where the message that begins at ``place`` ends; None: it is not here whole."""
        if side == "to client" and self._single and len(buffer) > place:
            return place + 1
        bare = side == "to server" and not self._started
        header = 4 if bare else 5
        if len(buffer) < place + header:
            return None
        end = int(place + (header - 4) + struct.unpack_from("!i", buffer, place + header - 4)[0])
        return end if len(buffer) >= end else None

    def hear(self, side: Side, message: bytes) -> Moment:
        if side == "to client" and self._single:
            self._single -= 1
            return self._unnumbered(side, message)
        if side == "to server" and not self._started:
            code = struct.unpack_from("!i", message, 4)[0]
            self._started = code >> 16 == _STARTUP >> 16
            self._single += not self._started
            return self._unnumbered(side, message)
        kind = chr(message[0])
        if side == "to server":
            self._hear_request(kind, message[5:])
        elif kind == "K":  # BackendKeyData
            self._backend = struct.unpack_from("!i", message, 5)[0]
        number = self._numbers[side]
        if self._committer and number >= 0:
            self._numbers[side] += 1
        else:
            number = -1
        # Requests are pipelined, so an answer says only by its tag whose it is.
        statement = self._bound
        if side == "to client":
            statement = message[5:-1].decode("utf-8", "replace") if kind == "C" else ""
        return Moment(side, number, kind, statement, len(message), self._client, self._backend)

    def _unnumbered(self, side: Side, message: bytes) -> Moment:
        return Moment(side, -1, "", "", len(message), self._client, self._backend)

    def _hear_request(self, kind: str, body: bytes) -> None:
        if kind == "Q":
            self._bound = body.rstrip(b"\0").decode("utf-8", "replace")
        elif kind == "P":
            name, text, _ = body.split(b"\0", 2)
            self._statements[name] = self._bound = text.decode("utf-8", "replace")
        elif kind == "B":
            _, name, _ = body.split(b"\0", 2)
            self._bound = self._statements.get(name, "")
        if COMMITTER in body:
            self._committer = True
        # The Bind that follows a Parse is the second message of the batch, not the first of another.
        follows = kind == "B" and self._numbers["to server"] == 1
        if kind in "QPB" and self._bound.startswith("BEGIN") and not follows:
            self._numbers = {"to server": 0, "to client": 0}
