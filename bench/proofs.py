"""How long a proof takes in a log of a million entries, and how fast the tree catches up with one.

The log is written into the database directly, with true entries and hashes and made-up seals, for no figure here reads a seal.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import random
import resource
import time
import uuid
from pathlib import Path

import httpx2
import psycopg

from bench.report import Table, spread
from bench.running import folder
from memory_layer import config
from memory_layer.audit import trust_root
from memory_layer.audit.entry import encode_entry, format_ts, genesis_prev, leaf_hash
from memory_layer.audit.proof import parse_proof, verify_proof
from memory_layer.model import SCOPES, Caller
from memory_layer.ops import embedded, migrate
from memory_layer.ops.first_start import ensure_keys, start_log
from memory_layer.service import audit
from memory_layer.service.checkpoints import publish_once
from memory_layer.service.installation import Installation
from memory_layer.service.running import open_service
from tests.support.product import start_product

ENTRIES, MORE = 1_000_000, 3_000
SAMPLES = 1_000
TENANT = "default"


def measure() -> Table:
    with folder() as data:
        with embedded.start(data) as cluster:
            embedded.prepare_database(cluster)
            migrate.apply(cluster.dsn("memory_owner"))
            migrate.apply_pgvector(cluster.dsn("memory_owner"))
            ensure_keys(data)
            rows = asyncio.run(_inside(cluster, data))
        rows.append((f"the same over HTTP, one client after another, {SAMPLES:,} entries", _over_http(data)))
    return Table("proofs", rows, f"{ENTRIES:,} entries of {TENANT}, fsync on; entries are chosen at random")


async def _inside(cluster: embedded.Cluster, data: Path) -> list[tuple[str, str]]:
    dsn = cluster.dsn("memory_app")
    settings = config.load({}, database_url=dsn, embeddings_provider="none")
    installation = await start_log(settings, data, dsn, cluster.dsn("memory_owner"))
    head = _write(cluster.dsn("memory_owner"), installation.origin, 0, ENTRIES, genesis_prev(installation.origin))
    async with open_service(settings, data) as memory:
        before = _peak()
        began, worked = time.perf_counter(), time.process_time()
        assert await publish_once(memory) == 1
        seconds, cpu = time.perf_counter() - began, time.process_time() - worked
        grown = _peak() - before
        known = trust_root.load((data / "trust-root.json").read_bytes())
        proving = await _samples(memory, known)
        head = _write(cluster.dsn("memory_owner"), installation.origin, ENTRIES, MORE, head)
        began = time.perf_counter()
        assert await publish_once(memory) == 1
        step = time.perf_counter() - began
        idle = []
        for _ in range(SAMPLES):
            began = time.perf_counter()
            await publish_once(memory)
            idle.append(time.perf_counter() - began)
    return [
        (
            f"the tree of {ENTRIES:,} entries and its checkpoint, from nothing",
            f"{ENTRIES / seconds:,.0f} entries/s ({ENTRIES / cpu:,.0f} per second of this process; {grown:.0f} MB more memory)",
        ),
        (f"{MORE:,} entries more, their checkpoint signed and committed", f"{step * 1000:.0f} ms"),
        ("a look that finds nothing new", spread(idle)),
        (f"proof of one entry, the use case alone, {SAMPLES:,} entries", proving),
    ]


async def _samples(memory: Installation, known: trust_root.TrustRoot) -> str:
    who = Caller(TENANT, uuid.UUID(int=7), "bench", "jwt", frozenset(SCOPES), "bench")
    seconds = []
    for place, seq in enumerate(_chosen()):
        began = time.perf_counter()
        _, proof = await audit.proof(memory, who, _id(seq))
        seconds.append(time.perf_counter() - began)
        if place % 20 == 0:
            assert verify_proof(parse_proof(proof), known) is None
    return spread(seconds)


def _over_http(data: Path) -> str:
    product = start_product(data)
    try:
        known = trust_root.load((data / "trust-root.json").read_bytes())
        seconds = []
        headers = {"Authorization": f"Bearer {product.issue('bench', TENANT)}"}
        with httpx2.Client(base_url=product.url, headers=headers) as http:
            for place, seq in enumerate(_chosen()):
                began = time.perf_counter()
                answer = http.get(f"/v1/audit/events/{_id(seq)}/proof")
                seconds.append(time.perf_counter() - began)
                assert answer.status_code == 200, answer.text
                if place % 20 == 0:
                    assert verify_proof(parse_proof(answer.content), known) is None
        return spread(seconds)
    finally:
        product.stop()


def _chosen() -> list[int]:
    return random.Random(7).sample(range(ENTRIES), SAMPLES)


def _write(dsn: str, origin: str, first: int, count: int, prev: str) -> str:
    """Append entries and one seal row for them all; the last hash."""
    now = dt.datetime.now(dt.UTC)
    ts = format_ts(now)
    with psycopg.connect(dsn) as connection:
        columns = (
            "log, seq, id, batch_no, tenant, memory_node_id, event_type, created_at, entry, hash, prev_hash, signature"
        )
        with connection.cursor().copy(f"COPY audit_events ({columns}) FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(
                ["int4", "int8", "uuid", "int8", "text", "uuid", "text", "timestamptz", "bytea", *["text"] * 3]
            )
            for seq in range(first, first + count):
                node = uuid.UUID(int=seq)
                entry = encode_entry(
                    log=origin, seq=seq, id=_id(seq), ts=ts, type="memory.node.created", tenant=TENANT, actor=uuid.UUID(int=1),
                    auth="jwt", node=node, version=1, state="0" * 64, request_id=f"req-{seq}", payload="1" * 64, prev=prev,
                )  # fmt: skip
                digest = leaf_hash(entry)
                copy.write_row(
                    (0, seq, _id(seq), first, TENANT, node, "memory.node.created", now, entry, digest, prev, "made up")
                )
                prev = digest
        connection.execute(
            "INSERT INTO audit_seals VALUES (0, %s, %s, %s, %s, 'made up', 'made up', 'made up', 'made up', '0', 1, %s)",
            [0 if first == 0 else 1, first, first + count - 1, prev, now],
        )
        connection.commit()
        connection.execute("ANALYZE audit_events")
    return prev


def _id(seq: int) -> uuid.UUID:
    return uuid.UUID(int=1 << 124 | 7 << 76 | 2 << 62 | seq)


def _peak() -> float:
    """The most memory that this process ever had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
