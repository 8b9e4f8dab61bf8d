"""What Postgres says of a search's candidates, and whether it vouches for them: the gate that every answer passes."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from memory_layer.filters import Filter, needs
from memory_layer.model import Caller, Namespace, Node
from memory_layer.service import Memory
from memory_layer.service.hiding import hidden_paths
from memory_layer.service.nodes import visible_match
from memory_layer.service.verification import LastEntry
from memory_layer.service.verified_reads import Proof, node_of, vector_sha256
from memory_layer.sql import queries
from memory_layer.stores.pipeline import statement, statements
from memory_layer.stores.postgres import scope_of
from memory_layer.stores.protocols import Beside, VectorHits

SHORT: Final = (
    8192  # bytes as stored: text up to here comes along with its node, longer only for the hits that are answered
)
_MOST_SEEN: Final = 10_000  # namespaces that a process remembers

_SQL = statements("vouch")
_TEXT: Final = queries("vouch")
_VOUCH: Final = statement(
    "memory_layer_vouch_ids",
    _TEXT["vouch"].replace("{candidates}", "unnest(%(ids)b::uuid[]) c(node_id)").replace("{more}", ""),
)


class Moved(Exception):
    """The namespace has another index, or one at all, since this search read it: it starts again."""


@dataclass(frozen=True, slots=True)
class Vouched:
    """A candidate as Postgres has it: the node, its row for the index, its files. ``long``: its text was left behind."""

    node: Node
    provider: str
    index_namespace: str
    model: str | None
    dimension: int | None
    status: str
    since: int
    artifacts: list[uuid.UUID]
    long: bool
    mark: str  # of the row's version
    proof: Proof | None = None  # None: read without


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
    where: Filter | None,
    *,
    strict: bool = False,
) -> dict[uuid.UUID, Vouched]:
    """The candidates that are there, in one round trip that also proves ``space`` still right. Raises Moved where it is not.

    ``strict``: with what the log said last of each.
    """
    index = space.index_namespace if space is not None else name
    whole = where is not None and ("content",) in needs(where)
    params = {
        "tenant": caller.tenant,
        "ids": list(ids),
        "namespace": index,
        "whole": whole,
        "short": SHORT,
        "strict": strict,
        "log": memory.stores.log,
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
    needed: Filter | None,
    *,
    strict: bool = False,
) -> tuple[VectorHits, dict[uuid.UUID, Vouched] | None]:
    """The index's hits; where the index is in this database also what ``read`` says of them, from the same round trip and on the same
    connection. ``where`` is what the index may evaluate, ``needed`` the filter that the rows will be held against. Raises Moved."""
    stores = memory.stores
    if stores.beside is None:
        return await stores.vectors.search(caller.tenant, space.index_namespace, vector, limit, where, skip), None
    beside = Beside(
        _TEXT["vouch"],
        {
            "whole": needed is not None and ("content",) in needs(needed),
            "short": SHORT,
            "strict": strict,
            "log": stores.log,
        },
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


def refusal(candidate: Vouched | None, version: int, name: str, where: Filter | None, caller: Caller) -> str | None:
    """Why Postgres does not vouch for a hit of this version; None when it does."""
    if candidate is None:
        return "orphan"
    node = candidate.node
    if version < candidate.since or version > node.version or candidate.status in ("deleting", "deleted"):
        return "stale"
    if node.namespace != name:
        return "namespace"
    # A match with hidden text, by its words or by its meaning, would tell the caller what stands there.
    if ("content",) in hidden_paths(node, caller):
        return "hidden"
    if where is not None and not visible_match(where, node, caller):
        return "filter"
    return None


def _vouched(row: dict[str, Any], strict: bool) -> Vouched:
    proof = None
    if strict:
        seq, vector = row["entry_seq"], row["vector"]
        last = None if seq is None else LastEntry(seq, row["entry_batch"], row["entry"], row["salt"])
        given = row["vector_sha256"] if vector is None else vector_sha256(vector)
        proof = Proof(last, given, row["content_sha256"], row["mark"])
    provider, index_namespace, model, dimension, status, since, artifacts = _BESIDE(row)
    return Vouched(
        node_of(row),
        provider,
        index_namespace,
        model,
        dimension,
        status,
        since,
        artifacts,
        bool(row["long"]),
        row["mark"],
        proof,
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
