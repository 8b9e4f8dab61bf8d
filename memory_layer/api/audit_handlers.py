"""The audit calls: one thin function each, as in ``handlers.py``. Proofs and checkpoints are text, tiles are bytes."""

from __future__ import annotations

from starlette.responses import Response

from memory_layer.api import decode
from memory_layer.api.auth import demand
from memory_layer.api.handlers import Call
from memory_layer.api.replies import reply
from memory_layer.audit.proof import MEDIA_TYPE
from memory_layer.audit.tree import TILE_WIDTH, parse_tile_path
from memory_layer.service import audit

# A full tile never changes again; what is partial, and the newest checkpoint, is asked for anew.
_FOREVER, _ANEW = "max-age=31536000, immutable", "no-cache"


async def list_events(call: Call) -> Response:
    given = call.query
    where = audit.EventFilter(
        type=given.type,
        node=None if given.memory_node_id is None else decode.identifier(given.memory_node_id, "query.memoryNodeId"),
        artifact=None if given.artifact_id is None else decode.identifier(given.artifact_id, "query.artifactId"),
        since=decode.timestamp(given.since, "query.since"),
        until=decode.timestamp(given.until, "query.until"),
    )
    page = await audit.events(call.memory, call.caller, where, given.cursor, given.limit)
    return reply(200, {"items": page.items, "nextCursor": page.cursor})


async def get_event(call: Call) -> Response:
    return reply(200, await audit.event(call.memory, call.caller, call.id("id")))


async def get_proof(call: Call) -> Response:
    return _text(call, await audit.proof(call.memory, call.caller, call.id("id")))


async def get_checkpoint(call: Call) -> Response:
    return _text(call, await audit.checkpoint(call.memory))


async def get_consistency(call: Call) -> Response:
    return reply(200, await audit.consistency(call.memory, call.query.from_, call.query.to))


async def get_tile(call: Call) -> Response:
    level, index, width = parse_tile_path("tile/" + call.request.path_params["path"])
    if level == "entries":
        demand(call.caller, "audit:all")
    data = await audit.tile(call.memory, level, index, width)
    headers = {"Cache-Control": _kept(call, forever=width == TILE_WIDTH), "X-Content-Type-Options": "nosniff"}
    return Response(data, 200, headers, "application/octet-stream")


def _text(call: Call, data: bytes) -> Response:
    # As a header, for Starlette would add the charset a second time.
    return Response(data, 200, {"Content-Type": MEDIA_TYPE, "Cache-Control": _kept(call, forever=False)})


def _kept(call: Call, *, forever: bool) -> str:
    """What was served without a token may lie in a cache that many share."""
    return f"{'private' if call.caller.tenant else 'public'}, {_FOREVER if forever else _ANEW}"
