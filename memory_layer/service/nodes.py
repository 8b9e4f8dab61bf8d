"""Nodes: create, read, change, delete, hold, list, history."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memory_layer.errors import InvalidCursor, NotFound
from memory_layer.filters import And, Compare, Filter, Path, evaluate, needs, to_json
from memory_layer.model import REDACTED, AuditEvent, Caller, Node, format_time, format_time_or_none
from memory_layer.service import Memory
from memory_layer.service.changes import (
    Change,
    CreateNode,
    CreateNodes,
    DeleteNode,
    Idempotency,
    PatchNode,
    SetHold,
)
from memory_layer.service.commit import Outcome
from memory_layer.service.decide import foresee
from memory_layer.service.decide_artifacts import artifact_shape
from memory_layer.sql import queries
from memory_layer.stores.postgres import artifact_row

_SQL = queries("nodes")
_SLICE = 16
_SCAN_PAGE = 500
_SCAN_LIMIT = 10_000  # rows that one list call may look at; the cursor carries on from there
_SCAN_BYTES = 32 * 2**20  # the same in bytes of content and metadata
_SCAN_PAGE_BYTES = 4 * 2**20  # in one query: what is decoded at a time holds up everybody else
_PAGE_BYTES = 8 * 2**20  # in one answer


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing; ``cursor`` is None on the last."""

    items: list[dict[str, Any]]
    cursor: str | None


async def create(
    memory: Memory, caller: Caller, new: CreateNode, idempotency: Idempotency | None = None, size: int = 0
) -> Outcome:
    """Commit a new node with its outbox row and audit entry. ``size``: bytes of the request."""
    foresee(new, caller.tenant)
    return await memory.committer.submit(Change(caller, new, idempotency, size))


async def create_many(
    memory: Memory, caller: Caller, new: CreateNodes, idempotency: Idempotency | None = None, size: int = 0
) -> Outcome:
    """Commit new nodes in one transaction, each with an entry of its own; one that cannot be created fails alone."""
    await foresee_many(new, caller.tenant)
    return await memory.committer.submit(Change(caller, new, idempotency, size))


async def foresee_many(new: CreateNodes, tenant: str) -> None:
    """Work out the evidence of each node before they wait for the log lock."""
    for place, node in enumerate(new.nodes):
        if place % _SLICE == _SLICE - 1:
            await asyncio.sleep(0)  # the committer may be holding the log lock
        if isinstance(node, CreateNode):
            foresee(node, tenant)


async def patch(
    memory: Memory, caller: Caller, change: PatchNode, idempotency: Idempotency | None = None, size: int = 0
) -> Outcome:
    """Commit a change to a live node. ``size``: bytes of the request."""
    return await memory.committer.submit(Change(caller, change, idempotency, size))


async def delete(memory: Memory, caller: Caller, change: DeleteNode, idempotency: Idempotency | None = None) -> Outcome:
    """Soft-delete a node; its vectors leave the index in the background. Raises LegalHold."""
    return await memory.committer.submit(Change(caller, change, idempotency))


async def set_hold(memory: Memory, caller: Caller, change: SetHold, idempotency: Idempotency | None = None) -> Outcome:
    """Set or release the legal hold of a node."""
    return await memory.committer.submit(Change(caller, change, idempotency))


async def get(memory: Memory, caller: Caller, node_id: uuid.UUID) -> dict[str, Any]:
    """A live node with its artifacts, vector status and latest audit entry. Raises NotFound, also for another tenant's."""
    found = await load(memory, caller, [node_id])
    if not found:
        raise NotFound(f"There is no node {node_id}.")
    return (await shapes(memory, caller, found))[0]


async def load(memory: Memory, caller: Caller, ids: Sequence[uuid.UUID]) -> list[Node]:
    """The live ones of these nodes."""
    (rows,) = await memory.stores.postgres.fetch(
        caller.tenant, (_SQL["get_nodes"], {"tenant": caller.tenant, "ids": list(ids)})
    )
    return [Node(**row) for row in rows]


async def shapes(memory: Memory, caller: Caller, nodes: Sequence[Node]) -> list[dict[str, Any]]:
    """Nodes as the API shows them to this caller."""
    params = {"tenant": caller.tenant, "ids": [n.id for n in nodes]}
    vectors, artifacts, events = await memory.stores.postgres.fetch(
        caller.tenant,
        (_SQL["active_vectors"], params),
        (_SQL["node_artifacts"], params),
        (_SQL["latest_events"], params | {"log": memory.stores.log}),
    )
    vector_of = {row["memory_node_id"]: row for row in vectors}
    event_of = {row["memory_node_id"]: row for row in events}
    artifacts_of: dict[uuid.UUID, list[dict[str, Any]]] = {}
    for row in artifacts:
        artifacts_of.setdefault(row["memory_node_id"], []).append(artifact_shape(artifact_row(row)))
    answer = []
    for node in nodes:
        vector, event = vector_of.get(node.id), event_of.get(node.id)
        shape = redact(document(node), caller)
        shape["artifacts"] = artifacts_of.get(node.id, [])
        if hides_content(node.pii_flags, caller):
            shape["artifacts"] = [artifact | {"name": REDACTED} for artifact in shape["artifacts"]]
        shape["vector"] = vector and {
            "jobId": str(vector["id"]),
            "status": vector["status"],
            "provider": vector["provider"],
            "namespace": vector["namespace"],
            "model": vector["embedding_model"],
            "dimension": vector["dimension"],
            "error": vector["error"],
        }
        shape["audit"] = event and {
            "auditId": str(event["id"]),
            "seq": event["seq"],
            "hash": event["hash"],
            "type": event["event_type"],
        }
        answer.append(shape)
    return answer


