"""Every named query prepares as the runtime role, and the hot ones find their rows by index."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import resources
from typing import Any

import psycopg
import pytest

from memory_layer.ops import embedded, migrate
from memory_layer.sql import queries
from tests.support.databases import new_database

FILES = sorted(
    file.name.removesuffix(".sql")
    for file in (resources.files("memory_layer.sql") / "queries").iterdir()
    if file.name.endswith(".sql")
)
UNPREPARED = {"begin", "commit", "rollback", "copy_events", "copy_seals"}  # which cannot be prepared
NAMED = [(file, name) for file in FILES for name in queries(file) if name not in UNPREPARED]
NODES = 5_000
_PARAMETER = re.compile(r"%\((\w+)\)[sb]")


def numbered(text: str) -> tuple[str, list[str]]:
    """psycopg's named parameters as $n, and their names in that order."""
    names: list[str] = []

    def number(match: re.Match[str]) -> str:
        if match[1] not in names:
            names.append(match[1])
        return f"${names.index(match[1]) + 1}"

    return _PARAMETER.sub(number, text).replace("%%", "%"), names


@pytest.fixture(scope="module")
def filled(cluster: embedded.Cluster) -> Iterator[Callable[[str], str]]:
    """A database with some thousands of nodes of two tenants, their settled vectors, a few due ones, and their entries."""
    with new_database(cluster) as made:
        fill(made("postgres"))
        yield made


