"""How fast the log goes into its archive, and comes back: segments into a directory, the verdict on them, and a second database."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import psycopg

from bench import running
from bench.report import Table
from memory_layer.audit import trust_root
from memory_layer.audit.archive import verify_archive
from memory_layer.ops import embedded, migrate
from memory_layer.ops.archive import job, read, write
from memory_layer.ops.archive.data_keys import open_wrapping_key, read_keys
from memory_layer.ops.archive.replay import Replayed, replay
from memory_layer.service.checkpoints import publish_once
from memory_layer.service.installation import Installation
from tests.support.service import create, running_memory

ENTRIES, TOGETHER, PEOPLE = 100_000, 500, 1_000


def measure() -> Table:
    with running.folder() as folder, embedded.start(folder) as cluster:
        embedded.prepare_database(cluster)
        migrate.apply(cluster.dsn(embedded.OWNER_ROLE))
        migrate.apply_pgvector(cluster.dsn(embedded.OWNER_ROLE))
        with psycopg.connect(cluster.dsn("postgres", "postgres"), autocommit=True) as server:
            server.execute(f"CREATE DATABASE staging TEMPLATE {embedded.DATABASE} OWNER {embedded.OWNER_ROLE}")
            server.execute(f"GRANT CONNECT ON DATABASE staging TO {embedded.APP_ROLE}")
        rows = asyncio.run(_measure(cluster, folder / "installation"))
    about = (
        f"{ENTRIES:,} entries in batches of up to {TOGETHER}, each with a payload about one of {PEOPLE:,} people; Postgres and archive on "
        "one disk, synced"
    )
    return Table("archive", rows, about)


async def _measure(cluster: embedded.Cluster, data: Path) -> list[tuple[str, str]]:
    dsn = cluster.dsn(embedded.APP_ROLE)
    async with running_memory(dsn, data) as memory:
        await _fill(memory)
        await publish_once(memory)
        keys = job.open_archive_keys(memory)
        began = time.monotonic()
        written = await write.archive(memory, keys, rest=True)
        archived = time.monotonic() - began
        assert sum(w.last - w.first + 1 for w in written) >= ENTRIES
        root = trust_root.load((data / "trust-root.json").read_bytes())
        found = await read.find_segments(memory.archive, root.origin)
        began = time.monotonic()
        verdict = await read.in_thread(
            memory.archive, found, lambda segments: verify_archive(segments(), root, pinned=True)
        )
        verified = time.monotonic() - began
        assert not verdict.findings, verdict.findings[0]
        opened = await read_keys(dsn, open_wrapping_key(memory.settings, data, make=False), root.origin)

        def back(segments: Any) -> Replayed:
            return replay(
                segments, root, cluster.dsn(embedded.APP_ROLE, "staging"), pinned=True, source=dsn, opened=opened
            )

        began = time.monotonic()
        done = await read.in_thread(memory.archive, found, back)
        replayed = time.monotonic() - began
        assert not done.verdict.findings, done.verdict.findings[0]
        assert done.entries == done.payloads == verdict.counts.entries
    size = sum(w.bytes for w in written)
    return [
        (f"{ENTRIES:,} entries into the archive, {len(written)} segments, read back by version", f"{archived:.1f} s"),
        ("the archive's size", f"{size / 1e6:.1f} MB, {size / ENTRIES:,.0f} bytes an entry with its payload"),
        ("verify it from the store", f"{verified:.1f} s, {verdict.counts.entries / verified:,.0f} entries/s"),
        ("replay it with its payloads into another database, verified twice over", f"{replayed:.1f} s"),
    ]


async def _fill(memory: Installation) -> None:
    for first in range(0, ENTRIES, TOGETHER):
        numbers = range(first, first + TOGETHER)
        await asyncio.gather(
            *(create(memory, "ann", content=f"what was said in turn {n}", subjects=[f"p{n % PEOPLE}"]) for n in numbers)
        )
