"""The ASGI application: one dispatcher for every operation, errors mapped in one place.

A request becomes a ``Call``, its handler gives an ``Answer``, and ``replies.py`` makes the response of that.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.datastructures import State
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memory_layer import aside, errors
from memory_layer.api import decode, docs, health
from memory_layer.api.admission import Admission
from memory_layer.api.admission_gate import AdmissionGate
from memory_layer.api.auth import Authenticator, is_public, nobody, request_id_of, require_scope
from memory_layer.api.calls import Answer, Call
from memory_layer.api.operations import OPERATIONS, Operation
from memory_layer.api.replies import error_answer, respond
from memory_layer.api.request_log import LOWEST, note_request
from memory_layer.config import Settings
from memory_layer.model import uuid7
from memory_layer.service.commit import Idempotency, request_hash
from memory_layer.service.installation import Installation
from memory_layer.service.running import open_service
from memory_layer.service.system import bind_principals
from memory_layer.service.write_probe import watch
from memory_layer.stores.token_keys import TokenKeys
from memory_layer.telemetry import logs, metrics

log = logs.get_logger("memory_layer.api")

USES_SECONDS = 60.0  # between two writes of when API keys were used

Endpoint = Callable[[Scope, Receive, Send], Awaitable[None]]


def create_app(settings: Settings, data: Path, keys: TokenKeys, refused: list[errors.MemoryLayerError]) -> ASGIApp:
    """The application; stores are opened when it starts and closed when it stops. Why it did not start is put into ``refused``."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            try:
                installation = await stack.enter_async_context(open_service(settings, data))
            except errors.MemoryLayerError as error:
                refused.append(error)
                raise
            app.state.installation = installation
            probing = asyncio.create_task(
                watch(installation.postgres, installation.committer.health), name="probe of writes"
            )
            stack.callback(probing.cancel)
            app.state.admission_gate = AdmissionGate()
            app.state.admission = Admission()
            app.state.authenticator = Authenticator(settings, keys, installation.postgres)
            stack.push_async_callback(keys.close)
            noting = asyncio.create_task(_note_uses(app.state.authenticator), name="last uses of API keys")
            stack.callback(noting.cancel)
            await bind_principals(installation)
            yield

    by_path: dict[str, dict[str, Endpoint]] = {}
    routed = Starlette(
        routes=[*_routes(by_path), *health.routes(), *docs.routes()],
        lifespan=lifespan,
        exception_handlers={HTTPException: _http_error, Exception: _unforeseen},
    )
    # A path with a slash too many is no path of this API: 404 as any other, not a 307 to wherever Host points.
    routed.router.redirect_slashes = False
    for operation in OPERATIONS:
        by_path.setdefault(operation.path, {})[operation.method] = _endpoint(
            operation, routed.state, settings.log_requests
        )
    fixed = {
        (method, path): endpoint
        for path, endpoints in by_path.items()
        if "{" not in path
        for method, endpoint in endpoints.items()
    }

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":

            async def forward(message: Message) -> None:
                # Starlette says it by a traceback, which is nothing to read for an operator whose setting is wrong.
                await send({"type": message["type"]} if refused else message)

            await routed(scope, receive, forward)
            return
        # Most requests name a path without an id in it; they need no router and none of its layers (a third of their time).
        endpoint = fixed.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        await (routed if endpoint is None else endpoint)(scope, receive, send)

    return app


class _AnyText(PathConvertor):
    """The rest of a path, line breaks and all: what callers name as they like."""

    regex = "(?s:.*)"


register_url_convertor("any", _AnyText())


class _ByMethod:
    """What answers at one path. An object, not a function, so that the router hands on scope, receive and send as they are."""

    def __init__(self, endpoints: dict[str, Endpoint]) -> None:
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Starlette answers HEAD wherever GET is.
        await self._endpoints["GET" if scope["method"] == "HEAD" else scope["method"]](scope, receive, send)


async def _note_uses(authenticator: Authenticator) -> None:
    """Write which API keys were used, beside the requests."""
    while True:
        await asyncio.sleep(USES_SECONDS)
        try:
            await authenticator.note_uses()
        except errors.MemoryLayerError as error:
            log.warning("the last use of API keys could not be written", error=error.message)


def _routes(by_path: dict[str, dict[str, Endpoint]]) -> list[BaseRoute]:
    """One Route per path, so that a wrong method is 405 with Allow. What answers there is put into ``by_path`` later."""
    methods: dict[str, list[str]] = {}
    for operation in OPERATIONS:
        methods.setdefault(operation.path, []).append(operation.method)
    return [Route(path, _ByMethod(by_path.setdefault(path, {})), methods=allowed) for path, allowed in methods.items()]


