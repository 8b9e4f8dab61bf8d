"""Compare what the index holds with what Postgres says that it must hold, name the differences, and repair them.

Three steps, each only where the one before found something: counts and 256 sums over (id, version) of both sides; the ids of the
buckets that differ; and the single nodes. Nothing is held still meanwhile, so a node is judged by what stands in Postgres before and
after the index was asked: only if that is the same, indexed row both times does the index have to agree with it, and only
what is found twice, a moment apart, is a difference.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from memory_layer.ops.vectors import replay
from memory_layer.ops.vectors.digest import Digest, differing, of_sums
from memory_layer.ops.vectors.replay import Replayed
from memory_layer.ops.vectors.spaces import (
    OUTSTANDING,
    SQL,
    VECTORS,
    Portion,
    Space,
    cosine,
    decode,
    held,
    indexed_rows,
    row_states,
    send_again,
    stale_fields,
)
from memory_layer.progress import Progress, no_progress
from memory_layer.service.installation import Installation
from memory_layer.stores.postgres import ALL_TENANTS
from memory_layer.stores.protocols import VectorRecord

Kind = Literal["missing", "extra", "stale", "ahead", "wrong", "fields"]
"""``missing``: not in the index. ``extra``: in the index alone. ``stale``: an older version there, ``ahead``: a newer one, as after
Postgres was restored to an earlier moment. ``wrong``: another vector at the right version. ``fields``: the right vector, and beside
it not what filters are to be evaluated on."""

KINDS: Final[tuple[Kind, ...]] = ("missing", "extra", "stale", "ahead", "wrong", "fields")
Vectors = Literal["none", "sample", "all"]
SAMPLE: Final = 1000  # vectors of each namespace that are compared by default
NEAR: Final = 1 - 1e-3  # cosine from which two vectors are the same one: an index may keep fewer bits than Postgres
AT_ONCE: Final = 500_000  # ids held in memory, of both sides together
EXAMPLES: Final = 20  # of each kind that are named
MOMENT: Final = 1.0  # seconds between two looks at a node: an index may lag behind itself


class Difference(NamedTuple):
    """``version``: what Postgres says, ``held``: what the index has; None where there is none."""

    kind: Kind
    node: uuid.UUID
    version: int | None
    held: int | None


@dataclass(slots=True)
class Comparison:
    """One namespace. ``rows`` and ``index``: entries that it must hold and that it holds; ``moving``: nodes that were being
    written or wait for the worker, and so were not judged; ``sent``, ``removed``: what was done about the differences."""

    space: Space
    rows: int = 0
    index: int = 0
    row_digest: str = ""
    index_digest: str = ""
    buckets: int = 0  # that differ
    compared: int = 0  # vectors
    moving: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Difference]] = field(default_factory=dict)
    sent: list[Portion] = field(default_factory=list)
    removed: int = 0

    @property
    def state(self) -> Literal["equal", "moving", "differs"]:
        """``moving``: what differs is what the worker has yet to do."""
        if self.counts:
            return "differs"
        return "equal" if self.row_digest == self.index_digest else "moving"

    def to_json(self) -> dict[str, Any]:
        """Figures and names as plain data."""
        return {
            "tenant": self.space.tenant,
            "namespace": self.space.namespace,
            "model": self.space.model,
            "state": self.state,
            "rows": dict(self.space.rows),
            "oldestWaiting": self.space.oldest,
            "expected": self.rows,
            "unreadTexts": self.space.unread,
            "partlyReadTexts": self.space.partly,
            "index": self.index,
            "expectedDigest": self.row_digest,
            "indexDigest": self.index_digest,
            "differingBuckets": self.buckets,
            "vectorsCompared": self.compared,
            "notJudged": self.moving,
            "differences": dict(self.counts),
            "examples": {kind: [_shape(one) for one in found] for kind, found in self.examples.items()},
        }


def _shape(one: Difference) -> dict[str, Any]:
    return {"node": str(one.node), "version": one.version, "held": one.held}


async def compare(
    installation: Installation,
    space: Space,
    *,
    vectors: Vectors = "sample",
    repair: bool = False,
    progress: Progress = no_progress,
) -> Comparison:
    """Compare a namespace; with ``repair`` each difference is repaired as soon as it is certain.

    Memory: ids of at most AT_ONCE entries. Raises VectorStoreUnavailable, DatabaseUnavailable.
    """
    done = Comparison(space)
    facts = {"tenant": space.tenant, "namespace": space.namespace}
    (sums,) = await installation.postgres.fetch(ALL_TENANTS, (SQL["bucket_sums"], facts))
    rows, index = of_sums(sums), Digest()
    async for records in held(installation, space):
        for record in records:
            index.add(record.node_id.bytes, record.version)
        progress("reading the index", index.count, rows.count)
    done.rows, done.index = rows.count, index.count
    done.row_digest, done.index_digest = rows.text(), index.text()
    different = differing(rows, index)
    done.buckets = len(different)
    for group in _groups(different, rows, index):
        await judge_suspects(installation, done, await _apart(installation, space, group, progress), repair, progress)
    async for suspects in _stale_fields(installation, space, vectors, done, progress):
        await judge_suspects(installation, done, suspects, repair, progress)
    return done


def _groups(buckets: Sequence[int], rows: Digest, index: Digest) -> Iterator[list[int]]:
    """Buckets in portions whose ids fit into memory."""
    group: list[int] = []
    size = 0
    for bucket in buckets:
        entries = rows.entries[bucket] + index.entries[bucket]
        if group and size + entries > AT_ONCE:
            yield group
            group, size = [], 0
        group.append(bucket)
        size += entries
    if group:
        yield group


async def _apart(installation: Installation, space: Space, buckets: Sequence[int], progress: Progress) -> list[bytes]:
    """The ids in these buckets that the two sides do not have at one version."""
    wanted, here = frozenset(buckets), {}
    async for rows in indexed_rows(installation, space, buckets=buckets):
        here.update({row["node_id"].bytes: row["version"] for row in rows})
    apart: list[bytes] = []
    looked = 0
    async for records in held(installation, space):
        for record in records:
            node = record.node_id.bytes
            if node[15] in wanted and here.pop(node, None) != record.version:
                apart.append(node)
        looked += len(records)
        progress("looking for what differs", looked, 0)
    return list(dict.fromkeys((*apart, *here)))


async def _stale_fields(
    installation: Installation, space: Space, which: Vectors, done: Comparison, progress: Progress
) -> AsyncIterator[list[bytes]]:
    """Ids whose vectors are not the canonical ones, among all or among some."""
    if which == "none":
        return
    if which == "sample":
        facts = {"tenant": space.tenant, "namespace": space.namespace, "limit": SAMPLE}
        (chosen,) = await installation.postgres.fetch(ALL_TENANTS, (SQL["some_indexed_rows"], facts))
        for ids in pieces([row["node_id"] for row in chosen], VECTORS):
            states = await row_states(installation, space, ids, vectors=True)
            yield await _off(installation, space, {node: row for node, row in states.items() if row["stored"]}, done)
        return
    async for rows in indexed_rows(installation, space, vectors=True):
        yield await _off(installation, space, {row["node_id"]: row for row in rows}, done)
        progress("comparing vectors", done.compared, done.rows)


async def _off(
    installation: Installation, space: Space, rows: Mapping[uuid.UUID, Mapping[str, Any]], done: Comparison
) -> list[bytes]:
    """Those with another vector, or other fields, at the same version: other versions were found by their ids."""
    records = await installation.vectors.fetch(space.tenant, space.namespace, list(rows))
    done.compared += len(records)
    found: dict[bytes, None] = {}
    for one in records:
        row = rows[one.node_id]
        if one.version == row["version"] and (one.vector is None or not same(row["stored"], one.vector)):
            found[one.node_id.bytes] = None
    for node in await stale_fields(installation, space, list(rows)):
        found[node.bytes] = None
    return list(found)


def same(stored: str, vector: np.typing.NDArray[np.float32]) -> bool:
    """Whether an index's vector is the canonical one (``stored``: base64)."""
    return cosine(decode(stored), vector) >= NEAR


