"""A tenant's artifacts, newest first, a page at a time."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, Final

from memory_layer.model import Caller
from memory_layer.service.actions.artifacts import artifact_shape
from memory_layer.service.answers import READ_BYTES
from memory_layer.service.artifact_ending import has_ended
from memory_layer.service.hiding import flags_of_artifacts, read_flags, redact_artifact
from memory_layer.service.installation import Installation
from memory_layer.service.nodes import Page, decode_after, encode_after
from memory_layer.service.verified_reads import artifact_entries, judge_artifacts, read_nodes
from memory_layer.sql import queries

_SQL = queries("nodes")
_BOUND: Final = "artifacts"


async def list_artifacts(
    installation: Installation, caller: Caller, node: uuid.UUID | None, cursor: str | None, limit: int
) -> Page:
    """Artifacts, or those of one node, as the caller may see them. What ended with its node is left out, and so is what is not what the
    log says, or whose node is not, which is counted; so a page may be short while its cursor leads on. It also ends at some megabytes
    of metadata. Raises InvalidCursor."""
    bound = _BOUND if node is None else f"{_BOUND} {node}"
    where = {
        "tenant": caller.tenant,
        "node": node,
        "after": decode_after(cursor, bound),
        "limit": limit + 1,
        "bytes": READ_BYTES,
    }
    (found,) = await installation.postgres.fetch(caller.tenant, (_SQL["list_artifacts"], where))
    looked = found[:limit]
    shapes, dropped = await _shapes(installation, caller, looked)
    # A row more than was asked for, or more than the bytes had room for.
    more = bool(looked) and (len(found) > limit or found[0]["looked"] > len(found))
    following = encode_after(looked[-1]["id"], bound) if more else None
    return Page(shapes, following, dropped={"tampered": dropped} if dropped else {})


async def _shapes(
    installation: Installation, caller: Caller, looked: Sequence[dict[str, Any]]
) -> tuple[list[dict[str, Any]], int]:
    if not looked:
        return [], 0
    ids = [row["id"] for row in looked]
    nodes = list({row["memory_node_id"] for row in looked if row["memory_node_id"] is not None})
    more = [
        (_SQL["get_artifacts"], {"tenant": caller.tenant, "ids": ids}),
        flags_of_artifacts(caller, ids),
        artifact_entries(installation, caller, ids),
    ]
    read = await read_nodes(installation, caller, nodes, "list", more, whole=False)
    rows, flags, entries = read.more
    good, problems = await judge_artifacts(installation, caller, rows, entries, read.rows, "list")
    doubtful = {problem.id for problem in read.problems}
    flags_of = read_flags(flags)
    by_id = {
        artifact.id: redact_artifact(artifact_shape(artifact), flags_of.get(artifact.id, []), caller)
        for artifact in good
        if artifact.memory_node_id not in doubtful and not has_ended(artifact, read.rows, read.nodes)
    }
    dropped = len(problems) + sum(artifact.memory_node_id in doubtful for artifact in good)
    return [by_id[id_] for id_ in ids if id_ in by_id], dropped
