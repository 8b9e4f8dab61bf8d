"""What Postgres says of a search's candidates, and whether it vouches for them: the gate that every answer passes."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from memory_layer import aside
from memory_layer.filters import Filter, Steps, needs
from memory_layer.model import Caller, Namespace, Node
from memory_layer.service import Memory
from memory_layer.service.answers import READ_BYTES
from memory_layer.service.hiding import hides_bytes
from memory_layer.service.nodes import visible_match
from memory_layer.service.verification import LastEntry
from memory_layer.service.verified_reads import Proof, node_of, vector_sha256
from memory_layer.sql import queries
from memory_layer.stores.pipeline import statement, statements
from memory_layer.stores.postgres import scope_of
from memory_layer.stores.protocols import Beside, VectorHits

SHORT: Final = (
    8192  # bytes: text and metadata up to here come along with their node, longer ones only for hits that are answered
)
MOST_FILES: Final = 64  # ids of files that come along, and one more that says that there are more (vouch.sql)
_ALONG: Final = {"short": SHORT}
_MOST_SEEN: Final = 10_000  # namespaces that a process remembers

_AT_A_TIME: Final = 100  # long nodes that are asked for in one query

_SQL = statements("vouch")
_NODES = queries("nodes")
_TEXT: Final = queries("vouch")
_VOUCH: Final = statement(
    "memory_layer_vouch_ids",
    _TEXT["vouch"].replace("{candidates}", "unnest(%(ids)b::uuid[]) c(node_id)").replace("{more}", ""),
)


class Moved(Exception):
    """The namespace has another index, or one at all, since this search read it: it starts again."""


@dataclass(frozen=True, slots=True)
class Vouched:
    """A candidate as Postgres has it: the node, its row for the index, the first of its files. ``long``: text and metadata were left
    behind. ``size``: bytes of the metadata."""

    node: Node
    provider: str
    index_namespace: str
    model: str | None
    dimension: int | None
    status: str
    since: int
    artifacts: list[uuid.UUID]
    long: bool
    size: int
    mark: str  # of the row's version
    proof: Proof | None = None  # None: read without

    @property
    def more_files(self) -> bool:
        return len(self.artifacts) > MOST_FILES


async def find_space(memory: Memory, tenant: str, name: str) -> Namespace | None:
    """The namespace as this process last saw it, else as it is; None while nothing with a vector was ever written there."""
    seen = memory.seen.get((tenant, name))
    if seen is not None:
        return seen
    (rows,) = await memory.stores.postgres.look(tenant, (_SQL["namespace"], {"tenant": tenant, "name": name}))
    return _remember(memory, tenant, name, rows)


async def read(
    memory: Memory,
    caller: Caller,
    name: str,
    space: Namespace | None,
    ids: Sequence[uuid.UUID],
    *,
    strict: bool = False,
) -> dict[uuid.UUID, Vouched]:
    """The candidates that are there, in one round trip that also proves ``space`` still right. Raises Moved where it is not.

    ``strict``: with what the log said last of each.
    """
    index = space.index_namespace if space is not None else name
    params = {
        "tenant": caller.tenant,
        "ids": list(ids),
        "namespace": index,
        "strict": strict,
        "log": memory.stores.log,
        **_ALONG,
    }
    rows, spaces = await memory.stores.postgres.look(
        caller.tenant, (_VOUCH, params), (_SQL["namespace"], {"tenant": caller.tenant, "name": name})
    )
    return _read(memory, caller, name, space, rows, spaces, strict)


async def find(
    memory: Memory,
    caller: Caller,
    space: Namespace,
    vector: NDArray[np.float32],
    limit: int,
    where: Filter | None,
    skip: int,
    *,
    strict: bool = False,
) -> tuple[VectorHits, dict[uuid.UUID, Vouched] | None]:
    """The index's hits; where the index is in this database also what ``read`` says of them, from the same round trip and on the same
    connection. ``where`` is what the index may evaluate. Raises Moved."""
    stores = memory.stores
    if stores.beside is None:
        return await stores.vectors.search(caller.tenant, space.index_namespace, vector, limit, where, skip), None
    beside = Beside(
        _TEXT["vouch"],
        {"strict": strict, "log": stores.log, **_ALONG},
        before=(_TEXT["scope"], scope_of(caller.tenant)),
        after=(_TEXT["namespace"], {"tenant": caller.tenant, "name": space.name}),
    )
    hits, found = await stores.beside.search_beside(
        caller.tenant, space.index_namespace, vector, limit, where, skip, beside
    )
    return hits, None if found is None else _read(memory, caller, space.name, space, *found, strict)


def _read(
    memory: Memory,
    caller: Caller,
    name: str,
    space: Namespace | None,
    rows: Sequence[dict[str, Any]],
    spaces: Sequence[dict[str, Any]],
    strict: bool,
) -> dict[uuid.UUID, Vouched]:
    if _remember(memory, caller.tenant, name, spaces) != space:
        raise Moved
    return {row["id"]: _vouched(row, strict) for row in rows if row["id"] is not None and row["provider"] is not None}


def refusal(candidate: Vouched | None, version: int, name: str, caller: Caller) -> str | None:
    """Why Postgres does not vouch for a hit of this version; None when it does, whatever the filter says."""
    if candidate is None:
        return "orphan"
    node = candidate.node
    if version < candidate.since or version > node.version or candidate.status in ("deleting", "deleted"):
        return "stale"
    if node.namespace != name:
        return "namespace"
    # A match with hidden text, by its words or by its meaning, would tell the caller what stands there.
    if hides_bytes([node.pii_flags], caller):
        return "hidden"
    return None


async def matching(
    memory: Memory, caller: Caller, where: Filter, rows: Sequence[Vouched], steps: Steps, room: Room
) -> set[uuid.UUID]:
    """Those of these nodes that the filter holds for. What is long is read for it piece by piece, and not kept; where that is more
    than ``room`` has, the rest counts as not matching, and ``room`` says so. Raises ValidationError when the steps are spent."""
    leaves = len(needs(where))
    reads = any(path[0] in ("content", "metadata") for path in needs(where))
    short = [row.node for row in rows if not (row.long and reads)]
    size = leaves * sum(row.size for row in rows)
    found = await aside.run(size, _matching, where, short, caller, steps)
    left = [row.node for row in rows if row.long and reads]
    while left and room.left > 0:
        bodies, size, left = await read_bodies(memory, caller, left)
        room.left -= size
        found |= await aside.run(leaves * size, _matching, where, bodies, caller, steps)
    room.short = room.short or bool(left)
    return found


@dataclass(slots=True)
class Room:
    """How many bytes one search may still read; ``short``: they did not do."""

    left: int
    short: bool = False


def _matching(where: Filter, nodes: Sequence[Node], caller: Caller, steps: Steps) -> set[uuid.UUID]:
    return {node.id for node in nodes if visible_match(where, node, caller, steps)}


async def read_bodies(memory: Memory, caller: Caller, nodes: Sequence[Node]) -> tuple[list[Node], int, list[Node]]:
    """The first of these nodes with content and metadata, as many as one query may read; their bytes; the nodes that are left to be
    read. A node that is not at its version any more is in neither."""
    some = nodes[:_AT_A_TIME]
    given = {
        "tenant": caller.tenant,
        "ids": [node.id for node in some],
        "versions": [node.version for node in some],
        "bytes": READ_BYTES,
    }
    (rows,) = await memory.stores.postgres.fetch(caller.tenant, (_NODES["node_bodies"], given))
    whole = [
        replace(node, content=row["content"], metadata=row["metadata"])
        for node, row in zip(some, rows, strict=False)
        if row["version"] is not None
    ]
    return whole, sum(row["size"] for row in rows), list(nodes[len(rows) :])


def _vouched(row: dict[str, Any], strict: bool) -> Vouched:
    proof = None
    if strict:
        seq, vector = row["entry_seq"], row["vector"]
        last = None if seq is None else LastEntry(seq, row["entry_batch"], row["entry"], row["salt"])
        given = row["vector_sha256"] if vector is None else vector_sha256(vector)
        proof = Proof(last, given, None, row["mark"])
    provider, index_namespace, model, dimension, status, since, artifacts = _BESIDE(row)
    node, long, size = node_of(row), bool(row["long"]), row["size"] or 0
    return Vouched(
        node, provider, index_namespace, model, dimension, status, since, artifacts, long, size, row["mark"], proof
    )


_BESIDE: Final = itemgetter("provider", "index_namespace", "model", "dimension", "status", "since", "artifact_ids")


def _remember(memory: Memory, tenant: str, name: str, rows: Sequence[dict[str, Any]]) -> Namespace | None:
    if not rows:
        memory.seen.pop((tenant, name), None)
        return None
    space = Namespace(**rows[0])
    if len(memory.seen) >= _MOST_SEEN:
        memory.seen.clear()
    memory.seen[(tenant, name)] = space
    return space