async def judge_suspects(
    installation: Installation, done: Comparison, suspects: Sequence[bytes], repair: bool, progress: Progress
) -> None:
    """Judge the suspects, count and name what is certain, and repair it."""
    async for found in certain(installation, done, suspects, progress):
        for one in found:
            done.counts[one.kind] += 1
            named = done.examples.setdefault(one.kind, [])
            if len(named) < EXAMPLES:
                named.append(one)
        if repair:
            await repair_differences(installation, done, found)


async def certain(
    installation: Installation, done: Comparison, suspects: Sequence[bytes], progress: Progress = no_progress
) -> AsyncIterator[list[Difference]]:
    """What differs at two looks, in portions; what is being written is counted as moving."""
    once: list[bytes] = []
    for ids in pieces(suspects, VECTORS):
        once += [one.node.bytes for one in await _judge(installation, done, ids)]
        progress("looking twice", len(once), len(suspects))
    if not once:
        return
    await asyncio.sleep(MOMENT)
    for ids in pieces(once, VECTORS):
        found = await _judge(installation, done, ids)
        if found:
            yield found


async def _judge(installation: Installation, done: Comparison, nodes: Sequence[bytes]) -> list[Difference]:
    ids = [uuid.UUID(bytes=node) for node in nodes]
    space = done.space
    before = await row_states(installation, space, ids)
    records = {one.node_id: one for one in await installation.vectors.fetch(space.tenant, space.namespace, ids)}
    other = await stale_fields(
        installation, space, [node for node, row in before.items() if row["status"] == "succeeded"]
    )
    after = await row_states(installation, space, ids, vectors=True)
    found = []
    for node in ids:
        row, earlier = after.get(node), before.get(node)
        if _mark(row) != _mark(earlier) or (row is not None and row["status"] in OUTSTANDING):
            done.moving += 1
            continue
        record = records.get(node)
        kind = _kind(row, record) or ("fields" if row is not None and record is not None and node in other else None)
        if kind is not None:
            held_at = None if record is None else record.version
            found.append(Difference(kind, node, None if row is None else row["version"], held_at))
    return found


