"""JSON answers, and the one shape of every error."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from memory_layer.errors import MemoryLayerError, error_body


def reply(status: int, answer: Any, headers: dict[str, str] | None = None) -> Response:
    """An answer as JSON."""
    return Response(msgspec.json.encode(answer), status, headers, "application/json")


def error_response(error: MemoryLayerError, request_id: str) -> Response:
    """The one shape of every error."""
    headers = {"X-Request-Id": request_id}
    if error.retry_after is not None or error.status == 503:
        headers["Retry-After"] = str(error.retry_after or 1)
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="memory-layer"'
    return reply(error.status, {"error": error_body(error) | {"requestId": request_id}}, headers)
