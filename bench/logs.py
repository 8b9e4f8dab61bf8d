"""What a line of the log costs a request: the processor's time, for the request waits for it and everybody else does too."""

from __future__ import annotations

import contextlib
import logging
import statistics
import tempfile
import time
from collections.abc import Callable

from bench.report import Table
from memory_layer.api.request_log import note_request
from memory_layer.telemetry.logs import Form, bind, get_logger, log_to_stderr

LINES, ROUNDS = 20_000, 7


def measure() -> Table:
    event = get_logger("memory_layer.bench")
    bind(requestId="0193a5f2-7b1c-7000-8000-000000000000")
    rows = [
        ("the line of a GET, as JSON", _cost("json", _request)),
        ("the line of a GET, as text", _cost("text", _request)),
        ("an event with two fields, as JSON", _cost("json", lambda: event.info("rows were indexed", rows=12, ms=3.4))),
        (
            "an event below the level of the log",
            _cost("json", lambda: event.debug("rows were indexed", rows=12, ms=3.4)),
        ),
    ]
    about = f"CPU time, median of {ROUNDS} rounds of {LINES:,} lines, written to a file (those of requests by a thread, many at a time); `LOG_REQUESTS=off` saves the first"
    return Table("logs", rows, about)


def _request() -> None:
    note_request("GET", "/v1/memory/nodes/{id}", 200, 0.00123, "0193a5f2-7b1c-7000-8000-000000000000", None)


def _cost(form: Form, line: Callable[[], object]) -> str:
    with tempfile.TemporaryFile("w") as file, contextlib.redirect_stderr(file):
        log_to_stderr(form)
        taken = []
        for _ in range(ROUNDS):
            began = time.process_time()
            for _ in range(LINES):
                line()
            logging.getLogger().handlers[0].flush()
            taken.append((time.process_time() - began) / LINES)
    return f"{statistics.median(taken) * 1e6:.1f} µs"
