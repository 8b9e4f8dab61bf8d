"""The use cases without a door: an opened Memory on a test's own database, and what is submitted to it."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psycopg

from memory_layer import config
from memory_layer.audit import trust_root
from memory_layer.audit.verdict import Verdict
from memory_layer.model import SCOPES, Caller, Embedding, uuid7
from memory_layer.ops import audit
from memory_layer.ops.first_start import ensure_keys, start_log
from memory_layer.service.actions.nodes import CreateNode, DeleteNode, PatchNode, SetHold, draft
from memory_layer.service.actions.outbox import EmbeddingSpace
from memory_layer.service.commit import Change
from memory_layer.service.installation import Installation
from memory_layer.service.running import open_service

NO_SPACE = EmbeddingSpace("pgvector", None, None)


@contextlib.asynccontextmanager
async def running_memory(dsn: str, data: Path, **settings: object) -> AsyncIterator[Installation]:
    """A Memory as a process of the service opens it; no embedder unless the settings name one.

    Nothing writes the words of new texts beside the test: a test that changes rows on a connection of its own keeps the event loop, and
    would wait for ever for a row that the writer of words has locked.
    """
    found = config.load({}, **{"database_url": dsn, "embeddings_provider": "none"} | settings)
    ensure_keys(data)
    await start_log(found, data, dsn, owner_of(dsn))
    async with open_service(found, data) as memory:
        memory.words = None
        yield memory


def owner_of(dsn: str) -> str:
    """The same database as the role that owns the tables, which alone may open a log."""
    return dsn.replace("memory_app@", "memory_owner@")


def verify(dsn: str, data: Path, **facts: Any) -> Verdict:
    """The verdict on the log in this database, by the trust root that its first start made."""
    return audit.verify_live(dsn, trust_root.load((data / "trust-root.json").read_bytes()), pinned=True, **facts)


def caller(tenant: str = "ann", **facts: Any) -> Caller:
    plain = {"actor": uuid.UUID(int=7), "service": "tester", "auth": "jwt", "scopes": frozenset(SCOPES),
             "request_id": f"r-{os.urandom(6).hex()}"}  # fmt: skip
    return Caller(tenant=tenant, **plain | facts)


def unit(*values: float) -> Embedding:
    """An embedding that a caller gives."""
    return Embedding("test-model", len(values), np.array(values, "<f4").tobytes())


def new_node(**facts: Any) -> CreateNode:
    embedding, space = facts.pop("embedding", None), facts.pop("space", NO_SPACE)
    more = {name: facts.pop(name) for name in ("evidence", "artifacts", "bulk") if name in facts}
    plain: dict[str, Any] = {"id": uuid7(), "owner": "ann", "namespace": "kernel-memory", "content": "some text"}
    return CreateNode(draft(**plain | facts), embedding, space, **more)


def patch_node(node: uuid.UUID, **facts: Any) -> PatchNode:
    version, embedding = facts.pop("expected_version", None), facts.pop("embedding", None)
    space = facts.pop("space", NO_SPACE)
    return PatchNode(node, version, facts, embedding, space)


async def create(memory: Installation, tenant: str = "ann", **facts: Any) -> uuid.UUID:
    """Commit a new node; its id."""
    action = new_node(**facts)
    await memory.committer.submit(Change(caller(tenant), action))
    return action.id


async def patch(memory: Installation, node: uuid.UUID, tenant: str = "ann", **facts: Any) -> None:
    await memory.committer.submit(Change(caller(tenant), patch_node(node, **facts)))


async def delete(memory: Installation, node: uuid.UUID, tenant: str = "ann") -> None:
    await memory.committer.submit(Change(caller(tenant), DeleteNode(node, None)))


async def hold(memory: Installation, node: uuid.UUID, on: bool = True, tenant: str = "ann") -> None:
    await memory.committer.submit(Change(caller(tenant), SetHold(node, on, "case 7", None)))


def rows(dsn: str, query: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """What stands in the database; ``dsn`` of a role that sees everything."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(query, params)
        return cursor.fetchall() if cursor.description is not None else []
