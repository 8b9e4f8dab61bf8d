"""The log: JSON lines that parse and carry their fields, lines for people on a terminal, nothing but events in the code."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import io
import json
import logging
import re
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

import memory_layer
from memory_layer.telemetry import logs

PACKAGE = Path(memory_layer.__file__).parent
log = logs.get_logger("memory_layer.test")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Start(Protocol):
    def __call__(self, form: logs.Form = "auto", *, terminal: bool = False) -> io.StringIO: ...


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """The process's log, written to what stands for its stderr; afterwards it is as pytest has it."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers[:] = []
    monkeypatch.setenv("NO_COLOR", "1")

    def begin(form: logs.Form = "auto", *, terminal: bool = False) -> io.StringIO:
        file = Terminal() if terminal else io.StringIO()
        with contextlib.redirect_stderr(file):
            logs.log_to_stderr(form)
        return file

    yield begin
    root.handlers[:] = before
    root.setLevel(level)


def lines(file: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.getvalue().splitlines()]


def test_an_event_is_a_json_line_with_its_fields(start: Start) -> None:
    stderr = start()
    node = uuid.uuid4()
    log.info("rows were indexed", tenant="a", node=node, seq=7, ms=1.5, path=Path("/x"), error='two\nlines, "quoted"')
    (line,) = lines(stderr)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("ts"))
    assert line == {
        "level": "info", "logger": "memory_layer.test", "message": "rows were indexed", "tenant": "a", "node": str(node), "seq": 7,
        "ms": 1.5, "path": "/x", "error": 'two\nlines, "quoted"',
    }  # fmt: skip


def test_what_is_bound_is_in_every_line_of_its_task(start: Start) -> None:
    stderr = start()

    async def request(name: str) -> None:
        logs.bind(requestId=name)
        await asyncio.sleep(0)
        log.info("begun")
        with logs.bound(job="archive"):
            logging.getLogger("a.library").warning("%d retries", 3)

    async def both() -> None:
        await asyncio.gather(asyncio.create_task(request("r-1")), asyncio.create_task(request("r-2")))
        log.info("neither")

    asyncio.run(both())
    found = [(line["message"], line.get("requestId"), line.get("job")) for line in lines(stderr)]
    assert sorted(found[:4]) == [
        ("3 retries", "r-1", "archive"), ("3 retries", "r-2", "archive"), ("begun", "r-1", None), ("begun", "r-2", None)
    ]  # fmt: skip
    assert found[4:] == [("neither", None, None)]


def test_a_traceback_shows_code_and_no_values(start: Start) -> None:
    stderr = start()
    _fail("a secret that no log holds")
    (line,) = lines(stderr)
    assert (line["level"], line["message"]) == ("error", "it failed")
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("KeyError: 'what'")
    assert "a secret" not in stderr.getvalue()


def test_so_does_one_on_a_terminal(start: Start) -> None:
    terminal = start(terminal=True)
    _fail("a secret that no log holds")
    assert "\nTraceback (most recent call last):\n" in terminal.getvalue()
    assert "KeyError: 'what'" in terminal.getvalue()
    assert "a secret" not in terminal.getvalue()


def _fail(secret: str) -> None:
    try:
        {"secret": secret}["what"]
    except KeyError:
        log.exception("it failed")


def test_a_terminal_has_lines_for_people(start: Start) -> None:
    terminal = start(terminal=True)
    log.warning("a job failed", job="archive", error="no disk")
    logging.getLogger("uvicorn.error").info("Started server process [%d]", 12)
    first, second = (line.partition(" ")[2] for line in terminal.getvalue().splitlines())
    assert re.sub(" +", " ", first) == "[warning ] a job failed [memory_layer.test] job=archive error='no disk'"
    assert re.sub(" +", " ", second) == "[info ] Started server process [12] [uvicorn.error]"


