"""`memoryctl audit new-log`: end a log that cannot go on, and open its next incarnation, which says where it comes from.

What the old log proves of a row is recorded again in the new one, and only that: a row that is not what its last sealed entry says gets no
entry, is served to nobody, and waits for `memoryctl tamper`. Reasons: ``docs/decisions/0039-a-new-incarnation.md``.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from memory_layer.audit.checkpoint import Checkpoint
from memory_layer.audit.origin import incarnation_of
from memory_layer.audit.trust_root import TrustedKey, TrustRoot, dump, load, trusted_key
from memory_layer.audit.verdict import Verdict
from memory_layer.errors import Conflict, MemoryLayerError, NotYetPublished
from memory_layer.model import Artifact, Node
from memory_layer.ops.audit import begin, connect, verify_live
from memory_layer.ops.foreign_logs import family
from memory_layer.ops.operate import Run
from memory_layer.ops.report import Finding
from memory_layer.ops.seal_keys import write_trust_root
from memory_layer.ops.tables.carried import digest_of
from memory_layer.ops.tables.found import SQL as TABLES
from memory_layer.ops.tables.found import moment
from memory_layer.ops.tamper import holds_of
from memory_layer.service.actions.incarnation import CarryArtifact, CarryNode, OpenIncarnation
from memory_layer.service.commit import Change, Committer
from memory_layer.service.commit.transaction import SIGNER_TIMEOUT
from memory_layer.service.evidence import given_by
from memory_layer.service.installation import Installation
from memory_layer.service.principals import MARK, known_caller
from memory_layer.service.rollback import difference, root_by_leaves
from memory_layer.service.tiles import snapshot
from memory_layer.service.verification import (
    Problem,
    judge_artifact,
    judge_node,
    last_entry,
    misplaced,
    node_named,
    sealed_by,
)
from memory_layer.service.witnesses import FOLDER, Witness, Witnesses, genuine
from memory_layer.sql import queries
from memory_layer.stores.batch_reads import vector_row
from memory_layer.stores.log_guard import LogGuard
from memory_layer.stores.log_writer import LogWriter
from memory_layer.stores.logs import held_logs, newest_checkpoint, open_next
from memory_layer.stores.pipeline import Call
from memory_layer.stores.postgres import ALL_TENANTS
from memory_layer.stores.signers import open_signers

LOCK: Final = "new-log"
FORMAT: Final = "memory-layer/audit-incarnation/v1"
PAGE: Final = 200  # rows on their way at a time
NAMED: Final = 1000  # rows that the report names; the rest are counted

_COMMIT, _EVIDENCE, _LOG, _TAMPER = queries("commit"), queries("evidence"), queries("log"), queries("tamper")


class _Known(NamedTuple):
    """What is signed of the old log: the newest checkpoint, and those that lie elsewhere and that the database lacks."""

    newest: Checkpoint | None
    lacks: list[Witness]


async def open_new(run: Run, reason: str) -> None:
    """Open the next incarnation, carry over every row that the old log proves, then put the new trust root in place of the old one.

    Cut off anywhere, it is finished by the same command. Raises LogNotOpen where this role may not open a log, PolicyRefused and what the
    signer raises.
    """
    old = await run.installation.need("trust_root", "keys", "committer", "outside", "anchors")
    root = old.trust_root
    after = await _after(old)
    origin = after or await _next_origin(old)
    successor = await _trust_root(old, origin)
    opening = None if after and await _length(old, origin) else await _opening(old, run, origin, reason)
    if after is None:
        await open_next(old.dsn, origin, successor.keys[0].key_id)
    committer = Committer(LogWriter(old.dsn, SIGNER_TIMEOUT, LogGuard(successor)), old.keys)
    try:
        if opening is not None:
            who = await known_caller(old.postgres, MARK, str(run.id))
            await committer.submit(Change(who, OpenIncarnation(*opening)))
        left = await _carry(run, committer, "node", origin, reason)
        left += await _carry(run, committer, "artifact", origin, reason)
        length = await _length(old, origin)
    finally:
        await committer.close()
    successor = write_trust_root(old.folder, root, successor.keys, origin)
    await old.close()  # what follows opens the new log
    _report(run, root, successor, length, left)


# --- the new log's name and keys


async def _after(old: Installation) -> str | None:
    """The incarnation that a run which was cut off has opened already."""
    root, held = old.trust_root, await held_logs(old.dsn)
    own = next((log.log for log in held if log.origin == root.origin), None)
    later = [
        log.origin for log in held if own is not None and log.log > own and family(log.origin) == family(root.origin)
    ]
    return later[-1] if later else None


async def _next_origin(old: Installation) -> str:
    """The first incarnation that is not known anywhere: neither this data folder nor a place that keeps checkpoints.

    A database that was restored to before its newest incarnation does not know of it, and one name must never stand for two logs.
    """
    root = old.trust_root
    name, taken = family(root.origin), {incarnation_of(root.origin) or 1}
    for path in old.folder.glob("trust-root*.json"):
        try:
            named = load(await asyncio.to_thread(path.read_bytes)).origin
        except (OSError, MemoryLayerError):
            continue
        if family(named) == name:
            taken.add(incarnation_of(named) or 1)
    number = max(taken) + 1
    while True:
        origin = f"{name}/e{number}"
        gathered = await _gather(old, load(dump(origin, root.keys)))
        if not gathered:
            return origin
        number += 1


async def _trust_root(old: Installation, origin: str) -> TrustRoot:
    """Which keys may sign the new log: the key that seals now, and the others whose time is not over."""
    root, signers = old.trust_root, await open_signers(old.settings, old.folder)
    for signer in signers:
        await signer.close()
    seal = trusted_key(signers[0].algorithm, signers[0].public_key_der)
    others = [replace(key, from_seq=0) for key in root.keys if key.purpose != "seal" and key.to_seq is None]
    keys: list[TrustedKey] = [seal, *others]
    return load(dump(origin, keys, root.version + 1))


# --- what the first entry says


async def _opening(
    old: Installation, run: Run, origin: str, reason: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    root, fetch = old.trust_root, snapshot(old.postgres)
    verdict = await asyncio.to_thread(verify_live, old.dsn, root, pinned=True, progress=old.progress, others=[origin])
    known = await _signed(old)
    (grown,) = await fetch((_LOG["grown"], {"log": old.log}))
    held = await root_by_leaves(fetch, old.log, grown["entries"])
    tables, namespaces = await asyncio.to_thread(_rows, old.dsn, old.log)
    payload = {
        "format": FORMAT,
        "origin": root.origin,
        "trustRoot": root.digest,
        "reason": reason,
        "checkpoint": None if known.newest is None else _place(known.newest),
        "held": {"size": grown["entries"], "root": None if held is None else held.hex()},
        "lacks": [_place(one.checkpoint) | {"place": one.source} for one in known.lacks],
        "verdict": {"name": verdict.name, "exit": verdict.exit_code, "findings": _codes(verdict)},
        "earlier": [log.origin for log in await held_logs(old.dsn) if log.log < old.log],
        "tables": tables,
    }
    for name in ("checkpoint", "held", "lacks", "verdict"):
        run.fact(name, payload[name])
    return payload, namespaces


def _place(checkpoint: Checkpoint) -> dict[str, Any]:
    return {"size": checkpoint.size, "root": checkpoint.root.hex()}


def _codes(verdict: Verdict) -> dict[str, int]:
    counts: dict[str, int] = {}
    for finding in verdict.findings:
        counts[finding.code] = counts.get(finding.code, 0) + 1
    return counts


async def _gather(old: Installation, root: TrustRoot) -> list[Witness]:
    gathered = await Witnesses(root, old.outside, old.anchors, old.folder / FOLDER).gather()
    for line in gathered.unread:
        old.say(f"warning: a place of checkpoints could not be asked: {line}")
    return gathered.witnesses


async def _signed(old: Installation) -> _Known:
    root, fetch = old.trust_root, snapshot(old.postgres)
    witnesses = await _gather(old, root)
    (grown,) = await fetch((_LOG["grown"], {"log": old.log}))
    lacks = [one for one in witnesses if await difference(fetch, old.log, grown["entries"], one.checkpoint) is not None]
    known = [one.checkpoint for one in witnesses]
    try:
        own = genuine(await newest_checkpoint(old.dsn, old.folder), root)
        known += [own] if isinstance(own, Checkpoint) else []
    except NotYetPublished:
        pass
    return _Known(max(known, key=lambda one: one.size, default=None), lacks)


def _rows(dsn: str, log: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Of the tables whose rows the old log's entries spoke of: digests, and the namespaces as they stand."""
    with connect(dsn) as connection:
        begin(connection)

        def rows(name: str) -> list[tuple[Any, ...]]:
            return connection.execute(TABLES[name], {"log": log}, binary=True).fetchall()

        tables = {
            "ops_runs": digest_of(row for row in rows("runs") if row[-1] is not None),
            "artifact_manifests": digest_of(rows("manifests")),
        }
        return tables, [_namespace(row) for row in rows("namespaces")]


