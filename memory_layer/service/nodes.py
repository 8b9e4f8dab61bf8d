"""Nodes: create, read, change, delete, hold, list, history."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from memory_layer import aside
from memory_layer.errors import InvalidCursor, NotFound, PayloadTooLarge, ValidationError
from memory_layer.filters import And, Compare, Filter, Steps, evaluate, needs, to_json
from memory_layer.model import Artifact, AuditEvent, Caller, Node, format_time
from memory_layer.service.actions.artifacts import artifact_shape
from memory_layer.service.actions.nodes import (
    CreateNode,
    CreateNodes,
    DeleteNode,
    PatchNode,
    SetHold,
    precompute_evidence,
)
from memory_layer.service.answers import MAX_ANSWER, READ_BYTES, Parts
from memory_layer.service.commit import Change, Idempotency, Outcome
from memory_layer.service.evidence import node_columns
from memory_layer.service.hiding import (
    FlagsOf,
    flags_of_artifacts,
    hidden_paths,
    read_flags,
    redact,
    redact_artifact,
    replaced,
)
from memory_layer.service.installation import Installation
from memory_layer.service.verified_reads import (
    Read,
    judge_artifacts,
    read_node,
    read_nodes,
    require_sealed,
    strict,
    weight_of,
)
from memory_layer.sql import queries
from memory_layer.stores.postgres import Query

_SQL = queries("nodes")
_SLICE = 16
_SCAN_PAGE = 500
_SCAN_LIMIT = 10_000  # rows that one list call may look at; the cursor carries on from there
_SCAN_BYTES = 32 * 2**20  # the same in bytes of content and metadata
_FIRST_LOG = -(2**31)
_AT_A_TIME = 16  # nodes that are made ready to be answered


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing; ``cursor`` is None on the last. ``nodes``: ids of what is in ``items``, where those are JSON."""

    items: Sequence[Any]  # shapes, or their JSON
    cursor: str | None
    nodes: Sequence[str] = ()
    dropped: dict[str, int] = field(default_factory=dict)  # rows that were left out, by reason


async def create(
    installation: Installation, caller: Caller, new: CreateNode, idempotency: Idempotency | None = None, size: int = 0
) -> Outcome:
    """Commit a new node with its outbox row and audit entry. ``size``: bytes of the request."""
    await aside.run(size, precompute_evidence, new, caller.tenant)
    return await installation.committer.submit(Change(caller, new, idempotency, size))


async def create_many(
    installation: Installation, caller: Caller, new: CreateNodes, idempotency: Idempotency | None = None, size: int = 0
) -> Outcome:
    """Commit new nodes in one transaction, each with an entry of its own; one that cannot be created fails alone."""
    await precompute_evidence_many(new, caller.tenant, size)
    outcome = await installation.committer.submit(Change(caller, new, idempotency, size))
    await aside.run(size, _let_go, new)
    return outcome


async def precompute_evidence_many(new: CreateNodes, tenant: str, size: int) -> None:
    """Work out the evidence of each node before they wait for the log lock. ``size``: bytes of the request."""
    for place in range(0, len(new.nodes), _SLICE):
        await asyncio.sleep(0)  # the committer may be holding the log lock
        some = [node for node in new.nodes[place : place + _SLICE] if isinstance(node, CreateNode)]
        await aside.run(size, _work_out, some, tenant)


def _let_go(new: CreateNodes) -> None:
    """Give up the nodes one by one: millions of values that go at once keep the interpreter from everybody else."""
    while new.nodes:
        new.nodes.pop()


def _work_out(nodes: Sequence[CreateNode], tenant: str) -> None:
    for node in nodes:
        precompute_evidence(node, tenant)


async def patch(
    installation: Installation, caller: Caller, change: PatchNode, idempotency: Idempotency | None = None, size: int = 0
) -> Outcome:
    """Commit a change to a live node. ``size``: bytes of the request."""
    return await installation.committer.submit(Change(caller, change, idempotency, size))


async def delete(
    installation: Installation, caller: Caller, change: DeleteNode, idempotency: Idempotency | None = None
) -> Outcome:
    """Soft-delete a node; its vectors leave the index in the background. Raises LegalHold."""
    return await installation.committer.submit(Change(caller, change, idempotency))


async def set_hold(
    installation: Installation, caller: Caller, change: SetHold, idempotency: Idempotency | None = None
) -> Outcome:
    """Set or release the legal hold of a node."""
    return await installation.committer.submit(Change(caller, change, idempotency))


async def get(installation: Installation, caller: Caller, node_id: uuid.UUID) -> dict[str, Any]:
    """A live node with its artifacts, vector status and latest audit entry. Raises NotFound, also for another tenant's, and Tampered."""
    node, read = await read_node(installation, caller, node_id, "get", _around(installation, caller, [node_id]))
    if node is None:
        raise NotFound(f"There is no node {node_id}.")
    return (await _shapes(installation, caller, read, [node], "get"))[0]


async def load(installation: Installation, caller: Caller, node_id: uuid.UUID) -> Node | None:
    """The node if it is live. Raises Tampered."""
    node, _ = await read_node(installation, caller, node_id, "get")
    return node


