"""Rows that may be served: read with their last entries in one snapshot, and compared with them.

``VERIFY_READS=off`` serves them unchecked. A row that fails is a ``Problem``: a request for that one row is refused (TAMPERED), and
of many rows it is left out and counted.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import itemgetter
from typing import Any, Final, NamedTuple

from memory_layer import aside
from memory_layer.model import Artifact, Caller, Node
from memory_layer.service.installation import Installation
from memory_layer.service.verification import (
    LastEntry,
    Problem,
    judge_artifact,
    judge_node,
    last_entry,
    node_named,
    refusal,
    report,
    sealed_by,
)
from memory_layer.sql import queries
from memory_layer.stores.pipeline import Call
from memory_layer.stores.postgres import Query

_NODES = queries("nodes")
_EVIDENCE = queries("evidence")
_NODE: Final = itemgetter(*(column.name for column in fields(Node)))
_ARTIFACT: Final = itemgetter(*(column.name for column in fields(Artifact)))


def node_of(row: Mapping[str, Any]) -> Node:
    """Of a row that has a node's columns among others."""
    return Node(*_NODE(row))


def artifact_of(row: Mapping[str, Any]) -> Artifact:
    return Artifact(*_ARTIFACT(row))


@dataclass(slots=True)
class Read:
    """Nodes as they were found, and what is wrong with those that are not what the log says."""

    nodes: dict[uuid.UUID, Node] = field(default_factory=dict)  # live ones that may be served
    rows: dict[uuid.UUID, Node] = field(default_factory=dict)  # all, deleted and expired ones too
    problems: list[Problem] = field(default_factory=list)
    more: list[list[dict[str, Any]]] = field(default_factory=list)  # of the other queries that ran along


def strict(installation: Installation) -> bool:
    """Whether reads are held against the log."""
    return installation.settings.verify_reads == "strict"


def require_whole_log(installation: Installation) -> None:
    """Raise RollbackDetected where the log lacks what was signed of it: then each row may be what an older log says of it."""
    guard = installation.committer.rollback_guard
    if guard is not None and strict(installation):
        guard.require_intact()


async def read_nodes(
    installation: Installation,
    caller: Caller,
    ids: Sequence[uuid.UUID],
    door: str,
    more: Sequence[Query] = (),
    *,
    whole: bool = True,
    always: bool = False,
) -> Read:
    """These nodes of the caller's tenant, and what other queries, by keys as well, find in the same snapshot. Problems are counted and logged. Without
    ``whole`` they come without their text; ``always``: held against the log whatever VERIFY_READS says."""
    params = {"tenant": caller.tenant, "ids": list(ids)}
    nodes: Query = (_NODES["get_nodes"], params | {"whole": whole})
    require_whole_log(installation)
    checked = always or strict(installation)
    # What was found right a moment ago is read without its evidence, and again with it where it turns out to be another version.
    along = checked and not all(map(installation.verdicts.knows, ids))
    evidence: list[Query] = [(_EVIDENCE["node_evidence"], params | {"origin": installation.sealed.origin})]
    found = await installation.postgres.fetch(caller.tenant, nodes, *(evidence if along else []), *more, keyed=True)
    rows = {row["id"]: row for row in found[0]}
    if checked and not along:
        along = not all(
            installation.verdicts.holds(id_, caller.tenant, rows[id_]["mark"] if id_ in rows else None) for id_ in ids
        )
        if along:
            found = await installation.postgres.fetch(caller.tenant, nodes, *evidence, *more, keyed=True)
            rows = {row["id"]: row for row in found[0]}
    read = Read(more=found[1 + along :])
    read.rows = {id_: node_of(row) for id_, row in rows.items()}
    if along:
        proofs = {row["id"]: proof_of(row, rows.get(row["id"])) for row in found[1]}
        read.problems = await judge_nodes(installation, caller, read.rows, proofs)
        report(read.problems, door)
    failed = {problem.id for problem in read.problems}
    read.nodes = {id_: node for id_, node in read.rows.items() if rows[id_]["live"] and id_ not in failed}
    return read


class Proof(NamedTuple):
    """What a node is compared with: what the log recorded last of it in the same snapshot, and hashes of what was read without its bytes."""

    last: LastEntry | None
    vector: str | None  # SHA-256 of the vector that the caller gave last
    content_sha256: str | None  # of a text that was not read
    mark: str | None  # of the row's version; None: there is no row


def proof_of(row: Mapping[str, Any], node: Mapping[str, Any] | None) -> Proof:
    """Of a row of the query ``node_evidence``, and the node's own."""
    last = None if row["seq"] is None else LastEntry(row["seq"], row["batch_no"], row["entry"], row["salt"])
    vector = row["sha256"] if row["vector"] is None else vector_sha256(row["vector"])
    if node is None:
        return Proof(last, vector, None, None)
    return Proof(last, vector, node["content_sha256"], node["mark"])


def weight_of(node: Node) -> int:
    """About the bytes of a node, as a look at it shows."""
    return len(node.content or "") + (aside.HEAVY if aside.is_heavy(node.metadata) else 0)


async def judge_nodes(
    installation: Installation, caller: Caller, nodes: Mapping[uuid.UUID, Node], proofs: Mapping[uuid.UUID, Proof]
) -> list[Problem]:
    """What is wrong with those of the nodes that are not what the log says; one that is not among ``nodes`` has no row."""
    await check_batches(installation, caller, [proof.last for proof in proofs.values() if proof.last is not None])
    problems = []
    for id_, proof in proofs.items():
        node = nodes.get(id_)
        facts = (caller.tenant, id_, node, proof.vector, proof.last, installation.sealed, proof.content_sha256)
        problem = await aside.run(0 if node is None else weight_of(node), judge_node, *facts)
        if problem is not None:
            problems.append(problem)
        elif node is not None and proof.mark is not None:
            installation.verdicts.keep(id_, caller.tenant, proof.mark)
    return problems


