"""The log: events in plain words with fields. JSON lines for machines, one readable line each on a terminal.

    log = get_logger("memory_layer.indexing")
    log.warning("vector rows were not indexed", rows=12, error=error.message)

The words of an event stay the same each time; what varies is a field: ids, counts, durations (``ms``, ``seconds``), the reason of a failure.
Content, metadata, tokens and secrets are never logged. What ``bind`` was given, the request's id for one, is in every line of its task.
"""

from __future__ import annotations

import contextvars
import datetime as dt
import json
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from json import encoder as _encoder
from typing import Any, Final, Literal, NamedTuple, TextIO

from structlog.contextvars import bind_contextvars, bound_contextvars, get_contextvars, merge_contextvars
from structlog.dev import ConsoleRenderer, plain_traceback
from structlog.stdlib import BoundLogger, filter_by_level
from structlog.typing import EventDict, Processor, WrappedLogger

from memory_layer.config import environment

Form = Literal["auto", "json", "text"]

bind = bind_contextvars  # for the rest of the task
bound = bound_contextvars  # for a block


class Event(dict[str, Any]):
    """What a record of the standard library holds as its message. A handler that knows nothing of it shows words and fields."""

    def __str__(self) -> str:
        fields = (f"{name}={_plain(value)!r}" for name, value in self.items() if name != "event")
        return " ".join((self["event"], *fields))


def _to_record(_: WrappedLogger, __: str, event: EventDict) -> tuple[tuple[Event], dict[str, Any]]:
    """The arguments of the standard library's logger."""
    exc_info = event.pop("exc_info", None)
    return (Event(event),), {"exc_info": exc_info}


_PROCESSORS: Final[list[Processor]] = [filter_by_level, merge_contextvars, _to_record]


def get_logger(name: str) -> BoundLogger:
    """A logger of events. Before ``log_to_stderr`` they go where the standard library sends records by itself."""
    return BoundLogger(logging.getLogger(name), _PROCESSORS, {})


def note_maker(name: str) -> Callable[..., None]:
    """A logger of what is said very often, ``note(logging.INFO, "words", field=...)``. Where ``Stderr`` alone is told, its thread makes the
    line; else it is a record of the standard library, without structlog's chain and the search for who called."""
    logger, root = logging.getLogger(name), logging.getLogger()

    def note(level: int, event: str, **fields: Any) -> None:
        if not logger.isEnabledFor(level):
            return
        said = _Note(name, level, time.time(), contextvars.copy_context(), event, fields)
        if len(root.handlers) == 1 and isinstance(stderr := root.handlers[0], Stderr):
            stderr.note(said)
        else:
            logger.handle(said.record())

    return note


class _Note(NamedTuple):
    """What was said, by the logger of that name, at a time of ``time.time()``."""

    name: str
    level: int
    created: float
    context: contextvars.Context
    event: str
    fields: dict[str, Any]

    def record(self) -> logging.LogRecord:
        event = Event(self.context.run(get_contextvars), event=self.event, **self.fields)
        record = logging.LogRecord(self.name, self.level, "", 0, event, None, None)
        record.created = self.created
        return record

    def line(self, lines: Lines) -> str:
        level = logging.getLevelName(self.level)
        return lines.line(
            self.created, level, self.name, self.event, {**self.context.run(get_contextvars), **self.fields}
        )


