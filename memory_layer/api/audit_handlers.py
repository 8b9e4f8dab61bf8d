"""The audit calls: one thin function each, as in ``handlers.py``. Proofs and checkpoints are text, tiles are bytes."""

from __future__ import annotations

from memory_layer.api import decode
from memory_layer.api.auth import require_scope
from memory_layer.api.calls import NOTHING, Answer, Call, Touched, shown, touched_by
from memory_layer.audit.proof import MEDIA_TYPE
from memory_layer.audit.tree import TILE_WIDTH, parse_tile_path
from memory_layer.service import audit

# A full tile never changes again; what is partial, and the newest checkpoint, is asked for anew.
_FOREVER, _ANEW = "max-age=31536000, immutable", "no-cache"


async def list_events(call: Call) -> Answer:
    given = call.query
    where = audit.EventFilter(
        type=given.type,
        node=None if given.memory_node_id is None else decode.identifier(given.memory_node_id, "query.memoryNodeId"),
        artifact=None if given.artifact_id is None else decode.identifier(given.artifact_id, "query.artifactId"),
        since=decode.timestamp(given.since, "query.since"),
        until=decode.timestamp(given.until, "query.until"),
    )
    page = await audit.events(call.installation, call.caller, where, given.cursor, given.limit)
    return Answer(200, {"items": page.items, "nextCursor": page.cursor}, touched=touched_by(page.items))


async def get_event(call: Call) -> Answer:
    return shown(await audit.event(call.installation, call.caller, call.id()))


async def get_proof(call: Call) -> Answer:
    seq, proof = await audit.proof(call.installation, call.caller, call.id())
    return _text(call, proof, Touched(seqs=(seq,)))


async def get_checkpoint(call: Call) -> Answer:
    return _text(call, await audit.checkpoint(call.installation))


async def get_consistency(call: Call) -> Answer:
    return Answer(200, await audit.consistency(call.installation, call.query.from_, call.query.to))


async def get_tile(call: Call) -> Answer:
    level, index, width = parse_tile_path("tile/" + call.path["path"])
    touched = NOTHING
    if level == "entries":
        require_scope(call.caller, "audit:all")
        touched = Touched(seqs=range(index * TILE_WIDTH, index * TILE_WIDTH + width))
    data = await audit.tile(call.installation, level, index, width)
    headers = {
        "Content-Type": "application/octet-stream",
        "Cache-Control": _kept(call, forever=width == TILE_WIDTH),
        "X-Content-Type-Options": "nosniff",
    }
    return Answer(200, data, headers, touched)


def _text(call: Call, data: bytes, touched: Touched = NOTHING) -> Answer:
    return Answer(200, data, {"Content-Type": MEDIA_TYPE, "Cache-Control": _kept(call, forever=False)}, touched)


def _kept(call: Call, *, forever: bool) -> str:
    """What was served without a token may lie in a cache that many share."""
    return f"{'private' if call.caller.tenant else 'public'}, {_FOREVER if forever else _ANEW}"
