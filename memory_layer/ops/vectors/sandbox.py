"""For a drill: an index namespace of its own to break, and the breaking. Nothing here runs where SERVICE_ENV is prod."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from dataclasses import replace
from typing import Any, Final

import numpy as np

from memory_layer.config import Settings
from memory_layer.errors import PolicyRefused
from memory_layer.model import Embedding, Node, uuid7
from memory_layer.ops.vectors import replay
from memory_layer.ops.vectors.spaces import SQL, Scope, Space, decode, indexed_rows, list_spaces
from memory_layer.progress import Progress, no_progress
from memory_layer.service.actions.nodes import CreateNode, DeleteNode, PatchNode, draft
from memory_layer.service.actions.outbox import EmbeddingSpace as NodeSpace
from memory_layer.service.commit import Change, Committer
from memory_layer.service.index_entries import entry
from memory_layer.service.installation import Installation
from memory_layer.service.principals import known_caller
from memory_layer.stores.postgres import ALL_TENANTS
from memory_layer.stores.protocols import VectorEntry

TENANT: Final = "memory-layer-drill"
NODES: Final = 200
MODEL: Final = "drill"
OWNER: Final = "memory-layer-drill"
_EXTRA: Final = 5


def refuse_in_prod(settings: Settings) -> None:
    """Raise PolicyRefused where nothing may be broken on purpose."""
    if settings.service_env == "prod":
        raise PolicyRefused(
            "nothing is broken on purpose where SERVICE_ENV is prod. Run the drill without --inflict there."
        )


async def build(
    installation: Installation, committer: Committer, dimension: int, run: uuid.UUID, *, within: float
) -> Scope:
    """Nodes of noise in a tenant that is the drill's own, written and indexed as any other; half of them changed once.

    They go through the log like all writes. What an earlier drill left because it was killed is deleted first.
    """
    caller = replace(await known_caller(installation.postgres, "memoryctl", str(run)), tenant=TENANT)
    await clear(installation, committer, run, within=within)
    space, namespace = NodeSpace(installation.vectors.provider, None, None), f"drill-{dimension}"
    noise = np.random.default_rng(dimension).standard_normal((NODES, dimension)).astype("<f4")
    nodes = [uuid7() for _ in range(NODES)]
    await asyncio.gather(
        *(
            committer.submit(Change(caller, _node(node, namespace, space, Embedding(MODEL, dimension, row.tobytes()))))
            for node, row in zip(nodes, noise, strict=True)
        )
    )
    await asyncio.gather(*(committer.submit(Change(caller, _change(node, space))) for node in nodes[::2]))
    scope = Scope(TENANT, namespace)
    await replay.replay(installation, scope, within=within)
    return scope


async def clear(installation: Installation, committer: Committer, run: uuid.UUID, *, within: float) -> None:
    """Delete the drill's own nodes, and wait until they are gone from the index."""
    caller = replace(await known_caller(installation.postgres, "memoryctl", str(run)), tenant=TENANT)
    (rows,) = await installation.postgres.fetch(TENANT, (SQL["live_nodes"], {"tenant": TENANT, "owner": OWNER}))
    await asyncio.gather(*(committer.submit(Change(caller, DeleteNode(row["id"], None))) for row in rows))
    await replay.replay(installation, Scope(TENANT), within=within)


async def dimension_of(installation: Installation, settings: Settings) -> int:
    """The dimension that most of the installation's vectors have, since some stores take one alone."""
    spaces = await list_spaces(installation, Scope())
    known = [space for space in spaces if space.dimension is not None and space.expected]
    largest = max(known, key=lambda space: space.expected, default=None)
    return settings.embeddings_dimensions if largest is None or largest.dimension is None else largest.dimension


async def inflict(installation: Installation, space: Space, progress: Progress = no_progress) -> Counter[str]:
    """Break the index of a namespace: forget it, and write it again with faults; how many of each kind.

    Of twenty nodes two are lost, one is put back to the version before and one gets another vector; and some are written that nobody
    knows. Which ones: by the last byte of their ids.
    """
    done: Counter[str] = Counter()
    await installation.vectors.drop(space.tenant, space.namespace)
    where: dict[str, Any] = {"tenant": space.tenant, "namespace": space.namespace}
    like: VectorEntry | None = None
    async for rows in indexed_rows(installation, space):
        facts = {**where, "nodes": [row["node_id"] for row in rows], "versions": [row["version"] for row in rows]}
        (found,) = await installation.postgres.fetch(ALL_TENANTS, (SQL["nodes_to_restore"], facts))
        entries = []
        for row in found:
            node, version, stored = row.pop("node_id"), row.pop("row_version"), row.pop("stored")
            row.pop("provider")
            whole = entry(space.tenant, space.namespace, Node(**row), version, decode(stored))
            fault = node.bytes[15] % 20
            if fault < 2 or (fault == 2 and version == 1):
                done["missing"] += 1
                continue
            if fault == 2:
                done["stale"] += 1
                whole = replace(whole, version=version - 1)
            elif fault == 3:
                done["wrong"] += 1
                whole = replace(whole, vector=-whole.vector)
            entries.append(whole)
            like = whole
        size = installation.vectors.capabilities.batch
        for start in range(0, len(entries), size):
            await installation.vectors.upsert(entries[start : start + size])
        progress("breaking the index", done.total(), 0)
    if like is not None:
        extra = [replace(like, node_id=uuid.uuid4(), version=1) for _ in range(_EXTRA)]
        await installation.vectors.upsert(extra)
        done["extra"] += len(extra)
    return done


def _node(node: uuid.UUID, namespace: str, space: NodeSpace, embedding: Embedding) -> CreateNode:
    return CreateNode(draft(id=node, owner=OWNER, namespace=namespace), embedding, space)


def _change(node: uuid.UUID, space: NodeSpace) -> PatchNode:
    return PatchNode(node, None, {"metadata": {"changed": True}}, None, space)
