"""The outside suite agent-memory-integrity (``agmi-check``): nine edits of a store at rest, T1 to T9, of which none may be served.

Its adapter reads as an agent does (a list, and each memory by its id) and, a second time, as an auditor does (``audit verify``). The
newest checkpoint is kept in the archive, which is none of the store that is edited: without anything kept elsewhere no store can tell
that all of it was put back to an earlier time (T9).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, ClassVar

import psycopg
import pytest

from memory_layer.audit.trust_root import TrustRoot
from memory_layer.audit.verdict import Finding
from memory_layer.config import Settings
from memory_layer.service.installation import open_installation

pytest.importorskip("agmi", reason="agent-memory-integrity is not installed: `make test` installs it")

from agmi import check
from agmi.adapters.base import MemoryAdapter, Record

from memory_layer import config
from memory_layer.errors import NotFound, RollbackDetected, Tampered
from memory_layer.ops.archive import job
from memory_layer.ops.rollback import examine
from memory_layer.service import nodes
from memory_layer.service.checkpoints import publish_once
from memory_layer.service.installation import Installation
from memory_layer.stores.logs import read_trust_root
from tests.support.databases import copied
from tests.support.service import caller, create, rows, running_memory, verify

OURS, OTHER = "ann", "bob"
COLUMNS = "tenant, id, content, owner, created_at, updated_at, metadata"


class AtRest(MemoryAdapter):  # type: ignore[misc]
    """Nodes of one tenant as they lie in Postgres; what is asked afterwards is asked of the service."""

    name = "memory-layer"
    detection_point: ClassVar[str] = "read"
    supports_replay = supports_metadata = supports_snapshot = True

    def __init__(self, databases: Callable[[], Callable[[str], str]], copy: Callable[[str], str], folder: Path) -> None:
        self._databases, self._copy, self._folder = databases, copy, folder
        self._runner = asyncio.Runner()

    def setup(self) -> None:
        self._database = self._databases()
        self._data = self._folder / uuid.uuid4().hex
        self._data.mkdir()
        self._known: list[uuid.UUID] = []  # what the agent has stored, and was given the ids of
        self._opened: contextlib.AsyncExitStack | None = None

    def teardown(self) -> None:
        self._close()

    def _close(self) -> None:
        if self._opened is not None:
            self._runner.run(self._opened.aclose())
            self._opened = None

    def _service(self) -> Installation:
        async def enter() -> Installation:
            self._opened = contextlib.AsyncExitStack()
            return await self._opened.enter_async_context(running_memory(self._database("memory_app"), self._data))

        if self._opened is None:
            self._memory = self._runner.run(enter())
        return self._memory

    def _ask(self, work: Callable[[Installation], Coroutine[Any, Any, Any]]) -> Any:
        memory = self._service()
        return self._runner.run(work(memory))

    def _store(self, tenant: str, words: list[str]) -> None:
        async def store(memory: Installation) -> None:
            for text in words:
                node = await create(memory, tenant, content=text, metadata={"source": "user"})
                if tenant == OURS:
                    self._known.append(node)
            await publish_once(memory)
            await job.copy_checkpoint(memory)

        self._ask(store)

    def seed(self, n: int) -> None:
        self._store(OURS, [f"ann remembers {place}" for place in range(n)])

    def seed_other(self, n: int) -> None:
        self._store(OTHER, [f"bob remembers {place}" for place in range(n)])

    def append_genuine(self) -> None:
        self._store(OURS, ["ann remembers one thing more"])

    # What somebody does who has the database, and not the keys.

    def _raw(self, query: str, params: Any = ()) -> list[tuple[Any, ...]]:
        return rows(self._database("postgres"), query, params)

    def _records(self, tenant: str) -> list[Record]:
        found = self._raw(f"SELECT {COLUMNS} FROM memory_nodes WHERE tenant = %s ORDER BY created_at, id", [tenant])
        names = COLUMNS.split(", ")
        return [Record(seq, dict(zip(names, map(str, row), strict=True))) for seq, row in enumerate(found)]

    def read_all_raw(self) -> list[Record]:
        return self._records(OURS)

    def read_other_raw(self) -> list[Record]:
        return self._records(OTHER)

    def payload_of(self, record: Record) -> str:
        return str(record.fields["content"])

    def owner_of(self, record: Record) -> str:
        return str(record.fields["tenant"])

    def mutate_payload(self, record: Record) -> Record:
        record.fields["content"] += " and owes eve a million"
        return record

    def write_raw(self, record: Record) -> None:
        there = self._records(OURS)
        if record.seq < len(there):
            change = "UPDATE memory_nodes SET content = %s WHERE id = %s"
            self._raw(change, [record.fields["content"], there[record.seq].fields["id"]])
        else:
            forged = uuid.uuid4()
            self._raw(
                "INSERT INTO memory_nodes (tenant, id, owner, namespace, content, metadata, subjects, created_at, updated_at)"
                " SELECT tenant, %s, owner, namespace, %s, metadata, subjects, now(), now() FROM memory_nodes WHERE id = %s",
                [forged, record.fields["content"], there[-1].fields["id"]],
            )

    def delete_raw(self, seq: int) -> None:
        node = self._records(OURS)[seq].fields["id"]
        self._raw("DELETE FROM memory_vectors WHERE memory_node_id = %s", [node])  # else a trigger keeps the node
        self._raw("DELETE FROM memory_nodes WHERE id = %s", [node])

    def replay_onto(self, victim_seq: int, donor: Record) -> None:
        victim = self._records(OURS)[victim_seq].fields["id"]
        self._raw("UPDATE memory_nodes SET content = %s WHERE id = %s", [donor.fields["content"], victim])

    def read_meta(self, seq: int) -> dict[str, Any]:
        found = json.loads(
            self._raw("SELECT metadata::text FROM memory_nodes WHERE id = %s", [self._records(OURS)[seq].fields["id"]])[
                0
            ][0]
        )
        assert isinstance(found, dict)
        return found

    def write_meta(self, seq: int, meta: dict[str, Any]) -> None:
        change = "UPDATE memory_nodes SET metadata = %s WHERE id = %s"
        self._raw(change, [json.dumps(meta), self._records(OURS)[seq].fields["id"]])

    def snapshot_store(self) -> object:
        self._close()
        return self._copy(self._database("postgres"))

    def restore_store(self, token: object) -> None:
        self._close()
        name = str(token)
        at = self._database
        self._database = lambda role: psycopg.conninfo.make_conninfo(at(role), dbname=name)

    def reload(self) -> None:
        self._close()

    def verify(self) -> bool:
        """Whether an agent is served all that it stored, and nothing else, as genuine."""
        self.verify_detail = self._ask(self._read)
        return self.verify_detail is None

    async def _read(self, memory: Installation) -> str | None:
        try:
            page = await nodes.list_nodes(memory, caller(OURS), None, None, 100)
            if page.dropped:
                return f"the list dropped {page.dropped}"
            for node in self._known:
                await nodes.get(memory, caller(OURS), node)
        except (Tampered, RollbackDetected, NotFound) as error:
            return f"{error.code}: {error.message}"
        return None


async def look_elsewhere(settings: Settings, data: Path, root: TrustRoot) -> tuple[list[Finding], list[str]]:
    async with open_installation(settings, data) as installation:
        return await examine(installation, root, [])


class Audited(AtRest):
    """The same edits, and what the verifier says."""

    name = "memory-layer audit verify"
    detection_point: ClassVar[str] = "audit"

    def verify(self) -> bool:
        found = verify(self._database("postgres"), self._data).findings
        settings = config.load({}, database_url=self._database("memory_app"), embeddings_provider="none")
        root = read_trust_root(self._data)
        kept, _ = self._runner.run(look_elsewhere(settings, self._data, root))
        self.verify_detail = "; ".join(finding.code for finding in (*found, *kept)) or None
        return self.verify_detail is None


@pytest.fixture
def copies(cluster: Any) -> Iterator[Callable[[str], str]]:
    """Copies a database, whole; the name of the copy."""
    with contextlib.ExitStack() as stack:

        def copy(dsn: str) -> str:
            of = str(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"])
            return stack.enter_context(copied(cluster.dsn("postgres", "postgres"), of))

        yield copy


@pytest.mark.parametrize(("kind", "verdict"), [(AtRest, "REJECTED"), (Audited, "REPORTED")])
def test_no_edit_at_rest_is_accepted(
    cluster: Any, copies: Callable[[str], str], tmp_path: Path, kind: type[AtRest], verdict: str
) -> None:
    def fresh() -> Callable[[str], str]:
        name = copies(cluster.dsn("postgres", "memory"))
        return lambda role: str(cluster.dsn(role, name))

    adapter = kind(fresh, copies, tmp_path)
    found = check.run(adapter)
    print(found)
    assert [(row["edit"], row["verdict"]) for row in found] == [(edit, verdict) for edit in check.LABELS.values()], (
        found
    )
