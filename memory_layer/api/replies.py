"""Answers as responses of the framework: the only place that makes one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from memory_layer.api.calls import Answer
from memory_layer.errors import MemoryLayerError, error_body


def error_answer(error: MemoryLayerError, request_id: str) -> Answer:
    """The one shape of every error."""
    headers = {"X-Request-Id": request_id}
    if error.retry_after is not None or error.status == 503:
        headers["Retry-After"] = str(error.retry_after or 1)
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="memory-layer"'
    return Answer(error.status, {"error": error_body(error) | {"requestId": request_id}}, headers)


async def respond(answer: Answer, *, head: bool = False) -> Response:
    """``head``: nobody is sent the body, so a stream is not opened. Raises what the first block of a stream raises."""
    body, headers = answer.body, dict(answer.headers)
    if isinstance(body, AsyncIterator) and not head:
        return StreamingResponse(await _opened(body), answer.status, headers)
    if body is None or isinstance(body, bytes | AsyncIterator):
        return Response(body if isinstance(body, bytes) else None, answer.status, headers)
    return Response(msgspec.json.encode(body), answer.status, headers, "application/json")


def route(path: str, handler: Callable[[Request], Awaitable[Answer]]) -> BaseRoute:
    """A path that is no operation: no token, no body, nothing of the table of calls."""

    async def endpoint(request: Request) -> Response:
        return await respond(await handler(request))

    return Route(path, endpoint, methods=["GET"])


async def _opened(blocks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same blocks; the first is read before a status line is sent, so that a lost object is an error and no torn 200."""
    first = await anext(blocks, b"")

    async def rest() -> AsyncIterator[bytes]:
        if first:
            yield first
        async for block in blocks:
            yield block

    return rest()