def _namespace(row: Sequence[Any]) -> dict[str, Any]:
    names = ("tenant", "name", "index_namespace", "embedding_model", "dimension", "state", "generations", "beside",
             "beside_model", "beside_dimension", "beside_state", "created_at", "updated_at")  # fmt: skip
    found = dict(zip(names, row, strict=False))
    return found | {name: moment(found[name]) for name in ("created_at", "updated_at")}


# --- rows


async def _carry(run: Run, committer: Committer, kind: str, origin: str, reason: str) -> list[Problem]:
    """Carry over every row of a kind that is what the old log says of it; those that are not."""
    old = run.installation
    left: list[Problem] = []
    who, done = await known_caller(old.postgres, MARK, str(run.id)), 0
    async for page in _pages(old, kind):
        problems, changes = await _judged(old, kind, page, origin, reason)
        left += problems
        found = await asyncio.gather(
            *(committer.submit(Change(replace(who, tenant=tenant), action)) for tenant, action in changes),
            return_exceptions=True,
        )
        for (tenant, action), outcome in zip(changes, found, strict=True):
            if isinstance(outcome, Conflict):
                row = action.node if isinstance(action, CarryNode) else action.artifact
                left.append(Problem(kind, tenant, row.id, None, "it was changed meanwhile"))  # type: ignore[arg-type]
            elif isinstance(outcome, BaseException):
                raise outcome
        done += len(changes)
        old.progress(f"carrying over {kind}s", done, done)
    run.fact(f"{kind}sCarried", done)
    (gone,) = await old.postgres.fetch(ALL_TENANTS, (_TAMPER[f"gone_{kind}s"], {"origin": old.trust_root.origin}))
    for first in range(0, len(gone), PAGE):
        keys = [(row["tenant"], row["id"]) for row in gone[first : first + PAGE]]
        left += (await _judged(old, kind, keys, origin, reason))[0]
    return left