async def list_nodes(memory: Memory, caller: Caller, where: Filter | None, cursor: str | None, limit: int) -> Page:
    """Live nodes, newest first. A page may be short, even empty, while its cursor leads on: each call looks at a bounded
    number of rows and bytes. Raises InvalidCursor."""
    bound = _fingerprint(caller, where)
    after = _decode_cursor(cursor, bound)
    embedding_ids = _required_embedding_ids(where)
    query = _SQL["list_nodes" if embedding_ids is None else "list_nodes_by_embedding_id"]
    size = limit + 1 if where is None else _SCAN_PAGE
    found: list[Node] = []
    scanned = scanned_bytes = found_bytes = 0
    while True:
        given = {
            "tenant": caller.tenant,
            "embedding_ids": embedding_ids,
            "limit": size,
            "bytes": _SCAN_PAGE_BYTES,
            "after": after,
        }
        (rows,) = await memory.stores.postgres.fetch(caller.tenant, (query, given))
        last = not rows or (rows[0]["looked"] < size and len(rows) == rows[0]["looked"])
        for row in rows:
            row_bytes, _ = row.pop("size"), row.pop("looked")
            node = Node(**row)
            if where is None or visible_match(where, node, caller):
                if len(found) == limit or found_bytes > _PAGE_BYTES:
                    return Page(await shapes(memory, caller, found), _encode_cursor(found[-1].id, bound))
                found.append(node)
                found_bytes += row_bytes
            after = node.id
            scanned, scanned_bytes = scanned + 1, scanned_bytes + row_bytes
        if last:
            return Page(await shapes(memory, caller, found), None)
        if after is not None and (scanned >= _SCAN_LIMIT or scanned_bytes >= _SCAN_BYTES):
            return Page(await shapes(memory, caller, found), _encode_cursor(after, bound))


async def history(memory: Memory, caller: Caller, node_id: uuid.UUID, cursor: str | None, limit: int) -> Page:
    """The audit entries of a node, oldest first; a deleted node keeps its history. Raises NotFound, InvalidCursor."""
    bound = f"history {node_id}"
    after = -1 if cursor is None else decode_sequence(cursor, bound)
    known, rows = await memory.stores.postgres.fetch(
        caller.tenant,
        (_SQL["known_node"], {"tenant": caller.tenant, "id": node_id}),
        (
            _SQL["history"],
            {"tenant": caller.tenant, "id": node_id, "log": memory.stores.log, "after": after, "limit": limit + 1},
        ),
    )
    if not known and not rows:
        raise NotFound(f"There is no node {node_id}.")
    items = [event_shape(row) for row in rows[:limit]]
    more = len(rows) > limit
    return Page(items, seal_cursor({"b": bound, "s": rows[limit - 1]["seq"]}) if more else None)


def event_shape(row: Mapping[str, Any]) -> dict[str, Any]:
    """An audit entry as the API shows it: the stored bytes as text, and the hash that anyone can recompute from them."""
    event = AuditEvent(**{name: value for name, value in row.items() if name != "signature"})
    entry = json.loads(event.entry)
    return {
        "auditId": str(event.id),
        "seq": event.seq,
        "type": event.type,
        "memoryNodeId": None if event.node is None else str(event.node),
        "artifactId": None if event.artifact is None else str(event.artifact),
        "version": entry["version"],
        "actor": entry["actor"],
        "requestId": entry["request_id"],
        "createdAt": format_time(event.created_at),
        "hash": event.hash,
        "prevHash": event.prev_hash,
        "batch": event.batch_no,
        "signature": row["signature"],
        "entry": bytes(event.entry).decode("ascii"),
    }


def document(node: Node) -> dict[str, Any]:
    """The node under the API's names: what filters are evaluated on, and the body of every answer."""
    return {
        "memoryNodeId": str(node.id),
        "version": node.version,
        "owner": node.owner,
        "namespace": node.namespace,
        "embeddingId": node.embedding_id,
        "content": node.content,
        "metadata": node.metadata,
        "piiFlags": node.pii_flags,
        "subjects": list(node.subjects),
        "legalHold": node.legal_hold,
        "legalHoldReason": node.legal_hold_reason,
        "ttlSeconds": node.ttl_seconds,
        "expiresAt": format_time_or_none(node.expires_at),
        "occurredAt": format_time_or_none(node.occurred_at),
        "createdAt": format_time(node.created_at),
        "updatedAt": format_time(node.updated_at),
    }


