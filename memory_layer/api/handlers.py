"""One thin function per call: what was decoded goes to one use case, its answer becomes the reply."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from memory_layer import filters
from memory_layer.api import decode, schemas
from memory_layer.api.auth import demand
from memory_layer.api.replies import reply
from memory_layer.errors import MemoryLayerError, Problem, RangeNotSatisfiable, ValidationError
from memory_layer.model import Caller, uuid7
from memory_layer.service import Memory, artifacts, nodes, search
from memory_layer.service.changes import UNSET, CreateNode, CreateNodes, DeleteNode, Idempotency, PatchNode, SetHold
from memory_layer.service.commit import Outcome
from memory_layer.service.waiting import Write

SLICE = 16  # nodes of a bulk request that are decoded before others, the committer among them, get a turn
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_HEX = re.compile(r"[0-9a-f]{64}")
_CONTENT_TYPE = re.compile(r"[\x20-\x7e]{1,255}")


@dataclass(frozen=True, slots=True)
class Call:
    """A request as the dispatcher hands it on: authenticated, authorised, decoded."""

    memory: Memory
    caller: Caller
    request: Request
    headers: Mapping[str, str]  # by lower-case name
    idempotency: Idempotency | None
    query: Any
    body: Any
    size: int = 0  # bytes of the body

    def id(self, name: str) -> uuid.UUID:
        return decode.identifier(self.request.path_params[name], name)


def _written(status: int, outcome: Outcome, headers: dict[str, str] | None = None) -> Response:
    headers = dict(headers or {})
    if outcome.receipt is not None:
        headers["X-Audit-Seq"] = str(outcome.receipt.seq)
    if outcome.replayed:
        headers["Idempotency-Replayed"] = "true"
        status = 200 if status == 201 else status
    return Response(status_code=status, headers=headers) if status == 204 else reply(status, outcome.answer, headers)


def _new_node(call: Call, body: schemas.CreateNodeBody) -> CreateNode:
    if body.legal_hold:
        demand(call.caller, "memory:legal_hold")
    return CreateNode(
        id=uuid7(),
        owner=body.owner,
        namespace=body.namespace or call.memory.stores.settings.vector_db_namespace,
        embedding_id=body.embedding_id,
        content=body.content,
        metadata=body.metadata,
        pii_flags=_flags(body.pii_flags),
        subjects=body.subjects,
        legal_hold=body.legal_hold,
        ttl_seconds=body.ttl_seconds,
        occurred_at=decode.timestamp(body.occurred_at, "occurredAt"),
        embedding=_embedding(body.embedding),
        space=call.memory.space,
    )


async def create_node(call: Call) -> Response:
    new = _new_node(call, call.body)
    outcome = await nodes.create(call.memory, call.caller, new, call.idempotency, call.size)
    status = 201 if await _searchable(call, [outcome.answer]) else 202
    return _written(status, outcome, {"ETag": f'"{outcome.answer["version"]}"'})


async def create_nodes(call: Call) -> Response:
    """Each node, or why it is refused, in the order of the request; all that can be written goes into one transaction."""
    new: list[CreateNode | MemoryLayerError] = []
    for place, item in enumerate(call.body):
        if place % SLICE == SLICE - 1:
            await asyncio.sleep(0)
        try:
            new.append(_new_node(call, decode.item(item, schemas.CreateNodeBody)))
        except MemoryLayerError as error:
            new.append(error)
    outcome = await nodes.create_many(call.memory, call.caller, CreateNodes(new), call.idempotency, call.size)
    return _written(200 if await _searchable(call, outcome.answer["items"]) else 202, outcome)


async def get_node(call: Call) -> Response:
    answer = await nodes.get(call.memory, call.caller, call.id("id"))
    return reply(200, answer, {"ETag": f'"{answer["version"]}"'})


async def patch_node(call: Call) -> Response:
    body: schemas.PatchNodeBody = call.body
    if body == schemas.PatchNodeBody():
        raise ValidationError(
            "The patch changes nothing: name at least one member.", details=[Problem("body", "empty")]
        )
    change = PatchNode(
        id=call.id("id"),
        expected_version=decode.expected_version(call.headers),
        content=_given(body.content),
        metadata=_given(body.metadata),
        pii_flags=UNSET if body.pii_flags is msgspec.UNSET else _flags(body.pii_flags),
        ttl_seconds=_given(body.ttl_seconds),
        embedding=UNSET if body.embedding is msgspec.UNSET else _embedding(body.embedding) or UNSET,
        space=call.memory.space,
    )
    outcome = await nodes.patch(call.memory, call.caller, change, call.idempotency, call.size)
    status = 200 if await _searchable(call, [outcome.answer]) else 202
    return _written(status, outcome, {"ETag": f'"{outcome.answer["version"]}"'})


async def delete_node(call: Call) -> Response:
    change = DeleteNode(call.id("id"), decode.expected_version(call.headers))
    return _written(204, await nodes.delete(call.memory, call.caller, change, call.idempotency))


async def list_nodes(call: Call) -> Response:
    where = filters.parse(decode.json_parameter(call.query.filter, "query.filter"))
    page = await nodes.list_nodes(call.memory, call.caller, where, call.query.cursor, call.query.limit)
    return reply(200, {"items": page.items, "nextCursor": page.cursor})


async def node_history(call: Call) -> Response:
    page = await nodes.history(call.memory, call.caller, call.id("id"), call.query.cursor, call.query.limit)
    return reply(200, {"items": page.items, "nextCursor": page.cursor})


async def set_hold(call: Call) -> Response:
    body: schemas.LegalHoldBody = call.body
    change = SetHold(call.id("id"), body.legal_hold, body.reason, body.case_id)
    return _written(204, await nodes.set_hold(call.memory, call.caller, change, call.idempotency))


async def search_nodes(call: Call) -> Response:
    body: schemas.SearchBody = call.body
    vector = None if body.query_embedding is None else decode.vector(body.query_embedding, None, "queryEmbedding")
    request = search.SearchRequest(
        query=body.query,
        vector=vector,
        top_k=body.top_k,
        where=filters.parse(body.filter),
        namespace=body.namespace or call.memory.stores.settings.vector_db_namespace,
        score_threshold=body.score_threshold,
        mode=search.check_mode(body.mode, body.query, vector),
    )
    return reply(200, await search.search(call.memory, call.caller, request))


async def upload_artifact(call: Call) -> Response:
    headers = call.headers
    sha256 = headers.get("x-content-sha256")
    if sha256 is not None and _HEX.fullmatch(sha256) is None:
        raise ValidationError(
            "X-Content-SHA256 is not 64 lower-case hex digits.",
            details=[Problem("header.x-content-sha256", "not a SHA-256")],
        )
    content_type = headers.get("content-type") or "application/octet-stream"
    if _CONTENT_TYPE.fullmatch(content_type) is None:
        raise ValidationError(
            "Content-Type does not fit.", details=[Problem("header.content-type", "not printable ASCII")]
        )
    node = call.query.memory_node_id
    new = artifacts.Upload(
        node=None if node is None else decode.identifier(node, "query.memoryNodeId"),
        name=call.query.name,
        content_type=content_type,
        sha256=sha256,
        metadata={},
    )
    outcome = await artifacts.upload(call.memory, call.caller, new, call.request.stream(), call.idempotency)
    return _written(201, outcome)


async def get_artifact(call: Call) -> Response:
    return reply(200, await artifacts.get(call.memory, call.caller, call.id("id")))


async def artifact_content(call: Call) -> Response:
    artifact = await artifacts.find(call.memory, call.caller, call.id("id"))
    start, stop, status = _byte_range(call.headers.get("range"), artifact.size_bytes)
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Length": str(stop - start),
        "ETag": f'"{artifact.sha256}"',
        "X-Content-SHA256": artifact.sha256,
        # Stored bytes are someone's input: a browser must neither guess a type nor run them.
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox",
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(artifact.name or artifact.sha256, safe='')}",
    }
    # As a header, for Starlette would add a charset that nobody knows to be right.
    headers["Content-Type"] = artifact.content_type
    if status == 206:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{artifact.size_bytes}"
    if call.request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    blocks = artifacts.content(call.memory, artifact, start, stop)
    return StreamingResponse(await _opened(blocks), status, headers)


async def _opened(blocks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same blocks; the first is read before a status line is sent, so that a lost object is an error and no torn 200."""
    first = await anext(blocks, b"")

    async def rest() -> AsyncIterator[bytes]:
        if first:
            yield first
        async for block in blocks:
            yield block

    return rest()