async def _pages(old: Installation, kind: str) -> AsyncIterator[list[tuple[str, uuid.UUID]]]:
    after: dict[str, Any] = {"tenant": "", "id": uuid.UUID(int=0)}
    while True:
        (page,) = await old.postgres.fetch(ALL_TENANTS, (_TAMPER[f"page_of_{kind}s"], {**after, "limit": PAGE}))
        yield [(row["tenant"], row["id"]) for row in page]
        if len(page) < PAGE:
            return
        after = dict(page[-1])


async def _judged(
    old: Installation, kind: str, keys: Sequence[tuple[str, uuid.UUID]], origin: str, reason: str
) -> tuple[list[Problem], list[tuple[str, CarryNode | CarryArtifact]]]:
    """Rows against the old log, in one snapshot with their entries; what is wrong with them, and what carries over the others."""
    if not keys:
        return [], []
    tenants, ids = zip(*keys, strict=True)
    wanted = {"tenants": list(tenants), "ids": list(ids)}
    rows, entries, there, vectors = await old.postgres.fetch(
        ALL_TENANTS,
        (_COMMIT[f"find_{kind}s"], wanted),
        (_EVIDENCE[f"last_{kind}_entries"], wanted | {"origin": old.trust_root.origin}),
        (_EVIDENCE[f"last_{kind}_entries"], wanted | {"origin": origin}),
        (_COMMIT["find_vectors"], wanted),
    )
    last = {(row["tenant"], row["id"]): last_entry(row) for row in entries}
    carried = {(row["tenant"], row["id"]) for row in there}
    sealed = old.committer.sealed

    async def read(call: Call) -> list[dict[str, Any]]:
        (found,) = await old.postgres.look("", call)
        return found

    await sealed_by(sealed, last.values(), read)
    there_are = {(row["tenant"], row["id"]): row for row in rows}
    given: dict[tuple[str, uuid.UUID], list[Any]] = {}
    for row in vectors:
        given.setdefault((row["tenant"], row["memory_node_id"]), []).append(vector_row(row))
    nodes = {key: node_named(entry) for key, entry in last.items()} if kind == "artifact" else {}
    holds = await holds_of(old, sorted({(tenant, node) for (tenant, _), node in nodes.items() if node is not None}))
    problems: list[Problem] = []
    changes: list[tuple[str, CarryNode | CarryArtifact]] = []
    for key in (key for key in keys if key not in carried):
        because = f"carried over from entry {last[key].seq} of {old.trust_root.origin}: {reason}" if key in last else ""
        facts = there_are.get(key)
        if kind == "node":
            node = None if facts is None else Node(**facts)
            vector = given_by(given.get(key, ()))
            problem = judge_node(*key, node, vector, last.get(key), sealed)
            if problem is None and node is not None:
                changes.append((key[0], CarryNode(node, vector, because)))
        else:
            artifact = None if facts is None else Artifact(**facts)
            problem = judge_artifact(*key, artifact, last.get(key), sealed)
            if problem is None and artifact is not None:
                problem = misplaced(artifact, nodes.get(key), holds, last.get(key))
            if problem is None and artifact is not None:
                changes.append((key[0], CarryArtifact(artifact, because)))
        if problem is not None:
            problems.append(problem)
    return problems, changes


