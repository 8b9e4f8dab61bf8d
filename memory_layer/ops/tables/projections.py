"""What follows from nodes and entries: namespaces, the outbox, answers kept under idempotency keys, sweeps of objects.

The words of the text index and the vectors themselves are compared by ``memoryctl vectors reconcile``, which can repair them.
"""

from __future__ import annotations

import uuid
from collections.abc import Container, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

from memory_layer.audit.entry import ENTRY, GROUP
from memory_layer.model import SYSTEM_TENANT
from memory_layer.ops.tables.found import STATE, Look, differing_columns, later, moment, payload_of
from memory_layer.ops.tables.statements import Statements

_ANSWERS: Final = 500


def check_namespaces(look: Look, stated: Statements) -> set[tuple[str, str]]:
    """Generations against the last entry about them; of a namespace without one, that it is as its first vector left it.

    (tenant, name) of those in question.
    """
    names, doubtful = set(), set()
    for row in look.stream("namespaces"):
        (
            tenant,
            name,
            index,
            model,
            dimension,
            state,
            count,
            beside,
            b_model,
            b_dimension,
            b_state,
            made,
            changed,
            there,
        ) = row
        names.add((tenant, name))
        statement = stated.generations.get((tenant, name))
        differs = [] if state == "active" else ["state"]
        carried = stated.carried.get((tenant, name))
        known = carried is not None and carried.get("created_at") == moment(made)
        differs += [] if there or known else ["created_at"]
        generations = 1 if carried is None else carried.get("generations", 1)
        if statement is None and carried is not None:
            expected = {column: carried.get(column) for column in _CARRIED}
        elif statement is None:
            expected = {"index_namespace": name, "generations": 1, "beside": None, "updated_at": moment(made)}
        elif statement.payload is None:
            continue
        else:
            expected = _generations(statement.payload) | {
                "updated_at": statement.ts,
                "generations": generations + stated.opened[tenant, name],
            }
        stored = {
            "index_namespace": index, "embedding_model": model, "dimension": dimension, "generations": count, "beside": beside,
            "beside_model": b_model, "beside_dimension": b_dimension, "beside_state": b_state, "updated_at": moment(changed),
        }  # fmt: skip
        differs += differing_columns(stored, expected)
        if differs:
            doubtful.add((tenant, name))
        seq = None if statement is None else statement.seq
        look.found.differ(
            STATE, f"namespaces, {'one' if statement is None else 'that of the entry'}", _SAYS, differs, seq=seq
        )
    for key in stated.carried.keys() - names - stated.generations.keys():
        doubtful.add(key)
        look.found.add(STATE, "namespaces: the one that the log found when it was opened", "no such row")
    for key, statement in stated.generations.items():
        if key not in names:
            doubtful.add(key)
            look.found.add(STATE, "namespaces: the one that the entry names", "no such row", seq=statement.seq)
    return doubtful


_SAYS: Final = "entries say"
_CARRIED: Final = (
    "index_namespace", "embedding_model", "dimension", "generations", "beside", "beside_model", "beside_dimension", "beside_state",
    "updated_at",
)  # fmt: skip


def _generations(facts: Mapping[str, Any]) -> dict[str, Any]:
    active, beside = facts.get("active") or {}, facts.get("beside") or {}
    return {
        "index_namespace": active.get("indexNamespace"),
        "embedding_model": active.get("model"),
        "dimension": active.get("dimension"),
        "beside": beside.get("indexNamespace"),
        "beside_model": beside.get("model"),
        "beside_dimension": beside.get("dimension"),
        "beside_state": beside.get("state"),
    }


def check_vectors(look: Look, nodes: Container[str], spaces: set[tuple[str, str]]) -> None:
    """Rows of the outbox against their node and namespace, and nodes with a text or a vector of their caller's that have none.

    What follows from a node or a namespace (tenant, name) that is itself in question is no finding of its own.
    """
    homeless: set[tuple[str, str]] = set()
    for tenant, space, without, node, id_, columns in look.stream("vectors"):
        if node in nodes or (tenant, space) in spaces:
            continue
        if without:
            homeless.add((tenant, space))
            continue
        look.found.differ(STATE, f"memory_vectors, {id_} of node {node}", "its node and namespace say", columns)
    for _ in homeless:
        look.found.add(STATE, "namespaces: a row for each namespace that holds vectors", "none for one")
    for tenant, space, node in look.stream("unindexed"):
        if node not in nodes and (tenant, space) not in spaces | homeless:
            look.found.add(STATE, f"memory_vectors: a row for node {node}, which has a text or a vector", "none")


