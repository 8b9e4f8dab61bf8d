"""Bring an index back: from a snapshot, into whatever store the settings name, or from Postgres alone."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from memory_layer.errors import MemoryLayerError, NotFound
from memory_layer.model import Node
from memory_layer.ops.vectors import replay
from memory_layer.ops.vectors.manifest import Manifest, SpaceRecord, check_files, read_shard
from memory_layer.ops.vectors.reconcile import Comparison, pieces, reconcile, same
from memory_layer.ops.vectors.replay import Replayed
from memory_layer.ops.vectors.spaces import (
    SQL,
    Portion,
    Scope,
    Space,
    indexed_rows,
    list_spaces,
    send_again,
)
from memory_layer.progress import Progress, no_progress
from memory_layer.service.index_entries import entry
from memory_layer.service.installation import Installation
from memory_layer.stores.postgres import ALL_TENANTS
from memory_layer.stores.protocols import VectorEntry

TRIES: Final = 5  # of one batch, with pauses of 1, 2, 4 and 8 seconds


@dataclass(slots=True)
class Restored:
    """``counts``: rows that were ``written``, were left out because the node has ``changed`` or was deleted since, or because the
    snapshot's vector is ``wrong``. Then what the comparison afterwards found, and found when it had been repaired."""

    counts: Counter[str] = field(default_factory=Counter)
    before: list[Comparison] = field(default_factory=list)
    after: list[Comparison] = field(default_factory=list)
    sent: Replayed = field(default_factory=Replayed)


async def check(folder: Path, manifest: Manifest, progress: Progress = no_progress) -> None:
    """Read every file of a snapshot. Raises ChecksumMismatch with the name of the first that is not as it was written."""
    done = 0
    files = check_files(folder, manifest)
    while (rows := await asyncio.to_thread(next, files, None)) is not None:
        done += rows
        progress("checking the snapshot", done, manifest.rows)


def refuse_elsewhere(manifest: Manifest, scope: Scope) -> None:
    """Raise NotFound where a tenant or namespace is named of which the snapshot has nothing."""
    if scope != Scope() and not any(_within(record, scope) for record in manifest.spaces):
        raise NotFound(f"The snapshot holds no index namespace {scope.label}. --plan shows what is in it.")


def _within(record: SpaceRecord, scope: Scope) -> bool:
    return scope.tenant in (None, record.tenant) and scope.namespace in (None, record.namespace)


async def restore(
    installation: Installation,
    folder: Path,
    manifest: Manifest,
    scope: Scope,
    *,
    within: float = 600.0,
    progress: Progress = no_progress,
) -> Restored:
    """Write a checked snapshot's vectors into the index, then compare and repair the rest through the outbox.

    A row is written only if Postgres has it at that version with that vector; what stands beside it there comes from Postgres. So
    it may run over an index that is in use, be cut off, and run again.
    """
    done, total = Restored(), manifest.rows
    for record in manifest.spaces:
        if not _within(record, scope):
            continue
        for shard in record.shards:
            rows, vectors = await asyncio.to_thread(read_shard, folder, shard)
            for places in pieces(range(len(rows)), installation.vectors.capabilities.batch):
                await _write(installation, record, [rows[place] for place in places], vectors[places], done.counts)
                progress(f"restoring {record.tenant}/{record.namespace}", done.counts.total(), total)
        facts = {"tenant": record.tenant, "namespace": record.namespace, "provider": installation.vectors.provider}
        await installation.postgres.run(ALL_TENANTS, (SQL["set_namespace_provider"], facts))
        await installation.vectors.optimise(record.tenant, record.namespace)
    done.before, done.after, done.sent = await reconcile(
        installation, await list_spaces(installation, scope), repair=True, within=within, progress=progress
    )
    return done


async def _write(
    installation: Installation,
    record: SpaceRecord,
    rows: Sequence[tuple[str, int]],
    vectors: NDArray[np.float32],
    counts: Counter[str],
) -> None:
    ids = [uuid.UUID(node) for node, _ in rows]
    where: dict[str, Any] = {"tenant": record.tenant, "namespace": record.namespace}
    (found,) = await installation.postgres.fetch(
        ALL_TENANTS, (SQL["nodes_to_restore"], {**where, "nodes": ids, "versions": [version for _, version in rows]})
    )
    vector_of = dict(zip(ids, vectors, strict=True))
    entries, moved = [], []
    for row in found:
        node, version = row.pop("node_id"), row.pop("row_version")
        stored, provider = row.pop("stored"), row.pop("provider")
        if not same(stored, vector_of[node]):
            counts["wrong"] += 1
            continue
        entries.append(entry(record.tenant, record.namespace, Node(**row), version, vector_of[node]))
        if provider != installation.vectors.provider:
            moved.append(node)
    counts["changed"] += len(rows) - len(found)
    if entries:
        await _upsert_with_retries(installation, entries)
        counts["written"] += len(entries)
    if moved:
        facts = {**where, "nodes": moved, "provider": installation.vectors.provider}
        await installation.postgres.run(ALL_TENANTS, (SQL["set_provider"], facts))


async def _upsert_with_retries(installation: Installation, entries: Sequence[VectorEntry]) -> None:
    """A store that fails for some seconds does not end a restore of hours."""
    for attempt in range(TRIES):
        try:
            return await installation.vectors.upsert(entries)
        except MemoryLayerError as error:
            if not error.retryable or attempt == TRIES - 1:
                raise
            await asyncio.sleep(max(2.0**attempt, error.retry_after or 0))
    return None


async def reindex(
    installation: Installation,
    spaces: Sequence[Space],
    *,
    drop: bool,
    within: float,
    progress: Progress = no_progress,
) -> Restored:
    """Send every indexed row again, and replay the others. What the index should not hold is removed by the comparison at the end.

    Without ``drop`` every entry stays searchable while it is written over. With it the index forgets the namespace first, versions
    and marks of removals included, which nothing else can do: search by meaning misses rows until they are back.
    """
    done = Restored()
    portions: list[Portion] = []
    for space in spaces:
        if drop:
            await installation.vectors.drop(space.tenant, space.namespace)
        portions += (await replay.make_due(installation, space.scope, progress)).portions
        async for rows in indexed_rows(installation, space):
            sent = await send_again(installation, space, [(row["node_id"], row["version"]) for row in rows])
            portions.append(sent)
            done.counts["sent"] += len(sent.versions)
            progress(f"sending {space.tenant}/{space.namespace}", done.counts["sent"], space.expected)
        facts = {"tenant": space.tenant, "namespace": space.namespace, "provider": installation.vectors.provider}
        await installation.postgres.run(ALL_TENANTS, (SQL["set_namespace_provider"], facts))
    done.sent = replay.joined(portions)
    await replay.follow(installation, done.sent, within=within, progress=progress)
    for space in spaces:
        await installation.vectors.optimise(space.tenant, space.namespace)
    done.before, done.after, again = await reconcile(
        installation, spaces, repair=True, within=within, progress=progress
    )
    done.sent.portions += again.portions
    done.sent.indexed += again.indexed
    done.sent.left.update(again.left)
    done.sent.examples += again.examples
    return done