def fill(dsn: str) -> None:
    """``dsn``: the superuser's."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            """INSERT INTO audit_logs (log, origin, incarnation, key_id) VALUES (0, 'test/audit/dev/s0/e1', 1, repeat('a', 64))"""
        )
        connection.execute(
            """INSERT INTO memory_nodes (tenant, id, owner, namespace, embedding_id, content, thread, position, created_at, updated_at)
               SELECT CASE n %% 2 WHEN 0 THEN 'ann' ELSE 'bob' END, ('00000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid,
                      'o' || n %% 50, 'kernel-memory', 'e' || n, repeat('words of text ', 20),
                      CASE WHEN n %% 3 > 0 THEN 't' || n / 500 END, CASE WHEN n %% 3 = 1 THEN n END,
                      now() - n * interval '1 minute', now()
               FROM generate_series(1, %(nodes)s) n""",
            {"nodes": NODES},
        )
        connection.execute(
            """INSERT INTO memory_vectors (tenant, id, memory_node_id, namespace, provider, embedding_model, dimension, status,
                                           version, metadata, next_attempt_at, lease_id, lease_until, created_at, updated_at)
               SELECT tenant, gen_random_uuid(), id, namespace, 'pgvector', 'm', 4,
                      CASE WHEN n < 30 THEN 'pending' WHEN n < 60 THEN 'in_flight' ELSE 'succeeded' END, 1,
                      '{"source": "embedder", "since": 1}', now(), CASE WHEN n BETWEEN 30 AND 59 THEN gen_random_uuid() END,
                      CASE WHEN n BETWEEN 30 AND 59 THEN now() - interval '1 hour' END, now(), now()
               FROM (SELECT *, row_number() OVER (ORDER BY id) n FROM memory_nodes) x"""
        )
        connection.execute(
            """INSERT INTO audit_events (log, seq, id, batch_no, tenant, memory_node_id, event_type, created_at, entry, hash,
                                         prev_hash, signature)
               SELECT 0, n, gen_random_uuid(), n / 64, tenant, id, 'memory.node.created', now(), 'entry', repeat('a', 64),
                      repeat('a', 64), 'signature'
               FROM (SELECT *, row_number() OVER (ORDER BY id) - 1 n FROM memory_nodes) x"""
        )
        connection.execute(
            """INSERT INTO artifacts (tenant, id, memory_node_id, url, object_key, version_id, sha256, size_bytes, content_type,
                                      created_by, created_at)
               SELECT tenant, gen_random_uuid(), id, 'u', 'k', 'v', repeat('a', 64), 1, 't', gen_random_uuid(), now()
               FROM memory_nodes"""
        )
        connection.execute(
            """INSERT INTO idempotency_keys (tenant, actor, key, request_hash, status, answer, created_at)
               SELECT tenant, '00000000-0000-7000-8000-000000000001', embedding_id, decode(repeat('00', 32), 'hex'), 200, '{}',
                      now() FROM memory_nodes"""
        )
        connection.execute(
            """INSERT INTO memory_terms (tenant, node_id, namespace, version, terms)
               SELECT tenant, id, namespace, 1, to_tsvector('english', 'word' || right(id::text, 6)) FROM memory_nodes"""
        )
        connection.execute(
            """INSERT INTO memory_terms (tenant, node_id, namespace, version, terms)
               SELECT 'tenant' || n % 50, gen_random_uuid(), 'kernel-memory', 1, to_tsvector('english', 'word' || n)
               FROM generate_series(1, 20000) n"""
        )
        connection.execute(
            """INSERT INTO audit_seals (log, batch_no, first_seq, last_seq, head, seal_text, signature, key_id, algorithm,
                                        system_identifier, timeline, created_at)
               SELECT 0, n, n, n, repeat('a', 64), repeat('text ', 60), 's', repeat('a', 64), 'ed25519', '1', 1, now()
               FROM generate_series(0, 2000) n"""
        )
        connection.execute("VACUUM ANALYZE")  # as autovacuum leaves the tables: an index alone answers a count


def whole(named: dict[str, str], name: str) -> str:
    """A query as it is sent: conditions inside one, and with what the adapter of pgvector fills in."""
    condition = named.get("in_entries", "")
    text = f"SELECT FROM vector_entries WHERE {named[name]}" if name in ("in_entries", "in_own") else named[name]
    for place, value in (
        ("relation", "vector_entries"),
        ("where", condition),
        ("dimension", "2"),
        ("depth", "10"),
        ("table", "audit_events"),
        ("candidates", "unnest(%(ids)b::uuid[]) c(node_id)"),
        ("more", ""),
    ):
        text = text.replace(f"{{{place}}}", value)
    return text


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[f"{file}.{name}" for file, name in NAMED])
def test_it_prepares_as_the_runtime_role(filled: Callable[[str], str], file: str, name: str) -> None:
    text, _ = numbered(whole(queries(file), name))
    with psycopg.connect(filled("memory_app"), autocommit=True) as connection:
        connection.execute(f"PREPARE q AS {text}")


def plan_of(dsn: str, file: str, name: str, params: dict[str, Any]) -> str:
    """The indexes that the plan uses and the tables that it scans whole, as one text; nothing is written."""
    with psycopg.connect(dsn) as connection:
        connection.execute("SELECT set_config('memory.tenants', '{ann}', true), set_config('memory.all_tenants', %s, true)",
                           ["on" if file in ("indexing", "operations") else "off"])  # fmt: skip
        (row,) = connection.execute(f"EXPLAIN (FORMAT JSON) {whole(queries(file), name)}", params).fetchall()
        connection.rollback()
    found: list[str] = []

    def walk(node: dict[str, Any]) -> None:
        if node["Node Type"] == "Seq Scan":
            found.append(f"seq {node['Relation Name']}")
        if "Index Name" in node:
            found.append(node["Index Name"])
        for child in node.get("Plans", ()):
            walk(child)

    walk(row[0][0]["Plan"])
    return json.dumps(found)


def ids(*numbers: int) -> list[uuid.UUID]:
    return [uuid.UUID(f"00000000-0000-7000-8000-{n:012d}") for n in numbers]


BATCH = ids(*range(2, 130, 2))
CLAIM = {
    "limit": 64,
    "lease": uuid.uuid4(),
    "seconds": 120,
    "lanes": [False, True],
    "vectors": True,
    "embedder": True,
    "down_models": [],
    "down_dimensions": [],
}
ROWS = {
    "tenant": "ann",
    "ids": BATCH[:10],
    "namespace": "kernel-memory",
    "short": 8192,
    "strict": True,
    "log": 0,
    "reach": 3,
}
NEAR = {
    "tenant": "ann",
    "namespace": "kernel-memory",
    "ids": BATCH[:2],
    "threads": ["t1", "t2"],
    "positions": [700, 2**63 - 1],
    "times": [datetime(2026, 1, 1, tzinfo=UTC)] * 2,
    "reach": 3,
}
ORIGIN = "test/audit/dev/s0/e1"
HOT: list[tuple[str, str, dict[str, Any], str]] = [
    ("commit", "find_nodes", {"tenants": ["ann"] * 64, "ids": BATCH}, "memory_nodes_pkey"),
    (
        "commit",
        "find_embedding_ids",
        {"tenants": ["ann"] * 64, "keys": [f"e{n}" for n in range(64)]},
        "memory_nodes_by_embedding_id",
    ),
    ("commit", "find_vectors", {"tenants": ["ann"] * 64, "ids": BATCH}, "memory_vectors_node_namespace"),
    (
        "commit",
        "find_idempotency",
        {"tenants": ["ann"] * 64, "actors": ids(1) * 64, "keys": [f"e{n}" for n in range(64)]},
        "idempotency_keys_pkey",
    ),
    ("commit", "head", {"origin": "test/audit/dev/s0/e1"}, "audit_seals_pkey"),
    ("indexing", "claim", CLAIM, "memory_vectors_due"),
    ("indexing", "claim", CLAIM, "memory_vectors_turns"),
    ("indexing", "claim", CLAIM, "memory_vectors_leased"),
    ("indexing", "claim", CLAIM | {"embedder": False}, "memory_vectors_due"),
    ("indexing", "claim", CLAIM | {"down_models": ["m"], "down_dimensions": [2]}, "memory_vectors_due"),
    ("indexing", "claim", CLAIM | {"vectors": False}, "memory_vectors_due"),
    (
        "indexing",
        "claim_keywords",
        CLAIM | {"after_time": datetime(2026, 1, 1, tzinfo=UTC), "after_id": uuid.uuid4()},
        "memory_vectors_due",
    ),
    ("indexing", "queue", {}, "memory_vectors_turns"),
    ("indexing", "queue", {}, "memory_vectors_given_up"),
    ("indexing", "get_job", {"tenant": "ann", "id": BATCH[0]}, "memory_vectors_pkey"),
    ("indexing", "job_statuses", {"tenants": ["ann"] * 64, "ids": BATCH}, "memory_vectors_pkey"),
    ("indexing", "claimed_nodes", {"tenants": ["ann"] * 64, "ids": BATCH}, "memory_nodes_pkey"),
    ("indexing", "backlog", {}, "memory_vectors_turns"),
    ("indexing", "backlog", {}, "memory_vectors_leased"),
    ("nodes", "get_nodes", {"tenant": "ann", "ids": BATCH[:10], "whole": True}, "memory_nodes_pkey"),
    ("candidates", "namespace", {"tenant": "ann", "name": "kernel-memory"}, "memory_vectors_turns"),
    ("candidates", "rows", ROWS, "memory_nodes_pkey"),
    ("candidates", "rows", ROWS, "memory_vectors_node_namespace"),
    ("candidates", "rows", ROWS, "artifacts_node"),
    ("candidates", "neighbours", NEAR, "memory_nodes_by_thread"),
    ("nodes", "node_artifacts", {"tenant": "ann", "ids": BATCH[:10], "log": 0, "strict": True}, "artifacts_node"),
    (
        "nodes",
        "node_artifacts",
        {"tenant": "ann", "ids": BATCH[:10], "log": 0, "strict": True},
        "audit_events_artifact",
    ),
    ("candidates", "rows", ROWS, "audit_events_node"),
    ("evidence", "node_evidence", {"tenant": "ann", "ids": BATCH[:10], "origin": ORIGIN}, "audit_events_node"),
    ("evidence", "last_node_entries", {"tenants": ["ann"] * 64, "ids": BATCH, "origin": ORIGIN}, "audit_events_node"),
    (
        "evidence",
        "last_artifact_entries",
        {"tenants": ["ann"] * 64, "ids": BATCH, "origin": ORIGIN},
        "audit_events_artifact",
    ),
    ("evidence", "batches", {"origin": ORIGIN, "batches": [1, 2, 3]}, "audit_events_pkey"),
    ("nodes", "latest_events", {"tenant": "ann", "ids": BATCH[:10], "log": 0}, "audit_events_node"),
    (
        "nodes",
        "node_bodies",
        {"tenant": "ann", "ids": BATCH, "versions": [1] * 64, "bytes": 2**20},
        "memory_nodes_pkey",
    ),
    ("nodes", "artifact_ids", {"tenant": "ann", "node": BATCH[0], "limit": 100}, "artifacts_node"),
    ("nodes", "flags_of_artifacts", {"tenant": "ann", "ids": BATCH[:2], "nodes": [], "seen": False}, "artifacts_pkey"),
    ("nodes", "flags_of_artifacts", {"tenant": "ann", "ids": [], "nodes": BATCH[:2], "seen": False}, "artifacts_node"),
    ("nodes", "history", {"tenant": "ann", "id": BATCH[0], "log": 0, "after": -1, "limit": 50}, "audit_events_node"),
    (
        "nodes",
        "list_nodes",
        {"tenant": "ann", "after": None, "limit": 51, "bytes": 2**22},
        "memory_nodes_pkey",
    ),
    (
        "nodes",
        "list_nodes_by_embedding_id",
        {
            "tenant": "ann",
            "after": None,
            "limit": 51,
            "bytes": 2**22,
            "embedding_ids": ["e2", "e4"],
        },
        "memory_nodes_by_embedding_id",
    ),
    ("audit", "log_numbers", {"limit": 100}, "audit_events_pkey"),
    ("log", "leaf_hashes", {"log": 0, "first": 5, "last": 25}, "audit_events_pkey"),
    ("log", "checkpoint_of", {"id": BATCH[0], "log": 0, "all": False, "tenant": "ann"}, "audit_events_id_key"),
    ("log", "tiles", {"log": 0, "level": [0, 1], "tile": [3, 0], "width": [7, 3]}, "audit_events_pkey"),
    ("log", "seq_range", {"log": 0, "since": datetime.now(UTC), "until": datetime.now(UTC)}, "audit_events_pkey"),
    (
        "log",
        "events_of_tenant",
        {"tenant": "someone else", "log": 0, "first": 0, "last": 2**40, "type": None, "limit": 51},
        "audit_events_tenant",
    ),
    (
        "log",
        "events_of_subject",
        {
            "all": False,
            "tenant": "ann",
            "log": 0,
            "first": 0,
            "last": 2**40,
            "type": None,
            "limit": 51,
            "node": BATCH[0],
            "artifact": None,
        },
        "audit_events_node",
    ),
    ("log", "event", {"id": BATCH[0], "log": 0, "all": True, "tenant": "ann"}, "audit_events_id_key"),
    (
        "operations",
        "expired",
        {"after_time": datetime.now(UTC), "after_tenant": "", "after_id": uuid.UUID(int=0), "limit": 100},
        "memory_nodes_expiring",
    ),
    (
        "search",
        "keyword",
        {
            "tenant": "ann",
            "namespace": "kernel-memory",
            "numbers": [0, 1],
            "languages": ["", ""],
            "words": ["'word000042'", "'word000044'"],
            "all": True,
            "most": 5_000,
            "limit": 50,
        },
        "memory_terms_terms",
    ),
    (
        "search",
        "keyword",
        {
            "tenant": "ann",
            "namespace": "kernel-memory",
            "numbers": [0, 1],
            "languages": ["", ""],
            "words": ["'word000042'", "'word000044'"],
            "all": False,
            "most": 5_000,
            "limit": 50,
        },
        "memory_nodes_pkey",
    ),
]


@pytest.mark.parametrize(("file", "name", "params", "index"), HOT, ids=[f"{f}.{n}-{i}" for f, n, _, i in HOT])
def test_hot_queries_use_their_index(
    filled: Callable[[str], str], file: str, name: str, params: dict[str, Any], index: str
) -> None:
    plan = plan_of(filled("memory_app"), file, name, params)
    assert f'"{index}"' in plan, plan
    assert "seq memory_" not in plan, plan
    assert "seq audit_events" not in plan, plan


@pytest.mark.parametrize(
    ("file", "name", "params"),
    [
        ("candidates", "rows", ROWS),
        ("nodes", "get_nodes", {"tenant": "ann", "ids": BATCH[:10], "whole": True}),
        ("commit", "find_nodes", {"tenants": ["ann"] * 64, "ids": BATCH}),
        ("indexing", "claimed_nodes", {"tenants": ["ann"] * 64, "ids": BATCH}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_plan_made_on_empty_tables_looks_nodes_up_by_key(
    cluster: embedded.Cluster, file: str, name: str, params: dict[str, Any]
) -> None:
    """Connections keep their plans, and statistics come late: after a bulk load every search would read a whole tenant."""
    plan = plan_of(cluster.dsn("memory_app"), file, name, params)
    assert '"memory_nodes_pkey"' in plan, plan
    assert "memory_nodes_by_embedding_id" not in plan, plan
    assert "memory_nodes_by_thread" not in plan, plan


def test_pgvector_searches_within_its_namespace_by_key(filled: Callable[[str], str]) -> None:
    migrate.apply_pgvector(filled("memory_owner"))
    with psycopg.connect(filled("memory_app")) as connection:
        connection.execute(
            """INSERT INTO vector_entries (tenant, namespace, node_id, version, embedding, fields)
               SELECT 'ann', 'space' || n % 20, gen_random_uuid(), 1, '[1,2,3,4]', '{}' FROM generate_series(1, 4000) n"""
        )
        connection.commit()
        rows = connection.execute(
            "EXPLAIN SELECT node_id FROM vector_entries WHERE tenant = 'ann' AND namespace = 'space1' AND removed_at IS NULL"
            " ORDER BY embedding <=> '[1,0,0,0]', node_id LIMIT 10"
        ).fetchall()
    plan = "\n".join(row[0] for row in rows)
    assert "vector_entries_pkey" in plan, plan