def hidden_paths(node: Node, caller: Caller) -> list[Path]:
    """What this caller must not see of a node."""
    if "read:pii" in caller.scopes or not node.pii_flags.get("containsPii"):
        return []
    return _flagged(node.pii_flags, node.metadata)


def hides_content(pii_flags: Mapping[str, Any], caller: Caller) -> bool:
    """Whether a node's content, and so the files that belong to it, are hidden from this caller."""
    hidden = pii_flags.get("containsPii") and "read:pii" not in caller.scopes
    return bool(hidden) and ("content",) in _flagged(pii_flags, {})


def _flagged(pii_flags: Mapping[str, Any], metadata: Any) -> list[Path]:
    """The paths that a node's flags hide. A key with a dot in it cannot be named by a path, so where there is one, nothing
    tells that the flags reach what they mean: then all of metadata is hidden."""
    paths = [tuple(path.split(".")) for path in pii_flags.get("paths") or ("content", "metadata")]
    if any(path[0] == "metadata" for path in paths) and _has_dotted_key(metadata):
        paths.append(("metadata",))
    return paths


def _has_dotted_key(value: Any) -> bool:
    if isinstance(value, dict):
        return any("." in key or _has_dotted_key(item) for key, item in value.items())
    return isinstance(value, list) and any(_has_dotted_key(item) for item in value)


def redact(shape: dict[str, Any], caller: Caller) -> dict[str, Any]:
    """The shape with what this caller must not see replaced; the input's containers are not changed."""
    flags = shape["piiFlags"]
    if "read:pii" in caller.scopes or not flags.get("containsPii"):
        return shape
    for path in _flagged(flags, shape["metadata"]):
        shape = _replaced(shape, path)
    return shape


def visible_match(where: Filter, node: Node, caller: Caller) -> bool:
    """Whether a node matches as far as this caller may see it: what is hidden from them counts as missing."""
    shape = document(node)
    for path in hidden_paths(node, caller):
        shape = _replaced(shape, path, drop=True)
    return evaluate(where, shape)


def may_push_down(where: Filter | None, caller: Caller) -> Filter | None:
    """The filter that an index may evaluate on raw fields: none that could tell what is hidden from this caller."""
    if where is None or "read:pii" in caller.scopes:
        return where
    return None if any(path[0] in ("metadata", "content") for path in needs(where)) else where


def _replaced(shape: Any, path: Sequence[str], *, drop: bool = False) -> Any:
    if isinstance(shape, list):
        return [_replaced(item, path, drop=drop) for item in shape]
    if not isinstance(shape, dict) or path[0] not in shape or shape[path[0]] is None:
        return shape
    if len(path) > 1:
        return shape | {path[0]: _replaced(shape[path[0]], path[1:], drop=drop)}
    if drop:
        return {key: value for key, value in shape.items() if key != path[0]}
    return shape | {path[0]: REDACTED}


def _required_embedding_ids(where: Filter | None) -> list[str] | None:
    """The embeddingIds that any match must have, when the filter says so: they are found by index, not by scan."""
    match where:
        case And(items):
            return next((ids for item in items if (ids := _required_embedding_ids(item)) is not None), None)
        case Compare(("embeddingId",), "eq", str() as value):
            return [value]
        case Compare(("embeddingId",), "in", tuple() as values):
            return [value for value in values if isinstance(value, str)]
    return None


def _fingerprint(caller: Caller, where: Filter | None) -> str:
    text = json.dumps([caller.tenant, None if where is None else to_json(where)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _encode_cursor(node_id: uuid.UUID, bound: str) -> str:
    return seal_cursor({"b": bound, "i": str(node_id)})


def seal_cursor(fields: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(fields, separators=(",", ":")).encode()).decode().rstrip("=")


def _open_cursor(cursor: str, bound: str) -> dict[str, Any]:
    try:
        fields = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
        if isinstance(fields, dict) and fields.get("b") == bound:
            return fields
    except (ValueError, binascii.Error, RecursionError):
        pass
    raise InvalidCursor("The cursor does not belong to this query. Take it from nextCursor, with the same filter.")


def _decode_cursor(cursor: str | None, bound: str) -> uuid.UUID | None:
    if cursor is None:
        return None
    try:
        return uuid.UUID(_open_cursor(cursor, bound)["i"])
    except (KeyError, ValueError, TypeError, AttributeError):
        raise InvalidCursor("The cursor does not belong to this query.") from None


def decode_sequence(cursor: str, bound: str) -> int:
    seq = _open_cursor(cursor, bound).get("s")
    if not isinstance(seq, int) or isinstance(seq, bool) or not 0 <= seq < 2**53:
        raise InvalidCursor("The cursor does not belong to this query.")
    return seq