async def read_node(
    installation: Installation, caller: Caller, id_: uuid.UUID, door: str, more: Sequence[Query] = ()
) -> tuple[Node | None, Read]:
    """One node, or None where there is no live one. Raises Tampered."""
    read = await read_nodes(installation, caller, [id_], door, more)
    if read.problems:
        raise refusal(read.problems[0])
    return read.nodes.get(id_), read


def artifact_entries(installation: Installation, caller: Caller, ids: Sequence[uuid.UUID]) -> Query:
    """What the log recorded last of these artifacts: a query to run along."""
    keys = {"tenants": [caller.tenant] * len(ids), "ids": list(ids), "origin": installation.sealed.origin}
    return _EVIDENCE["last_artifact_entries"], keys


async def judge_artifacts(
    installation: Installation,
    caller: Caller,
    rows: Sequence[Mapping[str, Any]],
    entries: Sequence[Mapping[str, Any]],
    nodes: Mapping[uuid.UUID, Node],
    door: str,
    wanted: Sequence[uuid.UUID] = (),
    *,
    always: bool = False,
) -> tuple[list[Artifact], list[Problem]]:
    """Rows of artifacts that may be served, and what is wrong with the others. ``nodes``: verified rows of those that they belong to;
    an artifact's hold is its node's. ``wanted``: ids of which a missing row is looked at too."""
    artifacts = {row["id"]: artifact_of(row) for row in rows}
    if not (always or strict(installation)):
        return list(artifacts.values()), []
    last = {row["id"]: last_entry(row) for row in entries if row["seq"] is not None}
    await check_batches(installation, caller, last.values())
    detached = await _detached(installation, caller, artifacts, last, door)
    problems = []
    for id_ in dict.fromkeys([*artifacts, *wanted]):
        artifact = artifacts.get(id_)
        problem = judge_artifact(caller.tenant, id_, artifact, last.get(id_), installation.sealed)
        if problem is None and artifact is not None:
            node = None if artifact.memory_node_id is None else nodes.get(artifact.memory_node_id)
            if artifact.legal_hold != (node is not None and node.legal_hold):
                entry = last.get(id_)
                reason = "its hold is not that of its node"
                problem = Problem("artifact", caller.tenant, id_, None if entry is None else entry.seq, reason)
            elif id_ in detached:
                entry = last.get(id_)
                reason = "it was detached from its node"
                problem = Problem("artifact", caller.tenant, id_, None if entry is None else entry.seq, reason)
        if problem is not None:
            problems.append(problem)
    report(problems, door)
    failed = {problem.id for problem in problems}
    return [artifact for id_, artifact in artifacts.items() if id_ not in failed], problems


async def _detached(
    installation: Installation,
    caller: Caller,
    artifacts: Mapping[uuid.UUID, Artifact],
    last: Mapping[uuid.UUID, LastEntry],
    door: str,
) -> set[uuid.UUID]:
    """Artifacts that belong to no node although their entry names one which was not purged."""
    named = {
        id_: node
        for id_, artifact in artifacts.items()
        if artifact.memory_node_id is None and id_ in last and (node := node_named(last[id_])) is not None
    }
    if not named:
        return set()
    read = await read_nodes(installation, caller, list(set(named.values())), door, whole=False, always=True)
    there = {*read.rows, *(problem.id for problem in read.problems)}
    return {id_ for id_, node in named.items() if node in there}


async def artifact_problems(
    installation: Installation, caller: Caller, ids: Sequence[uuid.UUID], door: str
) -> list[Problem]:
    """What is wrong with these artifacts, or with the nodes that they belong to, whatever ``VERIFY_READS`` says of callers' reads."""
    keys = {"tenant": caller.tenant, "ids": list(ids)}
    (found,) = await installation.postgres.fetch(caller.tenant, (_NODES["nodes_of_artifacts"], keys))
    nodes = [row["node"] for row in found]
    more: list[Query] = [(_NODES["get_artifacts"], keys), artifact_entries(installation, caller, ids)]
    read = await read_nodes(installation, caller, nodes, door, more, whole=False, always=True)
    rows, entries = read.more
    _, problems = await judge_artifacts(installation, caller, rows, entries, read.rows, door, ids, always=True)
    return [*read.problems, *problems]


async def check_batches(installation: Installation, caller: Caller, entries: Iterable[LastEntry]) -> None:
    """Check the seals of the batches that these entries stand in, unless this process has done so."""

    async def look(call: Call) -> list[dict[str, Any]]:
        (rows,) = await installation.postgres.look(caller.tenant, call)
        return rows

    await sealed_by(installation.sealed, entries, look)


async def require_sealed(
    installation: Installation, caller: Caller, rows: Sequence[Mapping[str, Any]], door: str, node: uuid.UUID
) -> None:
    """Raise Tampered unless each of these entries of a node is one that was sealed."""
    if not strict(installation):
        return
    entries = [LastEntry(row["seq"], row["batch_no"], bytes(row["entry"]), None) for row in rows]
    await check_batches(installation, caller, entries)
    for entry in entries:
        if not installation.sealed.covers(entry.batch, entry.seq, entry.entry):
            problem = Problem(
                "node", caller.tenant, node, entry.seq, "an entry of its history is not one that was sealed"
            )
            report([problem], door)
            raise refusal(problem)


def vector_sha256(encoded: str) -> str:
    """Of a vector in base64; what is no base64 has no hash that fits."""
    try:
        return hashlib.sha256(base64.b64decode(encoded, validate=True)).hexdigest()
    except (binascii.Error, ValueError):
        return "no base64"