def _mark(row: dict[str, Any] | None) -> tuple[Any, ...] | None:
    return None if row is None else (row["version"], row["status"], row["vectored"])


def _kind(row: dict[str, Any] | None, record: VectorRecord | None) -> Kind | None:
    if row is None or row["status"] != "succeeded" or not row["vectored"]:
        return None if record is None else "extra"
    if record is None:
        return "missing"
    if record.version != row["version"]:
        return "stale" if record.version < row["version"] else "ahead"
    return None if record.vector is not None and same(row["stored"], record.vector) else "wrong"


async def repair_differences(installation: Installation, done: Comparison, found: Sequence[Difference]) -> None:
    """Put back into the outbox what is missing, stale, or wrong in vector or fields, and remove what is extra.

    What is ahead of Postgres cannot be repaired node by node, since no store lets an older version replace a newer one: ``reindex``.
    """
    space = done.space
    again = [(one.node, one.version) for one in found if one.kind in ("missing", "stale", "wrong", "fields")]
    sent = await send_again(installation, space, [(node, version) for node, version in again if version is not None])
    # At the newest version that is known not to belong there: what is written from now on has a newer one.
    gone = [(one.node, max(one.held or 0, one.version or 0)) for one in found if one.kind == "extra"]
    if gone:
        await installation.vectors.delete(space.tenant, space.namespace, gone)
        done.removed += len(gone)
        # The version protects what a writer brought meanwhile; a store that deleted it anyway gets it again.
        rows = await row_states(installation, space, [node for node, _ in gone])
        back = [node for node, row in rows.items() if _kind(row, None) == "missing"]
        if back:
            there = {one.node_id for one in await installation.vectors.fetch(space.tenant, space.namespace, back)}
            lost = [(node, rows[node]["version"]) for node in back if node not in there]
            done.sent.append(await send_again(installation, space, lost))
    if sent.versions:
        done.sent.append(sent)


async def reconcile(
    installation: Installation,
    spaces: Iterable[Space],
    *,
    vectors: Vectors = "sample",
    repair: bool = False,
    within: float = 600.0,
    progress: Progress = no_progress,
) -> tuple[list[Comparison], list[Comparison], Replayed]:
    """(before, after, what was sent again) of each namespace; ``after`` is a comparison anew of those that had to be repaired."""
    before = [await compare(installation, space, vectors=vectors, repair=repair, progress=progress) for space in spaces]
    sent = replay.joined([one for done in before for one in done.sent])
    if not repair or not any(done.counts for done in before):
        return before, before, sent
    await replay.follow(installation, sent, within=within, progress=progress)
    after = [
        await compare(installation, done.space, vectors=vectors, progress=progress) if done.counts else done
        for done in before
    ]
    return before, after, sent


def pieces(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """Portions of at most ``size``."""
    rest = iter(items)
    while piece := list(islice(rest, size)):
        yield piece
