"""A line of the log for each request: what an operator needs to find what a caller complains of, and nothing of what was sent."""

from __future__ import annotations

from typing import Any, Final

from memory_layer.errors import MemoryLayerError
from memory_layer.telemetry.logs import get_logger

# The lowest status that gets a line, by LOG_REQUESTS.
LOWEST: Final = {"all": 0, "failed": 400, "off": 600}

log = get_logger("memory_layer.api.requests")


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
    line = log.error if status >= 500 else log.info
    line(
        "answered", requestId=request_id, method=method, route=route, status=status, ms=round(1000 * seconds, 2), **why
    )
