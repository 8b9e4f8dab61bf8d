"""The log: events in plain words with fields. JSON lines for machines, one readable line each on a terminal.

    log = get_logger("memory_layer.indexing")
    log.warning("vector rows were not indexed", rows=12, error=error.message)

The words of an event stay the same each time; what varies is a field: ids, counts, durations (``ms``, ``seconds``), the reason of a failure.
Content, metadata, tokens and secrets are never logged. What ``bind`` was given, the request's id for one, is in every line of its task.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys
from collections.abc import Callable
from typing import Any, Final, Literal

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
    """A logger of what is said very often, ``note(logging.INFO, "words", field=...)``: the same records without structlog's chain and the
    search for who called, which cost three times what the line does."""
    logger = logging.getLogger(name)

    def note(level: int, event: str, **fields: Any) -> None:
        if logger.isEnabledFor(level):
            line = Event(get_contextvars(), event=event, **fields)
            logger.handle(logging.LogRecord(name, level, "", 0, line, None, None))

    return note


class Lines(logging.Formatter):
    """Events, and the messages of libraries, as lines. Tracebacks show code, never the values of variables."""

    def __init__(self, render: Callable[[dict[str, Any]], str]) -> None:
        super().__init__()
        self._render = render

    def format(self, record: logging.LogRecord) -> str:
        event = record.msg if isinstance(record.msg, Event) else {"event": record.getMessage(), **get_contextvars()}
        line: dict[str, Any] = {
            "ts": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": event["event"],
        }
        line.update(event)
        del line["event"]
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return self._render(line)


as_json: Final = json.JSONEncoder(ensure_ascii=False, default=str).encode


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
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines(as_text(colors=terminal and "NO_COLOR" not in environment()) if text else as_json))
    logging.basicConfig(level="INFO", handlers=[handler], force=True)
    # It logs every request with its whole URL: tenants and node ids have no place in a log.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
