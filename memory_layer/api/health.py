"""/livez, /healthz, /readyz, /metrics."""

from __future__ import annotations

import contextlib
import ipaddress

from starlette.requests import Request
from starlette.routing import BaseRoute

from memory_layer.api.calls import Answer
from memory_layer.api.replies import error_answer, route
from memory_layer.errors import MemoryLayerError, Unauthenticated
from memory_layer.model import uuid7
from memory_layer.ops.migrate import missing
from memory_layer.service import freeze
from memory_layer.service.actions.log import freeze_facts
from memory_layer.service.indexing import backlog, report
from memory_layer.service.installation import Installation
from memory_layer.service.worker_breakers import breakers
from memory_layer.stores.breakers import BREAKER_STATES, SERVICES
from memory_layer.telemetry import metrics as exported

_PASSED_ON = ("x-forwarded-for", "x-forwarded-host", "x-real-ip", "forwarded", "via")


def routes() -> list[BaseRoute]:
    return [
        route("/livez", livez),
        route("/healthz", healthz),
        route("/readyz", readyz),
        route("/metrics", metrics),
    ]


async def livez(_: Request) -> Answer:
    """The process answers; nothing else is asked."""
    return Answer(200, {"status": "ok"})


async def healthz(request: Request) -> Answer:
    """Database, log and adapters: 503 when the database is down or takes no writes, when the log does not end as its keys sealed it, or while writes are
    refused because it lacks what was signed of it (``rollback``). 200 ``degraded`` when only search or files are down, when a worker does
    without a service (its breaker is open), or when a place that keeps checkpoints does not answer."""
    installation: Installation = request.app.state.installation
    checks = {}
    pending, oldest, frozen = -1.0, 0.0, None
    broken: dict[str, str] = {}
    try:
        pending, oldest = await backlog(installation)
        broken = await breakers(installation)
        frozen = await freeze.current(installation.postgres)
        checks["database"] = "ok"
    except MemoryLayerError:
        checks["database"] = "down"
    for name, store in (("vectors", installation.vectors), ("objects", installation.objects)):
        try:
            await store.ping()
            checks[name] = "ok"
        except MemoryLayerError:
            checks[name] = "down"
    fault, guard = installation.committer.guard.fault, installation.committer.rollback_guard
    checks["log"] = "ok" if fault is None else fault.code
    if guard is not None and guard.state != "ok":
        checks["rollback"] = guard.state
    unwritable = installation.committer.health.fault
    if unwritable is not None:
        checks["writes"] = unwritable.reason
    refuses = fault is not None or unwritable is not None or (guard is not None and guard.refuses)
    down = checks["database"] == "down" or refuses
    degraded = "rollback" in checks or "down" in checks.values() or bool(broken)
    status = "down" if down else "degraded" if degraded else "frozen" if frozen else "ok"
    answer = {
        "status": status,
        "checks": checks,
        "indexing": {"pending": pending, "oldestSeconds": round(oldest, 3)},
        "breakers": broken,
    }
    if frozen is not None:
        checks.setdefault("writes", "frozen")
        answer["frozen"] = freeze_facts(frozen)
    return Answer(503 if down else 200, answer)


async def readyz(request: Request) -> Answer:
    """Whether to send traffic here: migrations applied, writes possible, signer usable, the log as its keys sealed it, and the namespaces
    loaded, which takes 30 s at the most.

    A freeze is reported and makes nothing unhealthy: reads go on."""
    installation: Installation = request.app.state.installation
    checks = {}
    try:
        lacking = await missing(installation.postgres)
        checks["migrations"] = "ok" if not lacking else f"missing: {', '.join(lacking)}"
    except MemoryLayerError as error:
        checks["migrations"] = error.code
    checks["signer"] = "ok" if installation.committer.signer_usable else "SIGNER_UNAVAILABLE"
    fault = installation.committer.guard.fault
    checks["log"] = "ok" if fault is None else fault.code
    guard = installation.committer.rollback_guard
    if guard is not None and guard.refuses:
        checks["rollback"] = guard.state
    if installation.warming is not None and not installation.warming.done():
        checks["warmUp"] = "loading"
    if (unwritable := installation.committer.health.fault) is not None:
        checks["writes"] = unwritable.reason
    ready = all(value == "ok" for value in checks.values())
    with contextlib.suppress(MemoryLayerError):
        if ready and await freeze.current(installation.postgres) is not None:
            checks["writes"] = "frozen"
    return Answer(200 if ready else 503, {"status": "ready" if ready else "not ready", "checks": checks})


async def metrics(request: Request) -> Answer:
    """Prometheus text, for callers on this machine or with a token. Of the queue it tells what the database says of all workers."""
    if not _on_this_machine(request):
        try:
            await request.app.state.authenticator.caller(request.headers, str(uuid7()))
        except MemoryLayerError:
            refusal = Unauthenticated("Metrics are for this machine, or for callers with a token.")
            return error_answer(refusal, str(uuid7()))
    installation = request.app.state.installation
    with contextlib.suppress(MemoryLayerError):  # without the database: as they were
        await report(installation)
        states = await breakers(installation)
        for service in SERVICES:
            exported.breaker_state.labels(service).set(BREAKER_STATES[states.get(service, "closed")])
        await freeze.current(installation.postgres)  # where nothing is written, no batch notices it
    return Answer(200, exported.render(), {"Content-Type": exported.CONTENT_TYPE})


def _on_this_machine(request: Request) -> bool:
    """By the address at the other end of the connection. A request that a proxy passes on comes from anywhere, whatever it says."""
    if any(name in request.headers for name in _PASSED_ON):
        return False
    try:
        return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False