def _endpoint(operation: Operation, state: State, level: str) -> Endpoint:
    """Authenticate, authorise, decode, run; in that order, so that nobody learns what they may not."""
    seconds = metrics.request_seconds.labels(operation.method, operation.path)
    counts: dict[int, Any] = {}  # by status
    lowest = LOWEST[level]

    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        request_id, response = "", None
        failure: errors.MemoryLayerError | None = None
        try:
            headers = _headers(scope)
            request_id = request_id_of(headers)
            logs.bind(requestId=request_id)
            answer = await _run(operation, state, Request(scope, receive), headers, request_id)
            response = await respond(answer, head=scope["method"] == "HEAD")
            response.raw_headers.append((b"x-request-id", request_id.encode("ascii")))
        except errors.MemoryLayerError as error:
            failure = error
        except ClientDisconnect:
            failure = errors.MalformedJson("The connection was cut before the body was complete.")
        except Exception:
            log.exception("an operation failed in an unforeseen way", operation=operation.name)
        if response is None:
            failure = failure or errors.MemoryLayerError("Something went wrong; nothing more is known here.")
            request_id = request_id or str(uuid7())
            response = await respond(error_answer(failure, request_id))
        status = response.status_code
        try:
            if status not in counts:
                counts[status] = metrics.requests.labels(operation.method, operation.path, str(status))
            counts[status].inc()
            taken = time.perf_counter() - started
            seconds.observe(taken)
            if status >= lowest:
                note_request(operation.method, operation.path, status, taken, request_id, failure)
        except Exception:
            log.exception(
                "a request could not be counted", operation=operation.name
            )  # what it did is done, and is answered
        await response(scope, receive, send)

    return endpoint


def _headers(scope: Scope) -> dict[str, str]:
    """By lower-case name; of one that is repeated the first."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}


async def _run(
    operation: Operation, state: State, request: Request, headers: dict[str, str], request_id: str
) -> Answer:
    installation: Installation = state.installation
    if (
        operation.public is not None
        and not headers.keys() & {"authorization", "x-api-key"}
        and is_public(installation.settings, operation.public)
    ):
        caller = nobody(request_id)
    else:
        caller = await state.authenticator.caller(headers, request_id)
        if caller.trace_id is not None:
            logs.bind(traceId=caller.trace_id)
        require_scope(caller, operation.scope)
    query = decode.query(request.scope["query_string"], operation.query)
    raw = b""
    body: Any = None
    if operation.body is not None or operation.streams:
        decode.require_plain(headers)
    admission: Admission = state.admission
    room = admission.room()
    try:
        if operation.body is not None:
            if operation.many:
                raw, body = await decode.items(request.receive, headers, room)
            else:
                raw = await decode.read_body(request.receive, headers, room)
                await state.admission_gate.enter(len(raw))
                body = await aside.run(len(raw), decode.body, raw, operation.body)
        key = headers.get("idempotency-key") if operation.writes else None
        idempotency = (
            None if key is None else await aside.run(len(raw), _idempotency, key, operation, request, headers, raw)
        )
        stream = request.stream() if operation.streams else None
        call = Call(installation, caller, headers, request.path_params, query, body, len(raw), idempotency, stream)
        if operation.streams:
            with admission.upload():
                return await operation.handler(call)
        return await operation.handler(call)
    finally:
        room.leave()


def _idempotency(key: str, operation: Operation, request: Request, headers: dict[str, str], raw: bytes) -> Idempotency:
    if not 1 <= len(key) <= 255 or not key.isascii() or not key.isprintable():
        raise errors.ValidationError(
            "Idempotency-Key must be 1 to 255 printable ASCII characters.",
            details=[errors.Problem("header.idempotency-key", "does not fit")],
        )
    # What else decides the outcome; the hash of a streamed body is added by its use case, once it is known.
    parts = [headers.get(name.lower(), "") for name in operation.headers]
    if operation.streams:
        parts.append(headers.get("content-type", ""))
    return Idempotency(key, request_hash(operation.method, request.url.path, request.url.query, *parts, raw))


async def _http_error(request: Request, error: Exception) -> Response:
    wrong_method = isinstance(error, HTTPException) and error.status_code == 405
    failure: errors.MemoryLayerError
    if wrong_method:
        failure = errors.MethodNotAllowed(f"{request.method} is not answered here.")
    else:
        failure = errors.NotFound(f"There is nothing at {request.url.path}.")
    request_id = str(uuid7())
    answer = error_answer(failure, request_id)
    if wrong_method:
        answer = replace(answer, headers={**answer.headers, **(error.headers or {})})  # type: ignore[attr-defined]
    installation: Installation = request.app.state.installation
    if answer.status >= LOWEST[installation.settings.log_requests]:
        note_request(request.method, "-", answer.status, 0.0, request_id, failure)
    return await respond(answer)


async def _unforeseen(_: Request, error: Exception) -> Response:
    request_id = str(uuid7())
    log.error("a request failed in an unforeseen way", requestId=request_id, exc_info=error)
    failure = errors.MemoryLayerError("Something went wrong; nothing more is known here.")
    return await respond(error_answer(failure, request_id))
