"""The ASGI application: one dispatcher for every operation, errors mapped in one place."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from memory_layer import errors, telemetry
from memory_layer.api import decode, docs, health
from memory_layer.api.auth import Authenticator, demand, request_id_of
from memory_layer.api.handlers import Call
from memory_layer.api.operations import OPERATIONS, Operation
from memory_layer.api.replies import error_response
from memory_layer.config import Settings
from memory_layer.model import uuid7
from memory_layer.service import Memory, open_memory
from memory_layer.service.changes import Idempotency
from memory_layer.service.commit import request_hash
from memory_layer.telemetry import metrics

log = logging.getLogger("memory_layer.api")

Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(settings: Settings, data: Path, public_key: str) -> Starlette:
    """The application; stores are opened when it starts and closed when it stops."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with open_memory(settings, data) as memory:
            app.state.memory = memory
            app.state.authenticator = Authenticator(settings, public_key, memory.stores.postgres)
            yield

    app = Starlette(
        routes=[*_routes(), *health.routes(), *docs.routes()],
        lifespan=lifespan,
        exception_handlers={HTTPException: _http_error, Exception: _unforeseen},
    )
    # A path with a slash too many is no path of this API: 404 as any other, not a 307 to wherever Host points.
    app.router.redirect_slashes = False
    return app


def _routes() -> list[BaseRoute]:
    """One Route per path, so that a wrong method is 405 with Allow."""
    by_path: dict[str, dict[str, Endpoint]] = {}
    for operation in OPERATIONS:
        by_path.setdefault(operation.path, {})[operation.method] = _endpoint(operation)
    routes: list[BaseRoute] = []
    for path, endpoints in by_path.items():
        routes.append(Route(path, _by_method(endpoints), methods=list(endpoints)))
    return routes


def _by_method(endpoints: dict[str, Endpoint]) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        # Starlette answers HEAD wherever GET is.
        return await endpoints["GET" if request.method == "HEAD" else request.method](request)

    return endpoint


def _endpoint(operation: Operation) -> Endpoint:
    """Authenticate, authorise, decode, run; in that order, so that nobody learns what they may not."""

    async def endpoint(request: Request) -> Response:
        started = time.perf_counter()
        request_id = str(uuid7())
        response: Response
        try:
            request_id = request_id_of(request)
            telemetry.request_id.set(request_id)
            response = await _run(operation, request, request_id)
        except errors.MemoryLayerError as error:
            response = error_response(error, request_id)
        except ClientDisconnect:
            response = error_response(
                errors.MalformedJson("The connection was cut before the body was complete."), request_id
            )
        except Exception:
            log.exception("%s failed", operation.name)
            response = error_response(
                errors.MemoryLayerError("Something went wrong; nothing more is known here."), request_id
            )
        response.headers["X-Request-Id"] = request_id
        metrics.requests.labels(operation.method, operation.path, str(response.status_code)).inc()
        metrics.request_seconds.labels(operation.method, operation.path).observe(time.perf_counter() - started)
        return response

    return endpoint


async def _run(operation: Operation, request: Request, request_id: str) -> Response:
    state = request.app.state
    memory: Memory = state.memory
    caller = await state.authenticator.caller(request, request_id)
    demand(caller, operation.scope)
    query = decode.query(request.query_params, operation.query)
    raw = b""
    body: Any = None
    if operation.body is not None:
        if operation.many:
            raw, body = await decode.items(request)
        else:
            raw = await decode.read_body(request)
            body = decode.body(raw, operation.body)
    idempotency = _idempotency(operation, request, raw) if operation.writes else None
    return await operation.handler(Call(memory, caller, request, idempotency, query, body, len(raw)))


def _idempotency(operation: Operation, request: Request, raw: bytes) -> Idempotency | None:
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not 1 <= len(key) <= 255 or not key.isascii() or not key.isprintable():
        raise errors.ValidationError(
            "Idempotency-Key must be 1 to 255 printable ASCII characters.",
            details=[errors.Problem("header.idempotency-key", "does not fit")],
        )
    # What else decides the outcome; the hash of a streamed body is added by its use case, once it is known.
    told = [request.headers.get(name.lower(), "") for name in operation.headers]
    if operation.streams:
        told.append(request.headers.get("content-type", ""))
    return Idempotency(key, request_hash(operation.method, request.url.path, request.url.query, *told, raw))


async def _http_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code == 405:
        response = error_response(errors.MethodNotAllowed(f"{request.method} is not answered here."), str(uuid7()))
        response.headers.update(error.headers or {})
        return response
    return error_response(errors.NotFound(f"There is nothing at {request.url.path}."), str(uuid7()))


async def _unforeseen(_: Request, error: Exception) -> Response:
    log.error("unforeseen error", exc_info=error)
    return error_response(errors.MemoryLayerError("Something went wrong; nothing more is known here."), str(uuid7()))
