"""One thin function per call: what was decoded goes to one use case, its answer becomes an ``Answer``."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from operator import attrgetter
from typing import Any

import msgspec

from memory_layer import aside, filters
from memory_layer.api import decode, schemas
from memory_layer.api.auth import require_scope
from memory_layer.api.calls import Answer, Call, Touched, shown, touched_by, written
from memory_layer.errors import MemoryLayerError, Problem, ValidationError
from memory_layer.model import Node, uuid7
from memory_layer.service import nodes, registration, replacing, search
from memory_layer.service.actions.nodes import (
    CreateNode,
    CreateNodes,
    DeleteNode,
    PatchNode,
    SetHold,
    draft,
    require_thread,
)
from memory_layer.service.actions.replacing import PutNode
from memory_layer.service.boosts import Recency
from memory_layer.service.commit import Outcome
from memory_layer.service.waiting import Write
from memory_layer.sql.columns import columns
from memory_layer.telemetry.logs import get_logger

log = get_logger("memory_layer.api")

_BULK = 8  # nodes: the vectors of more in one request wait behind those of single writes
_FEW = 16  # nodes of a bulk request that are decoded before others, the committer among them, get a turn


def _new_node(call: Call, body: schemas.CreateNodeBody, *, bulk: bool = False) -> CreateNode:
    if body.legal_hold:
        require_scope(call.caller, "memory:legal_hold")
    return _described(call, body, bulk=bulk)


def _described(call: Call, body: schemas.CreateNodeBody | schemas.PutNodeBody, *, bulk: bool = False) -> CreateNode:
    require_thread(body.thread, body.position)
    chosen = _given(body) | {
        "namespace": body.namespace or call.installation.settings.vector_db_namespace,
        "pii_flags": _flags(body.pii_flags),
        "occurred_at": decode.timestamp(body.occurred_at, "occurredAt"),
    }
    return CreateNode(draft(id=uuid7(), **chosen), _embedding(body.embedding), call.installation.space, bulk=bulk)


def _artifacts(body: schemas.CreateNodeBody) -> list[registration.Registration]:
    """Raises ValidationError, which names the place in the body."""
    return [
        registration.Registration(
            url=given.artifact_url,
            sha256=given.sha256,
            size_bytes=given.size_bytes,
            manifest_signature_id=given.manifest_signature_id,
            retain_until=decode.timestamp(given.retain_until, f"artifacts[{place}].retainUntil"),
            path=f"artifacts[{place}]",
        )
        for place, given in enumerate(body.artifacts)
    ]


async def create_node(call: Call) -> Answer:
    new = _new_node(call, call.body)
    given = _artifacts(call.body)
    if given:
        made = registration.with_artifacts(call.installation, call.caller, new, given, call.idempotency, call.size)
    else:
        made = nodes.create(call.installation, call.caller, new, call.idempotency, call.size)
    outcome = await made
    found = await _searchable(call, [outcome.answer])
    return written(201 if found else 202, _waited(call, outcome, found), {"ETag": f'"{outcome.answer["version"]}"'})


def _new_nodes(
    call: Call, items: Sequence[bytes]
) -> list[tuple[CreateNode | MemoryLayerError, list[registration.Registration]]]:
    """What items of a bulk request mean, or why they are refused."""
    found: list[tuple[CreateNode | MemoryLayerError, list[registration.Registration]]] = []
    for item in items:
        try:
            body = decode.item(item, schemas.CreateNodeBody)
            found.append((_new_node(call, body, bulk=len(call.body) > _BULK), _artifacts(body)))
        except MemoryLayerError as error:
            found.append((error, []))
    return found


async def create_nodes(call: Call) -> Answer:
    """Each node, or why it is refused, in the order of the request; all that can be written goes into one transaction."""
    new: list[CreateNode | MemoryLayerError] = []
    given: list[list[registration.Registration]] = []
    for start in range(0, len(call.body), _FEW):
        some = call.body[start : start + _FEW]
        for node, artifacts in await aside.run(sum(map(len, some)), _new_nodes, call, some):
            new.append(node)
            given.append(artifacts)
        await asyncio.sleep(0)
    action = CreateNodes(new)
    if any(given):
        made = registration.many_with_artifacts(
            call.installation, call.caller, action, given, call.idempotency, call.size
        )
    else:
        made = nodes.create_many(call.installation, call.caller, action, call.idempotency, call.size)
    outcome = await made
    found = await _searchable(call, outcome.answer["items"])
    return written(200 if found else 202, _waited(call, outcome, found))


async def get_node(call: Call) -> Answer:
    answer = await nodes.get(call.installation, call.caller, call.id())
    return shown(answer, {"ETag": f'"{answer["version"]}"'})


async def put_node(call: Call) -> Answer:
    """201 for a new node, 200 for one that says something else now; 202 for either where it was to be searchable and is not yet."""
    body: schemas.PutNodeBody = call.body
    embedding_id = decode.embedding_id(call.path["embeddingId"])
    if body.embedding_id not in (None, embedding_id):
        raise ValidationError(
            "embeddingId in the body is not the one in the path.", details=[Problem("embeddingId", "another one")]
        )
    new = _described(call, body)
    new.node.embedding_id = embedding_id
    change = PutNode(
        new=new,
        namespaced=body.namespace is not None,
        exists="if-match" in call.headers,
        expected_version=decode.expected_version(call.headers),
    )
    outcome = await replacing.put(call.installation, call.caller, change, call.idempotency, call.size)
    found = await _searchable(call, [outcome.answer])
    version = outcome.answer["version"]
    status = 202 if not found else 201 if version == 1 else 200
    return written(status, _waited(call, outcome, found), {"ETag": f'"{version}"'})


async def patch_node(call: Call) -> Answer:
    body: schemas.PatchNodeBody = call.body
    if body == schemas.PatchNodeBody():
        raise ValidationError(
            "The patch changes nothing: name at least one member.", details=[Problem("body", "empty")]
        )
    changes = _given(body)
    if "pii_flags" in changes:
        changes["pii_flags"] = _flags(changes["pii_flags"])
    if "occurred_at" in changes:
        changes["occurred_at"] = decode.timestamp(changes["occurred_at"], "occurredAt")
    change = PatchNode(
        id=call.id(),
        expected_version=decode.expected_version(call.headers),
        changes=changes,
        embedding=None if body.embedding is msgspec.UNSET else _embedding(body.embedding),
        space=call.installation.space,
    )
    outcome = await nodes.patch(call.installation, call.caller, change, call.idempotency, call.size)
    found = await _searchable(call, [outcome.answer])
    return written(200 if found else 202, _waited(call, outcome, found), {"ETag": f'"{outcome.answer["version"]}"'})


async def delete_node(call: Call) -> Answer:
    change = DeleteNode(call.id(), decode.expected_version(call.headers))
    return written(204, await nodes.delete(call.installation, call.caller, change, call.idempotency))


async def list_nodes(call: Call) -> Answer:
    where = filters.parse(decode.json_parameter(call.query.filter, "query.filter"))
    return await _page(call, where, call.query.cursor, call.query.limit)


async def find_nodes(call: Call) -> Answer:
    given: schemas.ListBody = call.body
    where = await aside.run(call.size, filters.parse, given.filter)
    return await _page(call, where, given.cursor, given.limit)


async def _page(call: Call, where: filters.Filter | None, cursor: str | None, limit: int) -> Answer:
    page = await nodes.list_nodes(call.installation, call.caller, where, cursor, limit)
    body = {"items": page.items, "nextCursor": page.cursor, "dropped": page.dropped}
    return Answer(200, body, touched=Touched(nodes=page.nodes))


async def node_history(call: Call) -> Answer:
    page = await nodes.history(call.installation, call.caller, call.id(), call.query.cursor, call.query.limit)
    return Answer(200, {"items": page.items, "nextCursor": page.cursor}, touched=touched_by(page.items))


async def set_hold(call: Call) -> Answer:
    body: schemas.LegalHoldBody = call.body
    change = SetHold(call.id(), body.legal_hold, body.reason, body.case_id)
    return written(204, await nodes.set_hold(call.installation, call.caller, change, call.idempotency))


async def search_nodes(call: Call) -> Answer:
    body: schemas.SearchBody = call.body
    vector = None if body.query_embedding is None else decode.vector(body.query_embedding, None, "queryEmbedding")
    request = search.SearchRequest(
        query=body.query,
        vector=vector,
        top_k=body.top_k,
        where=await aside.run(call.size, filters.parse, body.filter),
        namespace=body.namespace or call.installation.settings.vector_db_namespace,
        score_threshold=body.score_threshold,
        mode=search.check_mode(body.mode, body.query, vector),
        before=0 if body.context is None else body.context.before,
        after=0 if body.context is None else body.context.after,
        explain=body.explain,
        recency=None if body.recency is None else Recency(body.recency.half_life_days, body.recency.weight),
    )
    found = await search.answer(call.installation, call.caller, request)
    return Answer(200, found.body, touched=Touched(nodes=found.nodes))


def _waited(call: Call, outcome: Outcome, found: bool) -> Outcome:
    """The answer of a write that waited for the index says whether it is searchable: 201 and 202 look alike to a caller who has the body."""
    if call.query.wait is None and call.installation.settings.vector_write_mode != "inline":
        return outcome
    return replace(outcome, answer=outcome.answer | {"indexed": found})


async def _searchable(call: Call, answers: Sequence[Mapping[str, Any]]) -> bool:
    """Wait until the index has followed these writes, where the request or the settings ask for that; False: it has not in time, or
    that cannot be found out. The writes are committed, so no failure in here may become their answer."""
    installation = call.installation
    if call.query.wait != "indexed" and installation.settings.vector_write_mode != "inline":
        return True
    try:
        return await _indexed(call, answers)
    except Exception:
        log.exception("whether a committed write is searchable could not be found out")
        return False


async def _indexed(call: Call, answers: Sequence[Mapping[str, Any]]) -> bool:
    writes = [
        Write(call.caller.tenant, uuid.UUID(answer["embeddingJobId"]), answer["version"])
        for answer in answers
        if answer.get("embeddingJobId") is not None
    ]
    return await call.installation.waits.until_indexed(call.installation.postgres, writes)


def _flags(flags: schemas.PiiFlags | None) -> dict[str, Any]:
    return {} if flags is None else dict(msgspec.to_builtins(flags))


def _embedding(body: schemas.EmbeddingBody | None) -> Any:
    return None if body is None else decode.embedding(body.model, body.dimension, body.vector)


def _given(body: schemas.CreateNodeBody | schemas.PutNodeBody | schemas.PatchNodeBody) -> dict[str, Any]:
    """The columns of a node that a body gives, as the body spells their values: it names them alike."""
    names, values = _columns_of(type(body))
    found = dict(zip(names, values(body), strict=True))
    if msgspec.UNSET in found.values():
        return {name: value for name, value in found.items() if value is not msgspec.UNSET}
    return found


@cache
def _columns_of(body: type[msgspec.Struct]) -> tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]]]:
    names = tuple(column.name for column in columns(Node) if column.name in body.__struct_fields__)
    return names, attrgetter(*names)
