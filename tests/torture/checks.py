"""What must hold when a storm is over: the ledger, the rows and the log, held against each other."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, NamedTuple

import psycopg
from psycopg.rows import namedtuple_row

from memory_layer.audit import trust_root
from memory_layer.audit.tree import Frontier
from memory_layer.audit.verdict import OK, UNANCHORED
from memory_layer.ops import audit
from tests.torture.harness import Installation
from tests.torture.workload import Ledger, Write

MOST = 20  # problems of one check that are shown


@dataclass
class Seen:
    """Everything that is there, in one snapshot."""

    events: list[Any]
    nodes: dict[str, Any]
    artifacts: dict[str, Any]
    seals: list[Any]
    checkpoints: list[Any]
    vectors: set[str]  # nodes that have a row for the index
    payloads: set[int]
    keys: dict[tuple[str, str], Any]
    unique: set[tuple[str, str]]
    markers: Counter[str] = field(default_factory=Counter)  # how often each stands in the rows
    about: dict[str, list[Any]] = field(default_factory=dict)  # entries by node or artifact

    def by_seq(self, seq: int) -> Any:
        return self.events[seq] if 0 <= seq < len(self.events) else None


def look(install: Installation) -> Seen:
    with psycopg.connect(install.cluster.dsn("postgres"), row_factory=namedtuple_row) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ

        def rows(query: str) -> list[Any]:
            return connection.execute(query).fetchall()

        seen = Seen(
            events=rows(
                "SELECT seq, id::text, batch_no, tenant, memory_node_id::text AS node, artifact_id::text AS artifact,"
                " event_type AS type, hash, prev_hash FROM audit_events ORDER BY seq"
            ),
            nodes={r.id: r for r in rows("SELECT id::text, tenant, version, metadata, deleted_at FROM memory_nodes")},
            artifacts={r.id: r for r in rows("SELECT id::text, name, sha256, object_key FROM artifacts")},
            seals=rows("SELECT batch_no, first_seq, last_seq, head FROM audit_seals ORDER BY batch_no"),
            checkpoints=rows("SELECT size, root FROM audit_checkpoints ORDER BY size"),
            vectors={r.id for r in rows("SELECT memory_node_id::text AS id FROM memory_vectors")},
            payloads={r.seq for r in rows("SELECT seq FROM audit_payloads")},
            keys={(r.tenant, r.key): r.answer for r in rows("SELECT tenant, key, answer FROM idempotency_keys")},
            unique={
                (r.name, r.columns)
                for r in rows(
                    "SELECT conrelid::regclass::text AS name, (SELECT string_agg(attname, ',' ORDER BY k.place) FROM"
                    " unnest(conkey) WITH ORDINALITY k(number, place) JOIN pg_attribute ON attrelid = conrelid"
                    " AND attnum = k.number) AS columns FROM pg_constraint WHERE contype IN ('p', 'u')"
                )
            },
        )
        held = rows(
            "SELECT convert_from(p.payload, 'UTF8') AS payload FROM audit_payloads p JOIN audit_events e USING (log, seq)"
            " WHERE e.event_type = 'memory.legal_hold.set'"
        )
    seen.markers.update(row.metadata["marker"] for row in seen.nodes.values())
    seen.markers.update(name for row in seen.nodes.values() for name in row.metadata if name != "marker")
    seen.markers.update(row.name for row in seen.artifacts.values())
    seen.markers.update(json.loads(row.payload)["reason"] for row in held)
    for event in seen.events:
        seen.about.setdefault(event.artifact or event.node or "", []).append(event)
    return seen


# --- the checks


def wrong_answers(ledger: Ledger, _: Seen) -> Iterator[str]:
    yield from ledger.wrong


def receipts(ledger: Ledger, seen: Seen) -> Iterator[str]:
    """Each acknowledged change has the entry that its answer names, with that hash, and shares it with none."""
    owners: dict[int, Write] = {}
    for write in ledger.writes:
        if write.fate != "acknowledged":
            continue
        if len(write.receipts) != len(write.markers):
            yield f"{write}: {len(write.receipts)} receipts"
        for receipt in write.receipts:
            entry = seen.by_seq(receipt.seq)
            fits = entry is not None and (entry.type, entry.artifact or entry.node) == (write.kind, receipt.thing)
            if not fits or receipt.hash not in (None, entry.hash) or receipt.audit_id not in (None, entry.id):
                yield f"{write}: {receipt}, and the log has {entry}"
            if owners.setdefault(receipt.seq, write) is not write:
                yield f"{write} and {owners[receipt.seq]} were given one entry"


def once(ledger: Ledger, seen: Seen) -> Iterator[str]:
    """What was acknowledged is there once, what was refused is not, and what nobody knows is there once or not, and whole."""
    for write in ledger.writes:
        found = {_times(write, marker, seen) for marker in write.markers}
        allowed = {"acknowledged": [{1}], "refused": [{0}], "unknown": [{0}, {1}]}[write.fate]
        if found not in allowed:
            yield f"{write} is there {sorted(found)} times"


def _times(write: Write, marker: str, seen: Seen) -> int:
    if write.kind in ("memory.node.deleted", "memory.legal_hold.released"):  # rows and payloads of these hold no marker
        assert write.node is not None
        entries = sum(entry.type == write.kind for entry in seen.about.get(write.node, ()))
        if write.kind == "memory.legal_hold.released":  # a node may have several, each acknowledged in the end
            return min(entries, 1)
        return entries
    return seen.markers[marker]


def keyed_writes_are_certain(ledger: Ledger, _: Seen) -> Iterator[str]:
    yield from (f"{write} was never answered" for write in ledger.writes if write.key and write.fate == "unknown")


def counters(ledger: Ledger, seen: Seen) -> Iterator[str]:
    """A node that many patched has versions 1 to n, one entry and one change for each: no update was lost."""
    for node in (node for nodes in ledger.counters.values() for node in nodes):
        row, entries = seen.nodes[node], seen.about[node]
        changes = {name: tag for name, tag in row.metadata.items() if name != "marker"}
        if sorted(int(tag.strip('"')) for tag in changes.values()) != list(range(1, row.version)):
            yield f"node {node}: version {row.version} after changes of the versions {sorted(changes.values())}"
        if [entry.type for entry in entries] != ["memory.node.created"] + ["memory.node.updated"] * (row.version - 1):
            yield f"node {node}: version {row.version}, and {len(entries)} entries"
        for write in (write for write in ledger.writes if write.node == node and write.fate == "acknowledged"):
            (receipt,) = write.receipts
            place = next((n for n, entry in enumerate(entries, 1) if entry.seq == receipt.seq), None)
            if receipt.version != place or changes.get(write.markers[0]) != f'"{place and place - 1}"':
                yield f"{write}: it is change {place} of its node"


def no_fork(_: Ledger, seen: Seen) -> Iterator[str]:
    """One line of entries, one line of seals, and keys that allow no other."""
    if [event.seq for event in seen.events] != list(range(len(seen.events))):
        yield "entries are not numbered 0 to n"
    yield from (f"{two} does not follow {one}" for one, two in pairwise(seen.events) if one.hash != two.prev_hash)
    if [seal.batch_no for seal in seen.seals] != list(range(len(seen.seals))):
        yield "seals are not numbered 0 to n"
    yield from (
        f"{two} does not follow {one}" for one, two in pairwise(seen.seals) if one.last_seq + 1 != two.first_seq
    )
    for seal in seen.seals:
        if {event.batch_no for event in seen.events[seal.first_seq : seal.last_seq + 1]} != {seal.batch_no}:
            yield f"{seal} does not cover the entries of its batch"
        elif seen.events[seal.last_seq].hash != seal.head:
            yield f"{seal} has another head than its last entry"
    if seen.events and seen.events[-1].seq != seen.seals[-1].last_seq:
        yield "entries without a seal"
    keys = {("audit_events", "log,seq"), ("audit_seals", "log,batch_no"), ("audit_checkpoints", "log,size")}
    yield from (f"no unique key {missing}" for missing in keys - seen.unique)


def nothing_half(ledger: Ledger, seen: Seen) -> Iterator[str]:
    """Rows, entries, payloads, index rows and kept answers of one change are all there or none is."""
    created, rows = Counter(e.node for e in seen.events if e.type == "memory.node.created"), Counter(list(seen.nodes))
    if created != rows:
        yield f"nodes and their entries differ: {list((created - rows) + (rows - created))[:5]}"
    stored = Counter(e.artifact for e in seen.events if e.type == "memory.artifact.created")
    if stored != Counter(list(seen.artifacts)):
        yield "artifacts and their entries differ"
    yield from (f"{event} has no payload" for event in seen.events if event.seq not in seen.payloads)
    if extra := seen.payloads - {event.seq for event in seen.events}:
        yield f"payloads without entries: {sorted(extra)[:5]}"
    with_vector = {marker for write in ledger.writes if write.vector for marker in write.markers}
    for node in seen.nodes.values():
        if node.deleted_at is None and node.metadata["marker"] in with_vector and node.id not in seen.vectors:
            yield f"node {node.id} has a vector and no row for the index"
        gone = any(entry.type == "memory.node.deleted" for entry in seen.about[node.id])
        if gone != (node.deleted_at is not None):
            yield f"node {node.id}: deleted_at is {node.deleted_at}, and its entries say otherwise"
    ids = {event.id for event in seen.events}
    for key, answer in seen.keys.items():
        told = [answer, *answer.get("items", ())]
        if missing := [item["auditId"] for item in told if "auditId" in item and item["auditId"] not in ids]:
            yield f"the answer kept under {key} names entries that are not there: {missing}"
    for write in ledger.writes:
        if write.key and write.fate == "acknowledged" and (write.tenant, write.key) not in seen.keys:
            yield f"{write}: its answer was not kept"


def checkpoints(ledger: Ledger, seen: Seen) -> Iterator[str]:
    """Every checkpoint, stored or once seen by a client, is the head of the tree over the entries that there are."""
    told = {size: point.root for size, point in ledger.checkpoints.items()}
    stored = {row.size: bytes(row.root) for row in seen.checkpoints}
    yield from (f"the checkpoint of size {size} is not stored" for size in told.keys() - stored.keys())
    tree = Frontier()
    for size, event in enumerate(seen.events, start=1):
        tree.append(bytes.fromhex(event.hash))
        for name, roots in (("told", told), ("stored", stored)):
            if size in roots and roots[size] != tree.root():
                yield f"the checkpoint of size {size} that was {name} is not the root of the log"
    if told and max(told) > len(seen.events):
        yield "a checkpoint covers more entries than there are"


class Check(NamedTuple):
    """``look`` says what is wrong, a line each."""

    name: str
    look: Callable[[Ledger, Seen], Iterable[str]]


CHECKS: Final = (
    Check("no wrong answers", wrong_answers),
    Check("acknowledged changes have their entries", receipts),
    Check("every write is there once or not at all", once),
    Check("writes under a key are certain", keyed_writes_are_certain),
    Check("no lost update", counters),
    Check("no fork", no_fork),
    Check("nothing half", nothing_half),
    Check("checkpoints never contradict", checkpoints),
)


def problems(install: Installation, ledger: Ledger) -> list[str]:
    """What the checks and `memoryctl audit verify` have to say; empty when all is well."""
    seen = look(install)
    found: list[str] = []
    for check in CHECKS:
        lines = list(check.look(ledger, seen))
        found += [f"{check.name}: {line}" for line in lines[:MOST]]
        if len(lines) > MOST:
            found.append(f"{check.name}: and {len(lines) - MOST} more")
    root = trust_root.load((install.data / "trust-root.json").read_bytes())
    anchors = list(ledger.checkpoints.values())[-50:]
    verdict = audit.verify_live(install.cluster.dsn("postgres"), root, pinned=True, anchors=anchors)
    found += [f"audit verify: {finding}" for finding in verdict.findings]
    if verdict.exit_code not in (OK, UNANCHORED):
        found.append(f"audit verify: {verdict.name}")
    # A batch that began inside another's transaction would commit what was rolled back.
    server = (install.data / "log" / "postgres.log").read_text("utf-8", "replace")
    if inside := server.count("there is already a transaction in progress"):
        found.append(f"Postgres warned {inside} times of a BEGIN inside a transaction")
    return found
