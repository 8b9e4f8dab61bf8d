"""A log verified in parts, each by a process of its own. What is found never depends on how it was cut.

A part in which nothing is wrong, and which begins where the one before it was computed to end, needs no second look. At the first
sign of anything else the parts are dropped, and one pass over the whole says what it is.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import NamedTuple

from memory_layer.audit.anchors import Anchors, CheckpointRow, Pieces, Stop
from memory_layer.audit.checkpoint import Checkpoint
from memory_layer.audit.rows import Row
from memory_layer.audit.seal_chain import ENDLESS, Base, SealRow
from memory_layer.audit.trust_root import TrustRoot
from memory_layer.audit.verdict import Counts, Verdict
from memory_layer.audit.verify import MAX_ANCHOR_AGE, Verification


class Part(NamedTuple):
    """What ``verify_part`` saw of a part in which nothing is wrong. ``ids`` joins the ids, of 16 bytes each."""

    counts: Counts
    ts: str
    ids: bytes
    stops: list[Stop]
    sealed: dict[str, int]  # the last entry that each key sealed
    retired: dict[str, int]  # the last entry that each key may have sealed
    left_out: int


def verify_part(
    trust_root: TrustRoot,
    rows: Iterable[Row],
    seals: Iterable[SealRow],
    *,
    base: Base,
    stops: Iterable[int],
    payloads: bool,
    tenant: str | None,
) -> Part | None:
    """Check whole batches of an export (``bare`` rows) by themselves; None where anything is wrong, or hangs on other parts.

    ``stops`` are the sizes of the checkpoints within it. Two parts may still share an id, or hold a seal that a retirement forbids.
    """
    run = Verification(trust_root, trust_root.origin, True, payloads, (), False, tenant, base)
    pieces = Pieces(base, stops)
    verdict = run.run(rows, seals, pieces, None, MAX_ANCHOR_AGE)
    if verdict.findings or verdict.counts.delegated_keys or run.keys_missing or run.chain is None:
        return None
    sealed, retired = run.chain.sealed, run.chain.retired
    return Part(verdict.counts, run.last_ts, b"".join(run.ids), pieces.found, sealed, retired, run.left_out)


def verify_parts(
    trust_root: TrustRoot,
    parts: Iterable[Part | None],
    *,
    payloads: bool,
    tenant: str | None,
    base: Base | None,
    anchors: Iterable[Checkpoint],
    checkpoints: Iterable[CheckpointRow],
    now: dt.datetime | None,
    max_anchor_age: dt.timedelta,
) -> Verdict | None:
    """The verdict of ``verify`` on all parts in order, by a pinned trust root; None where only ``verify`` can give it."""
    run = Verification(trust_root, trust_root.origin, True, payloads, (), False, tenant, base or Base())
    held = Anchors(run.cases, trust_root, anchors, checkpoints, base=run.base, part=base is not None)
    counts, ids = run.counts, 0
    sealed: dict[str, int] = {}
    retired: dict[str, int] = {}
    for part in parts:
        if part is None:
            return None
        for stop in part.stops:
            held.resume(stop)
        _add(counts, part.counts)
        run.ids.update(part.ids[place : place + 16] for place in range(0, len(part.ids), 16))
        ids += len(part.ids) // 16
        for key, last in part.sealed.items():
            sealed[key] = max(last, sealed.get(key, -1))
        for key, last in part.retired.items():
            retired[key] = min(last, retired.get(key, ENDLESS))
        run.left_out += part.left_out
        run.last_ts = part.ts
    if len(run.ids) != ids or any(last > retired.get(key, ENDLESS) for key, last in sealed.items()):
        return None
    if counts.last is None:
        return None
    run.expected = counts.last + 1
    held.finish(run.expected, run.last_ts, None)
    if held.foreign or run.cases.count:
        return None
    return run.conclude(held, now, max_anchor_age)


def _add(counts: Counts, part: Counts) -> None:
    counts.entries += part.entries
    counts.first = part.first if counts.first is None else counts.first
    counts.last, counts.head = part.last, part.head
    counts.batches += part.batches
    counts.seals_valid += part.seals_valid
    counts.payloads_matched += part.payloads_matched