def test_colours_are_for_terminals_that_want_them(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = start(terminal=True)
    log.info("plain")
    assert "\x1b" not in terminal.getvalue()
    monkeypatch.delenv("NO_COLOR")
    terminal = start(terminal=True)
    log.info("coloured")
    assert "\x1b[" in terminal.getvalue()


def test_no_text_moves_the_cursor_or_makes_a_line(start: Start) -> None:
    terminal = start(terminal=True)
    log.info("an answer", error="\x1b[2Jfake\n2026 [info] forged\u202e")
    logging.getLogger("a.library").info("%s", "\x1b]0;title\x07 and\nanother line")
    assert len(terminal.getvalue().splitlines()) == 2
    assert all(char.isprintable() or char == "\n" for char in terminal.getvalue())


def test_the_setting_goes_before_the_terminal(start: Start) -> None:
    stderr = start("text")
    log.info("text in a file")
    assert stderr.getvalue().endswith("text in a file [memory_layer.test]\n")
    made = start("json", terminal=True)
    log.info("json on a terminal")
    assert [line["message"] for line in lines(made)] == ["json on a terminal"]


def test_any_other_handler_shows_words_and_fields(caplog: pytest.LogCaptureFixture) -> None:
    log.warning("a run could not be stored", run=uuid.UUID(int=1), tries=2, reason="no disk")
    assert caplog.messages == [
        "a run could not be stored run='00000000-0000-0000-0000-000000000001' tries=2 reason='no disk'"
    ]


def test_a_json_line_can_be_shown_to_people(start: Start) -> None:
    stderr = start("json")
    _fail("x")
    shown = logs.for_people(stderr.getvalue().strip())
    assert "[error    ] it failed [memory_layer.test]\nTraceback" in shown
    assert [logs.for_people(line) for line in ("memoryctl: no", "[1]", '{"a": 1}')] == [
        "memoryctl: no",
        "[1]",
        '{"a": 1}',
    ]


class Disk(io.StringIO):
    """A file that takes nothing while its disk is busy."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()
        self.written = threading.Event()
        self.full = False

    def flush(self) -> None:
        if self.full:
            raise OSError(28, "No space left on device")

    def write(self, text: str) -> int:
        assert self.free.wait(60)
        count = super().write(text)
        self.written.set()
        return count


def test_who_answers_requests_does_not_wait_for_the_disk(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is said otherwise comes after what was said before."""
    start("json")
    (stderr,) = logging.getLogger().handlers
    assert isinstance(stderr, logs.Stderr)
    disk = Disk()
    stderr.setStream(disk)
    note = logs.note_maker("memory_layer.test")
    with logs.bound(traceId="t-1"):
        note(logging.INFO, "answered", requestId="r-1", status=200)
    note(logging.DEBUG, "not said")
    note(logging.ERROR, "answered", requestId="r-2", status=503)
    assert not disk.getvalue()
    disk.free.set()
    assert disk.written.wait(60)
    log.warning("one is left")
    note(logging.INFO, "answered", requestId="r-3")
    log.warning("none is left")
    told = [(line["level"], line["message"], line.get("requestId"), line.get("traceId")) for line in lines(disk)]
    assert told == [
        ("info", "answered", "r-1", "t-1"), ("error", "answered", "r-2", None), ("warning", "one is left", None, None),
        ("info", "answered", "r-3", None), ("warning", "none is left", None, None),
    ]  # fmt: skip
    # A disk that is full for a while ends no thread.
    monkeypatch.setattr(logging, "raiseExceptions", False)
    disk.full = True
    disk.written.clear()
    note(logging.INFO, "while it was full")
    assert disk.written.wait(60)
    disk.full = False
    disk.written.clear()
    note(logging.INFO, "afterwards")
    assert disk.written.wait(60)
    note(logging.INFO, "the last")
    stderr.close()
    assert lines(disk)[-1]["message"] == "the last"


def test_a_note_is_for_every_handler(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        logs.note_maker("memory_layer.test")(logging.INFO, "answered", status=200)
    assert caplog.messages == ["answered status=200"]


METHODS = ("debug", "info", "warning", "error", "exception", "critical")
HEAD = {"event", "ts", "level", "logger", "message", "exception"}
NEVER = {"content", "metadata", "token", "secret", "key", "password", "body", "query", "text", "embedding", "payload"}


def test_every_log_call_is_an_event_with_fields() -> None:
    """Words that stay the same, and what varies by name; no field by which content or a secret could get into the log."""
    wrong, seen = [], 0
    for path in PACKAGE.rglob("*.py"):
        if path == PACKAGE / "private.py":  # beneath the log; it names folders alone
            continue
        for call in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in METHODS):
                continue
            if not (isinstance(call.func.value, ast.Name) and call.func.value.id in ("log", "_log")):
                continue
            seen += 1
            fields = {keyword.arg for keyword in call.keywords}
            words = call.args[0].value if len(call.args) == 1 and isinstance(call.args[0], ast.Constant) else None
            if not isinstance(words, str) or "%" in words or fields & (HEAD | NEVER):
                wrong.append(f"{path.relative_to(PACKAGE)}:{call.lineno}")
    assert wrong == []
    assert seen > 50


def test_nothing_but_the_log_itself_makes_loggers() -> None:
    """So that every line goes through one formatter. The exceptions are beneath it, or silence the loggers of libraries; the client
    stands alone."""
    makers = [p.relative_to(PACKAGE) for p in PACKAGE.rglob("*.py") if "logging.getLogger(" in p.read_text("utf-8")]
    assert {str(p) for p in makers if p.parts[0] != "client"} == {
        "private.py", "cli/app.py", "stores/vectors/milvus_wire.py", "telemetry/logs.py"
    }  # fmt: skip
