"""A line of the log for each request: what an operator needs to find what a caller complains of, and nothing of what was sent."""

from __future__ import annotations

import logging
from typing import Any, Final

from memory_layer.errors import MemoryLayerError
from memory_layer.telemetry.logs import note_maker

# The lowest status that gets a line, by LOG_REQUESTS.
LOWEST: Final = {"all": 0, "failed": 400, "off": 600}

_note = note_maker("memory_layer.api.requests")


def note_request(
    method: str, route: str, status: int, seconds: float, request_id: str, error: MemoryLayerError | None
) -> None:
    """``route``: with its placeholders, for a path holds ids of tenants and nodes. The message of an error only where the server is to
    blame: others may repeat what was sent."""
    why: dict[str, Any] = {}
    if error is not None:
        why["code"] = error.code
        if status >= 500:
            why["error"] = error.message
    level = logging.ERROR if status >= 500 else logging.INFO
    ms = round(1000 * seconds, 2)
    _note(level, "answered", requestId=request_id, method=method, route=route, status=status, ms=ms, **why)