def check_answers(look: Look, stated: Statements) -> None:
    """Answers that are given again under an idempotency key: each names an entry, and that is the caller's and says the same."""
    answers, opened = look.rows("answers"), None if stated.opening is None else stated.opening.ts
    if opened is not None:
        of_this_log = [row for row in answers if later(moment(row[5]), opened)]
        if len(of_this_log) < len(answers):
            before = len(answers) - len(of_this_log)
            look.found.not_checked.append(
                f"answers: {before} rows of idempotency_keys that name entries of the log before; they are forgotten after 24 hours"
            )
        answers = of_this_log
    for page in _pieces(answers, _ANSWERS):
        ids = {one for row in page for answer in _audited(row[4]) if (one := _uuid(answer.get("auditId"))) is not None}
        entries = {row[0]: row for row in look.rows("events", ids=sorted(ids))}
        jobs = {
            job for row in page for part in _audited(row[4]) if (job := _uuid(part.get("embeddingJobId"))) is not None
        }
        nodes = dict(look.rows("jobs", ids=sorted(jobs)))
        for tenant, actor, _, status, answer, created in page:
            audited = _audited(answer)
            differs = [] if status == 200 else ["status"]
            last: tuple[Any, ...] | None = None
            for part in audited:
                last = entries.get(str(part.get("auditId")))
                differs += ["answer"] if last is None else _differs(part, last, tenant, actor, nodes)
            if last is not None and moment(last[6]) != moment(created):
                differs.append("created_at")
            if not audited:
                differs.append("answer")
            seq = None if last is None else last[1]
            look.found.differ(
                STATE, "idempotency_keys, an answer", "its entries say", list(dict.fromkeys(differs)), seq=seq
            )


def _audited(answer: Any) -> list[dict[str, Any]]:
    """The parts of an answer that name an entry, the last one being that of the whole."""
    if not isinstance(answer, dict):
        return []
    parts = [
        one for one in (*(answer.get("items") or ()), *(answer.get("artifacts") or ()), answer) if isinstance(one, dict)
    ]
    more = [part for one in parts if one is not answer for part in one.get("artifacts") or () if isinstance(part, dict)]
    return [one for one in (*more, *parts) if "auditId" in one]


# Members of an answer that its entry speaks of elsewhere than in its payload, or that say how the row was at that moment.
_ABOUT: Final = frozenset(
    {
        "auditId",
        "audit",
        "artifacts",
        "memoryNodeId",
        "version",
        "embeddingJobId",
        "artifactId",
        "legalHold",
        "verifiedAt",
        "fault",
    }
)


def _differs(
    one: Mapping[str, Any], entry: tuple[Any, ...], tenant: str, actor: str, jobs: Mapping[str, str]
) -> Iterator[str]:
    _, seq, digest, of, node, artifact, _, data, salt, payload = entry
    if one.get("audit") != {"seq": seq, "hash": digest}:
        yield "answer"
    if (of or SYSTEM_TENANT) != tenant:
        yield "tenant"
    match = ENTRY.fullmatch(data.decode("latin-1"))
    if match is None:
        return
    if match[GROUP["actor"]] != actor:
        yield "actor"
    type_, version = match[GROUP["type"]], match[GROUP["version"]]
    about = {"memoryNodeId": node, "artifactId": artifact, "version": None if version is None else int(version)}
    if one.get("embeddingJobId") is not None and jobs.get(str(one["embeddingJobId"])) != node:
        yield "answer"
    if any(name in one and one[name] != value for name, value in about.items()):
        yield "answer"
    if type_ == "memory.artifact.created":
        content = payload_of(data, salt, payload)
        if content is not None and any(
            name not in content or one[name] != content[name] for name in one.keys() - _ABOUT
        ):
            yield "answer"
    elif type_.startswith(("memory.node.", "memory.legal_hold.")) and one.keys() - _ABOUT - {"items"}:
        yield "answer"


def check_deleted_artifacts(look: Look, stated: Statements) -> None:
    """Which bytes deleted artifacts named, by the entries of their deletion. A log that goes on from another one knows those since it was
    opened."""
    opened = None if stated.opening is None else stated.opening.ts
    before = 0
    for seq, id_, deleted, named, columns in look.stream("deleted_artifacts"):
        if seq is None and opened is not None and not later(moment(deleted), opened):
            before += 1
        elif seq is None:
            look.found.add(STATE, f"deleted_artifacts: an entry that deleted {id_}", "none")
        elif id_ is None:
            look.found.add(STATE, f"deleted_artifacts: {named}", "no such row", seq=seq)
        else:
            look.found.differ(STATE, f"deleted_artifacts, {id_}", f"entry {seq} says", columns, seq=seq)
    if before:
        look.found.not_checked.append(f"tables: {before} rows of deleted_artifacts that the log before made")


def check_sweeps(look: Look) -> None:
    """No object that an artifact names may be marked as one that nothing names."""
    for _, count in look.rows("sweeps"):
        look.found.add(STATE, "artifact_sweeps: objects of their tenant that no artifact names", f"{count} others")


def _uuid(text: Any) -> str | None:
    try:
        return str(uuid.UUID(text))
    except (ValueError, TypeError, AttributeError):
        return None


def _pieces(rows: Iterable[tuple[Any, ...]], size: int) -> Iterator[list[tuple[Any, ...]]]:
    rest = iter(rows)
    while piece := list(islice(rest, size)):
        yield piece