async def _searchable(call: Call, answers: Sequence[Mapping[str, Any]]) -> bool:
    """Wait until the index has followed these writes, where the request or the settings ask for that; False: it has not in time."""
    memory = call.memory
    if call.query.wait != "indexed" and memory.stores.settings.vector_write_mode != "inline":
        return True
    writes = [
        Write(call.caller.tenant, uuid.UUID(answer["embeddingJobId"]), answer["version"])
        for answer in answers
        if answer.get("embeddingJobId") is not None
    ]
    return await memory.waits.until_indexed(memory.stores.postgres, writes)


def _byte_range(header: str | None, size: int) -> tuple[int, int, int]:
    """(start, stop, status) of one byte range (RFC 9110, 14.1.2). Several ranges, or other units, are answered whole."""
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or (not match.group(1) and not match.group(2)):
        return 0, size, 200
    first, last = match.groups()
    if first:
        start, stop = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < int(first):
            return 0, size, 200
    else:
        start, stop = max(size - int(last), 0), size
    if start >= size or start >= stop:
        raise RangeNotSatisfiable(f"The artifact has {size} bytes.")
    return start, stop, 206


def _flags(flags: schemas.PiiFlags | None) -> dict[str, Any]:
    return {} if flags is None else dict(msgspec.to_builtins(flags))


def _embedding(body: schemas.EmbeddingBody | None) -> Any:
    return None if body is None else decode.embedding(body.model, body.dimension, body.vector)


def _given(value: Any) -> Any:
    return UNSET if value is msgspec.UNSET else value