def _around(installation: Installation, caller: Caller, ids: Sequence[uuid.UUID]) -> list[Query]:
    """What is shown of nodes besides their rows."""
    params: dict[str, Any] = {"tenant": caller.tenant, "ids": list(ids)}
    return [
        (_SQL["active_vectors"], params),
        (_SQL["node_artifacts"], params | {"log": installation.log, "strict": strict(installation)}),
        flags_of_artifacts(caller, nodes=params["ids"]),
        (_SQL["latest_events"], params | {"log": installation.log}),
    ]


async def _shapes(
    installation: Installation, caller: Caller, read: Read, nodes: Sequence[Node], door: str
) -> list[dict[str, Any]]:
    """Nodes as the API shows them to this caller; ``read`` ran ``_around``. An artifact that is not what the log says is left out of
    its node and counted there."""
    vectors, artifacts, flags, events = read.more
    node_of = {row["id"]: row["memory_node_id"] for row in artifacts}
    good, problems = await judge_artifacts(installation, caller, artifacts, artifacts, read.rows, door)
    dropped = Counter(node_of[problem.id] for problem in problems)
    files = {row["memory_node_id"]: row["files"] for row in artifacts}
    size = sum(weight_of(node) for node in nodes) + (aside.HEAVY if aside.is_heavy([a.metadata for a in good]) else 0)
    return await aside.run(size, _shaped, caller, nodes, vectors, good, read_flags(flags), events, files, dropped)


def _shaped(
    caller: Caller,
    nodes: Sequence[Node],
    vectors: Sequence[Mapping[str, Any]],
    artifacts: Sequence[Artifact],
    flags_of: FlagsOf,
    events: Sequence[Mapping[str, Any]],
    files: Mapping[uuid.UUID, int],
    dropped: Counter[uuid.UUID],
) -> list[dict[str, Any]]:
    """``files``: how many artifacts each node has; ``dropped``: how many of those that were read are not what the log says."""
    vector_of = {row["memory_node_id"]: row for row in vectors}
    event_of = {row["memory_node_id"]: row for row in events}
    artifacts_of: dict[uuid.UUID | None, list[dict[str, Any]]] = {}
    for artifact in artifacts:
        shown = redact_artifact(artifact_shape(artifact), flags_of.get(artifact.id, ()), caller)
        artifacts_of.setdefault(artifact.memory_node_id, []).append(shown)
    answer = []
    for node in nodes:
        vector, event = vector_of.get(node.id), event_of.get(node.id)
        shape = redact(document(node), caller)
        shape["artifacts"] = artifacts_of.get(node.id, [])
        shape["dropped"] = {"tampered": dropped[node.id]} if dropped[node.id] else {}
        if (left_out := files.get(node.id, 0) - len(shape["artifacts"]) - dropped[node.id]) > 0:
            shape["artifactsLeftOut"] = left_out
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


async def list_nodes(
    installation: Installation, caller: Caller, where: Filter | None, cursor: str | None, limit: int
) -> Page:
    """Live nodes, newest first, as JSON. A page may be short, even empty, while its cursor leads on: each call looks at a bounded
    number of rows, bytes and values, and its answer has a bounded size. Raises InvalidCursor, and ValidationError where a single
    node has more values than the filter may look at."""
    bound = _fingerprint(caller, where)
    after = decode_after(cursor, bound)
    embedding_ids = _required_embedding_ids(where)
    query = _SQL["list_nodes" if embedding_ids is None else "list_nodes_by_embedding_id"]
    size = limit + 1 if where is None else _SCAN_PAGE
    parts, steps = Parts(), Steps()
    shown: list[str] = []  # those that are answered
    scanned = scanned_bytes = 0
    dropped: Counter[str] = Counter()
    while True:
        given = {
            "tenant": caller.tenant,
            "embedding_ids": embedding_ids,
            "limit": size,
            "bytes": READ_BYTES,
            "after": after,
        }
        (rows,) = await installation.postgres.fetch(caller.tenant, (query, given))
        last = not rows or (rows[0]["looked"] < size and len(rows) == rows[0]["looked"])
        page_bytes = sum(row["size"] for row in rows)
        leaves = 0 if where is None else len(needs(where))
        found, looked = await aside.run(leaves * page_bytes, _look, where, rows, caller, steps)
        if rows and not scanned + looked:
            steps.take(0)  # raises: no page would ever get past this node
        for start in range(0, len(found), _AT_A_TIME):
            nodes, shapes, tampered = await _listed(installation, caller, found[start : start + _AT_A_TIME], where)
            dropped.update(tampered=tampered)
            for node, shape in zip(nodes, shapes, strict=True):
                full = len(parts.items) == limit or not await parts.add(weight_of(node), dict, shape)
                if full and shown:
                    return Page(parts.items, encode_after(uuid.UUID(shown[-1]), bound), shown, dict(+dropped))
                if full:
                    raise PayloadTooLarge(f"Node {node.id} alone is larger than an answer may be ({MAX_ANSWER} bytes).")
                shown.append(str(node.id))
        after = rows[looked - 1]["id"] if looked else after
        scanned, scanned_bytes = scanned + looked, scanned_bytes + page_bytes
        if looked < len(rows) and after is not None:
            return Page(parts.items, encode_after(after, bound), shown, dict(+dropped))
        if last:
            return Page(parts.items, None, shown, dict(+dropped))
        if after is not None and (scanned >= _SCAN_LIMIT or scanned_bytes >= _SCAN_BYTES):
            return Page(parts.items, encode_after(after, bound), shown, dict(+dropped))