async def _length(old: Installation, origin: str) -> int:
    logs = {log.origin: log.log for log in await held_logs(old.dsn)}
    (grown,) = await snapshot(old.postgres)((_LOG["grown"], {"log": logs[origin]}))
    return int(grown["entries"])


# --- reporting


def _report(run: Run, before: TrustRoot, now: TrustRoot, length: int, left: list[Problem]) -> None:
    kept: Path = run.installation.folder / f"trust-root.v{before.version}.json"
    for name, value in (("log", now.origin), ("before", before.origin), ("entries", length), ("leftOut", len(left)),
                        ("trustRootSha256", now.digest), ("trustRootBefore", str(kept))):  # fmt: skip
        run.fact(name, value)
    text = f"The log is {now.origin} now, and its trust root sha256:{now.digest}. {before.origin} ended; {kept} goes on to verify it."
    hint = "Copy trust-root.json to every server, start them again, and tell the auditors: docs/runbooks/new-log.md"
    run.find(Finding("audit.new-log", "info", "pass", text, hint))
    for problem in left[:NAMED]:
        text = f"{problem.kind} {problem.id} of tenant {problem.tenant} has no entry in the new log: {problem.reason} (by the old one)."
        hint = f"memoryctl tamper show {problem.id}; where there is a row, accept it with a reason, or restore, which removes it"
        run.find(Finding("audit.left-out", "error", "fail", text, hint))
    if len(left) > NAMED:
        run.find(Finding("audit.left-out", "error", "fail", f"{len(left) - NAMED} more rows are not named here."))
