"""Rows as they may be served: read with their last entries in one snapshot, and held against them.

``VERIFY_READS=off`` serves them as they stand. A row that fails is a ``Problem``: whoever asked for that one row is refused
(TAMPERED), and of many it is left out and counted.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from memory_layer.model import Artifact, Caller, Node
from memory_layer.service import Memory
from memory_layer.service.verification import (
    LastEntry,
    Problem,
    judge_artifact,
    judge_node,
    last_entry,
    refusal,
    report,
    sealed_by,
)
from memory_layer.sql import queries
from memory_layer.stores.pipeline import Call
from memory_layer.stores.postgres import Query, artifact_row

_NODES = queries("nodes")
_EVIDENCE = queries("evidence")


@dataclass(slots=True)
class Read:
    """Nodes as they were found, and what is wrong with those that are not what the log says."""

    nodes: dict[uuid.UUID, Node] = field(default_factory=dict)  # live ones that may be served
    rows: dict[uuid.UUID, Node] = field(default_factory=dict)  # all, deleted and expired ones too
    problems: list[Problem] = field(default_factory=list)
    more: list[list[dict[str, Any]]] = field(default_factory=list)  # of the other queries that ran along


def strict(memory: Memory) -> bool:
    """Whether reads are held against the log."""
    return memory.stores.settings.verify_reads == "strict"


async def read_nodes(
    memory: Memory,
    caller: Caller,
    ids: Sequence[uuid.UUID],
    door: str,
    more: Sequence[Query] = (),
    *,
    whole: bool = True,
) -> Read:
    """These nodes of the caller's tenant, and what other queries find in the same snapshot. Problems are counted and logged. Without
    ``whole`` they come without their text."""
    params = {"tenant": caller.tenant, "ids": list(ids)}
    batch: list[Query] = [(_NODES["get_nodes"], params | {"whole": whole})]
    if strict(memory):
        keys = {"tenants": [caller.tenant] * len(ids), "ids": list(ids), "origin": memory.sealed.origin}
        batch += [(_EVIDENCE["given_vectors"], params), (_EVIDENCE["last_node_entries"], keys)]
    found = await memory.stores.postgres.fetch(caller.tenant, *batch, *more)
    read = Read(more=found[len(batch) :])
    live = {row["id"]: row.pop("live") for row in found[0]}
    texts = {row["id"]: row.pop("content_sha256") for row in found[0]}
    read.rows = {row["id"]: Node(**row) for row in found[0]}
    if strict(memory):
        vectors = given_vectors(found[1])
        entries = {row["id"]: last_entry(row) for row in found[2]}
        await check_batches(memory, caller, entries.values())
        for id_ in dict.fromkeys(ids):
            node, vector, last = read.rows.get(id_), vectors.get(id_), entries.get(id_)
            problem = judge_node(caller.tenant, id_, node, vector, last, memory.sealed, texts.get(id_))
            if problem is not None:
                read.problems.append(problem)
        report(read.problems, door)
    failed = {problem.id for problem in read.problems}
    read.nodes = {id_: node for id_, node in read.rows.items() if live[id_] and id_ not in failed}
    return read


async def read_node(
    memory: Memory, caller: Caller, id_: uuid.UUID, door: str, more: Sequence[Query] = ()
) -> tuple[Node | None, Read]:
    """One node, or None where there is no live one. Raises Tampered."""
    read = await read_nodes(memory, caller, [id_], door, more)
    if read.problems:
        raise refusal(read.problems[0])
    return read.nodes.get(id_), read


def artifact_entries(memory: Memory, caller: Caller, ids: Sequence[uuid.UUID]) -> Query:
    """What the log said last of these artifacts: a query to run along."""
    keys = {"tenants": [caller.tenant] * len(ids), "ids": list(ids), "origin": memory.sealed.origin}
    return _EVIDENCE["last_artifact_entries"], keys


def attached_entries(memory: Memory, caller: Caller, nodes: Sequence[uuid.UUID]) -> Query:
    """The same of all artifacts of some nodes."""
    return _EVIDENCE["last_attached_entries"], {
        "tenant": caller.tenant,
        "ids": list(nodes),
        "origin": memory.sealed.origin,
    }


async def judge_artifacts(
    memory: Memory,
    caller: Caller,
    rows: Sequence[Mapping[str, Any]],
    entries: Sequence[Mapping[str, Any]],
    nodes: Mapping[uuid.UUID, Node],
    door: str,
    wanted: Sequence[uuid.UUID] = (),
) -> tuple[list[Artifact], list[Problem]]:
    """Rows of artifacts that may be served, and what is wrong with the others. ``nodes``: verified rows of those that they belong to;
    an artifact's hold is its node's. ``wanted``: ids of which a missing row is looked at too."""
    artifacts = {row["id"]: artifact_row(dict(row)) for row in rows}
    if not strict(memory):
        return list(artifacts.values()), []
    last: dict[uuid.UUID, LastEntry] = {row["id"]: last_entry(row) for row in entries}
    await check_batches(memory, caller, last.values())
    problems = []
    for id_ in dict.fromkeys([*artifacts, *wanted]):
        artifact = artifacts.get(id_)
        problem = judge_artifact(caller.tenant, id_, artifact, last.get(id_), memory.sealed)
        if problem is None and artifact is not None:
            node = None if artifact.memory_node_id is None else nodes.get(artifact.memory_node_id)
            if artifact.legal_hold != (node is not None and node.legal_hold):
                entry = last.get(id_)
                reason = "its hold is not that of its node"
                problem = Problem("artifact", caller.tenant, id_, None if entry is None else entry.seq, reason)
        if problem is not None:
            problems.append(problem)
    report(problems, door)
    failed = {problem.id for problem in problems}
    return [artifact for id_, artifact in artifacts.items() if id_ not in failed], problems


async def check_batches(memory: Memory, caller: Caller, entries: Iterable[LastEntry]) -> None:
    """Check the seals of the batches that these entries stand in, unless this process has done so."""

    async def look(call: Call) -> list[dict[str, Any]]:
        (rows,) = await memory.stores.postgres.look(caller.tenant, call)
        return rows

    await sealed_by(memory.sealed, entries, look)


async def require_sealed(
    memory: Memory, caller: Caller, rows: Sequence[Mapping[str, Any]], door: str, node: uuid.UUID
) -> None:
    """Raise Tampered unless each of these entries of a node is one that was sealed."""
    if not strict(memory):
        return
    entries = [LastEntry(row["seq"], row["batch_no"], bytes(row["entry"]), None) for row in rows]
    await check_batches(memory, caller, entries)
    for entry in entries:
        if not memory.sealed.covers(entry.batch, entry.seq, entry.entry):
            problem = Problem(
                "node", caller.tenant, node, entry.seq, "an entry of its history is not one that was sealed"
            )
            report([problem], door)
            raise refusal(problem)


def given_vectors(rows: Iterable[Mapping[str, Any]]) -> dict[uuid.UUID, str]:
    """SHA-256 of the vector that each node's caller gave, of rows of the query ``given_vectors``."""
    return {row["id"]: row["sha256"] or vector_sha256(row["vector"]) for row in rows}


def vector_sha256(encoded: str) -> str:
    """Of a vector in base64; what is no base64 has no hash that fits."""
    try:
        return hashlib.sha256(base64.b64decode(encoded, validate=True)).hexdigest()
    except (binascii.Error, ValueError):
        return "no base64"