async def _listed(
    installation: Installation, caller: Caller, found: Sequence[Node], where: Filter | None
) -> tuple[list[Node], list[dict[str, Any]], int]:
    """The nodes that were found, read again with what the log says of them, and their shapes; how many are not what it says. What
    changed since it was found must still match."""
    ids = [node.id for node in found]
    read = await read_nodes(installation, caller, ids, "list", _around(installation, caller, ids))
    nodes = [
        node
        for before in found
        if (node := read.nodes.get(before.id)) is not None
        and (node.version == before.version or where is None or visible_match(where, node, caller))
    ]
    return nodes, await _shapes(installation, caller, read, nodes, "list"), len(read.problems)


def _look(where: Filter | None, rows: Sequence[dict[str, Any]], caller: Caller, steps: Steps) -> tuple[list[Node], int]:
    """The nodes that match, and how many rows were looked at before the steps were spent."""
    found: list[Node] = []
    for place, row in enumerate(rows):
        node = Node(**{name: value for name, value in row.items() if name not in ("size", "looked")})
        try:
            if where is None or visible_match(where, node, caller, steps):
                found.append(node)
        except ValidationError:
            return found, place
    return found, len(rows)


async def history(
    installation: Installation, caller: Caller, node_id: uuid.UUID, cursor: str | None, limit: int
) -> Page:
    """The audit entries of a node, oldest first; a deleted node keeps its history. Raises NotFound, InvalidCursor."""
    bound = f"history {node_id}"
    log, after = (installation.log, -1) if cursor is None else _decode_place(cursor, bound)
    if log != installation.log:
        raise InvalidCursor("The cursor is of another log. Ask for the history from its beginning.")
    entries: Query = (
        _SQL["history"],
        {"tenant": caller.tenant, "log": installation.log, "id": node_id, "after": after, "limit": limit + 1},
    )
    _, read = await read_node(installation, caller, node_id, "history", [entries])
    (rows,) = read.more
    if not read.rows and not rows:
        raise NotFound(f"There is no node {node_id}.")
    await require_sealed(installation, caller, rows, "history", node_id)
    items = [event_shape(row) for row in rows[:limit]]
    if len(rows) <= limit:
        return Page(items, None)
    return Page(items, seal_cursor({"b": bound, "l": log, "s": rows[limit - 1]["seq"]}))


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
    columns = node_columns(node)
    shape = {"memoryNodeId": columns.pop("id"), "version": columns.pop("version"), **columns}
    del shape["tenant"], shape["deletedAt"]
    return shape


def visible_match(where: Filter, node: Node, caller: Caller, steps: Steps | None = None) -> bool:
    """Whether a node matches as far as this caller may see it: what is hidden from them counts as missing."""
    shape = document(node)
    hidden = hidden_paths(node, caller)
    return evaluate(where, replaced(shape, hidden, drop=True) if hidden else shape, steps)


def may_push_down(where: Filter | None, caller: Caller) -> Filter | None:
    """The filter that an index may evaluate on raw fields: none that could tell what is hidden from this caller."""
    if where is None or "read:pii" in caller.scopes:
        return where
    return None if any(path[0] in ("metadata", "content") for path in needs(where)) else where


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


def encode_after(id_: uuid.UUID, bound: str) -> str:
    """A cursor of a listing by id; ``bound``: what it is of."""
    return seal_cursor({"b": bound, "i": str(id_)})


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


def decode_after(cursor: str | None, bound: str) -> uuid.UUID | None:
    """The id after which such a listing goes on. Raises InvalidCursor."""
    if cursor is None:
        return None
    try:
        return uuid.UUID(_open_cursor(cursor, bound)["i"])
    except (KeyError, ValueError, TypeError, AttributeError):
        raise InvalidCursor("The cursor does not belong to this query.") from None


def _decode_place(cursor: str, bound: str) -> tuple[int, int]:
    """(log, seq). A cursor that was made when there was one log names none: it was log 0."""
    log = _open_cursor(cursor, bound).get("l", 0)
    if not isinstance(log, int) or isinstance(log, bool) or not -(2**31) <= log < 2**31:
        raise InvalidCursor("The cursor does not belong to this query.")
    return log, decode_sequence(cursor, bound)


def decode_sequence(cursor: str, bound: str) -> int:
    seq = _open_cursor(cursor, bound).get("s")
    if not isinstance(seq, int) or isinstance(seq, bool) or not 0 <= seq < 2**53:
        raise InvalidCursor("The cursor does not belong to this query.")
    return seq