class Stderr(logging.StreamHandler[TextIO]):
    """Writes lines in the order in which they were said: notes a moment later by a thread, many at a time, all else at once.

    A write waits for the disk, where the file's disk is the one that Postgres syncs, and who answers requests must not wait with it.
    """

    MOMENT: Final = 0.05  # seconds
    MOST: Final = 10_000  # notes; whoever says more while the disk stands still waits for it

    def __init__(self, stream: TextIO, lines: Lines) -> None:
        super().__init__(stream)
        self.setFormatter(lines)
        self._lines = lines
        self._notes: deque[_Note] = deque()
        self._due = threading.Event()
        self._open = True
        self._thread: threading.Thread | None = None

    def note(self, said: _Note) -> None:
        """Have it written a moment later."""
        self._notes.append(said)
        if len(self._notes) > self.MOST:
            self.flush()
        elif not self._due.is_set():
            self._due.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_notes, name="log", daemon=True)
                self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        self._write()
        super().emit(record)

    def flush(self) -> None:
        self._write()
        super().flush()

    def close(self) -> None:
        self._open = False
        self._due.set()
        self._write()
        super().close()

    def _write_notes(self) -> None:
        while self._open:
            self._due.wait()
            time.sleep(self.MOMENT)
            self._due.clear()
            self._write()

    def _write(self) -> None:
        self.acquire()
        notes = [self._notes.popleft() for _ in range(len(self._notes))]
        try:
            if notes:
                self.stream.write("".join([note.line(self._lines) + self.terminator for note in notes]))
                self.stream.flush()
        except Exception:  # noqa: BLE001 - the standard library's way: a log that cannot be written stops nothing
            self.handleError(notes[-1].record())
        finally:
            self.release()


class Lines(logging.Formatter):
    """Events, and the messages of libraries, as lines. Tracebacks show code, never the values of variables."""

    def __init__(self, render: Callable[[dict[str, Any]], str]) -> None:
        super().__init__()
        self._render = render

    def format(self, record: logging.LogRecord) -> str:
        words, fields = record.msg, get_contextvars()
        if isinstance(words, Event):
            fields = dict(words)
            words = fields.pop("event")
        else:
            words = record.getMessage()
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return self.line(record.created, record.levelname, record.name, words, fields)

    def line(self, created: float, level: str, logger: str, words: str, fields: Mapping[str, Any]) -> str:
        """``created``: a time of ``time.time()``."""
        moment = dt.datetime.fromtimestamp(created, dt.UTC).isoformat(timespec="milliseconds")
        return self._render({"ts": moment, "level": level.lower(), "logger": logger, "message": words, **fields})


# What json.dumps writes, without the objects that it makes for each text.
_json: Final[Any] = _encoder.c_make_encoder(  # type: ignore[attr-defined]
    None, str, _encoder.encode_basestring, None, ": ", ", ", False, False, True
)


def as_json(line: dict[str, Any]) -> str:
    """Lines for machines."""
    return "".join(_json(line, 0))


def as_text(*, colors: bool = False) -> Callable[[dict[str, Any]], str]:
    """Lines for people."""
    console = ConsoleRenderer(
        colors=colors,
        sort_keys=False,
        pad_event_to=0,
        timestamp_key="ts",
        event_key="message",
        exception_formatter=plain_traceback,
    )
    return lambda line: console(None, "", {name: _printable(name, _plain(value)) for name, value in line.items()})


def for_people(line: str) -> str:
    """A JSON line of the log as text; anything else as it is."""
    try:
        found = json.loads(line)
    except ValueError:
        return line
    return as_text()(found) if isinstance(found, dict) and "message" in found else line


def _plain(value: object) -> object:
    """As JSON has it: ids and paths as text."""
    return value if value is None or isinstance(value, (str, int, float, list, dict)) else str(value)


def _printable(name: str, value: object) -> object:
    """Without characters that move a terminal's cursor or set its title: some texts come from other servers."""
    if not isinstance(value, str) or value.isprintable():
        return value
    line_break = "\n" if name == "exception" else " "
    return "".join(line_break if c == "\n" else c if c.isprintable() else repr(c)[1:-1] for c in value)


def log_to_stderr(form: Form = "auto") -> None:
    """Send the process's log to stderr; ``auto`` is text on a terminal, else JSON."""
    terminal = sys.stderr.isatty()
    text = form == "text" or (form == "auto" and terminal)
    lines = Lines(as_text(colors=terminal and "NO_COLOR" not in environment()) if text else as_json)
    handler = Stderr(sys.stderr, lines)
    logging.basicConfig(level="INFO", handlers=[handler], force=True)
    # It logs every request with its whole URL: tenants and node ids have no place in a log.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
