"""What Postgres says of a search's candidates, and whether it vouches for them: the gate that every answer passes."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from memory_layer.filters import Filter, needs
from memory_layer.model import Caller, Namespace, Node
from memory_layer.service import Memory
from memory_layer.service.nodes import hidden_paths, visible_match
from memory_layer.stores.pipeline import statements

SHORT: Final = (
    8192  # bytes as stored: text up to here comes along with its node, longer only for the hits that are answered
)
_MOST_SEEN: Final = 10_000  # namespaces that a process remembers

_SQL = statements("vouch")


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
) -> dict[uuid.UUID, Vouched]:
    """The candidates that are there, in one round trip that also proves ``space`` still right. Raises Moved where it is not."""
    index = space.index_namespace if space is not None else name
    whole = where is not None and ("content",) in needs(where)
    params = {"tenant": caller.tenant, "ids": list(ids), "namespace": index, "whole": whole, "short": SHORT}
    rows, spaces = await memory.stores.postgres.look(
        caller.tenant, (_SQL["vouch"], params), (_SQL["namespace"], {"tenant": caller.tenant, "name": name})
    )
    if _remember(memory, caller.tenant, name, spaces) != space:
        raise Moved
    return {row["id"]: _vouched(row) for row in rows}


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


def _vouched(row: dict[str, Any]) -> Vouched:
    beside = {
        name: row.pop(name)
        for name in ("provider", "index_namespace", "model", "dimension", "status", "since", "artifact_ids")
    }
    artifacts, long = beside.pop("artifact_ids"), bool(row.pop("long"))
    return Vouched(Node(**row), **beside, artifacts=artifacts, long=long)


def _remember(memory: Memory, tenant: str, name: str, rows: Sequence[dict[str, Any]]) -> Namespace | None:
    if not rows:
        memory.seen.pop((tenant, name), None)
        return None
    space = Namespace(**rows[0])
    if len(memory.seen) >= _MOST_SEEN:
        memory.seen.clear()
    memory.seen[(tenant, name)] = space
    return space
