"""An installation with something in every table that the product writes, made by the running service, and all of it clean."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg

from memory_layer import config
from memory_layer.audit import trust_root
from memory_layer.audit.verdict import Verdict
from memory_layer.model import Caller, uuid7
from memory_layer.ops import audit, embedded, rotate
from memory_layer.ops.artifacts import jobs
from memory_layer.ops.operate import Run, operate
from memory_layer.service import api_keys, artifacts, freeze, generations, languages, principals, tenants
from memory_layer.service.actions.artifacts import ExtendRetention
from memory_layer.service.actions.nodes import CreateNodes, DeleteNode, SetHold
from memory_layer.service.checkpoints import publish_once
from memory_layer.service.commit import Change, Idempotency, request_hash
from memory_layer.service.indexing import work_once
from memory_layer.service.installation import Installation, open_installation
from memory_layer.service.system import bind_principals, system_caller
from tests.support.databases import new_database
from tests.support.real_archive import archive_all
from tests.support.service import caller, new_node, patch_node, running_memory, unit

NOW = dt.datetime.now(dt.UTC)
# What workers leave behind while they are at it, and no run here does at the moment at which it ends.
BOOKKEEPING = """
INSERT INTO ops_schedule (job, leader, last_started, next_due) VALUES ('nightly', 'host:1', now(), now());
INSERT INTO artifact_progress (job, state, updated_at) VALUES ('scan', '{}', now());
INSERT INTO index_rounds (lease, tenants, ids, versions, begun_at)
    VALUES (gen_random_uuid(), '{ann}', ARRAY[gen_random_uuid()], '{1}', now());
INSERT INTO worker_breakers (worker, service, state, reason, since, seen_at) VALUES ('host:1', 'vectors', 'open', 'down', now(), now());
INSERT INTO artifact_sweeps (tenant, object_key, version_id, marked_at)
    VALUES ('ann', 'ann/' || repeat('ab', 32), 'v1', now())
"""


@dataclass
class FullInstallation:
    """``dsn``: the superuser's."""

    dsn: str
    data: Path

    def judge(self) -> Verdict:
        root = trust_root.load((self.data / "trust-root.json").read_bytes())
        return audit.verify_live(self.dsn, root, pinned=True)


class _People:
    """Callers by tenant, each introduced with its first write as a service is."""

    def __init__(self) -> None:
        self._known: dict[str, Caller] = {}

    def of(self, tenant: str) -> Caller:
        known = self._known.setdefault(tenant, replace(caller(tenant), actor=uuid7(), draft=True))
        return replace(known, request_id=f"r-{uuid7()}")


async def _fill(memory: Installation, data: Path) -> None:
    people = _People()

    async def submit(tenant: str, action: Any, key: str | None = None) -> dict[str, Any]:
        once = None if key is None else Idempotency(key, request_hash(key))
        return (await memory.committer.submit(Change(people.of(tenant), action, once))).answer

    async def upload(tenant: str, content: bytes, node: uuid.UUID | None, name: str) -> uuid.UUID:
        async def chunks() -> AsyncIterator[bytes]:
            yield content

        new = artifacts.Upload(node, name, "text/plain", None, {"for": "a test"})
        done = await artifacts.upload(memory, people.of(tenant), new, chunks())
        return uuid.UUID(done.answer["artifactId"])

    await bind_principals(memory)
    nodes = []
    for tenant in ("ann", "bob"):
        for n in range(6):
            facts: dict[str, Any] = {
                "owner": tenant, "content": f"north gate {n}", "metadata": {"n": n}, "subjects": [f"s{n % 2}"],
                "embedding_id": f"e{n}", "embedding": unit(1, n), "ttl_seconds": 7200 if n == 3 else None,
                "occurred_at": NOW if n == 4 else None,
            }  # fmt: skip
            answer = await submit(tenant, new_node(**facts), f"key {n}" if n < 2 else None)
            nodes.append(uuid.UUID(answer["memoryNodeId"]))
    await submit("ann", CreateNodes([new_node(content=None, embedding=unit(2, n)) for n in range(250)]), "many")
    await submit("ann", patch_node(nodes[0], content="south gate", metadata={"n": None}))
    await submit("ann", SetHold(nodes[1], True, "case 7", None))
    await submit("ann", DeleteNode(nodes[2], None))
    kept = await upload("ann", b"attached", nodes[1], "a.txt")
    await upload("bob", b"alone", None, "b.txt")
    for content in (b"deleted", b"deleted too"):
        await artifacts.delete(memory, people.of("ann"), await upload("ann", content, nodes[4], "c.txt"))
    await submit("ann", ExtendRetention(kept, NOW.replace(microsecond=0) + dt.timedelta(days=90), {"mode": "none"}))
    while await work_once(memory):
        pass
    space = await generations.find(memory.postgres, "ann", "kernel-memory")
    await generations.open_generation(memory, await system_caller(memory, "memoryctl"), space, "another-model", 3)
    for _ in range(2):
        await jobs.nightly_manifest(memory)
    await _run(memory)
    await archive_all(memory, entries=200)
    await submit("bob", new_node(owner="bob", content="after the archive"))
    operator = await system_caller(memory, "memoryctl")
    await principals.revoke(memory, operator, "bob", "leaver", "gone")
    await principals.revoke_token(memory, operator, "bob", "token-1", "lost")
    await tenants.create(memory, operator, "eve")
    await tenants.revoke(memory, operator, "eve", "gone")
    made, _ = await api_keys.create(
        memory, operator, tenant="ann", service="robot", scopes=["memory:read"], name="a test"
    )
    key = uuid.UUID(made.answer["apiKeyId"])
    again, _ = await api_keys.rotate(memory, operator, "ann", key, dt.timedelta(days=1))
    await api_keys.revoke(memory, operator, "ann", uuid.UUID(again.answer["apiKeyId"]), "lost")
    for name, language in (("notizen", "de"), ("notes", "en"), ("notizen", "nl")):
        await languages.set_language(memory, operator, "ann", name, language)


async def _run(memory: Installation) -> None:
    async def work(run: Run) -> None:
        run.fact("looked", 7)

    await operate(memory, "look-around", {"deep": True}, work)


@contextmanager
def full_installation(cluster: embedded.Cluster, data: Path) -> Iterator[FullInstallation]:
    with new_database(cluster) as made:
        dsn = made("memory_app")

        async def run() -> None:
            async with running_memory(dsn, data) as memory:
                await _fill(memory, data)
            settings = config.load({}, database_url=dsn, embeddings_provider="none")
            async with (
                open_installation(settings, data) as installation,
                contextlib.aclosing(rotate.steps(installation)) as steps,
            ):
                async for _ in steps:
                    pass
            async with running_memory(dsn, data) as memory:
                await freeze.put(memory.committer, await system_caller(memory, "memoryctl"), "a drill")
                await publish_once(memory)

        asyncio.run(run())
        with psycopg.connect(made("postgres"), autocommit=True) as connection:
            connection.execute(BOOKKEEPING)
        yield FullInstallation(made("postgres"), data)
