"""`memoryctl tamper`: rows that are not what the log says of them. Find them, look at both versions, put one back, or accept it."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from memory_layer.audit.states import ARTIFACT_TYPES, NODE_TYPES
from memory_layer.errors import Conflict, NotFound, UsageError, ValidationError
from memory_layer.model import MAX_REASON, Artifact, Node, is_reason
from memory_layer.ops.operate import Run
from memory_layer.ops.report import Finding
from memory_layer.service.actions.tampered import ResolveRow
from memory_layer.service.commit import Change
from memory_layer.service.evidence import artifact_row, given_by, node_row
from memory_layer.service.hiding import hidden_in
from memory_layer.service.installation import Installation
from memory_layer.service.principals import known_caller
from memory_layer.service.story import Kind, Story, read_story
from memory_layer.service.verification import (
    Problem,
    judge_artifact,
    judge_node,
    last_entry,
    misplaced,
    node_named,
    sealed_by,
)
from memory_layer.sql import queries
from memory_layer.stores.batch_reads import vector_row
from memory_layer.stores.pipeline import Call
from memory_layer.stores.postgres import ALL_TENANTS

LOCK: Final = "tamper"
PAGE: Final = 500  # rows
NAMED: Final = 1000  # rows that a list names; the rest are counted

_SQL = queries("tamper")
_COMMIT = queries("commit")
_EVIDENCE = queries("evidence")


@dataclass(frozen=True, slots=True)
class Compared:
    """Both versions of a row as JSON under the names of the format, and what the log says besides. None: there is no such row."""

    kind: Kind
    tenant: str
    id: uuid.UUID
    problem: str | None
    found: dict[str, Any] | None
    story: Story
    nodes: tuple[uuid.UUID, ...] = ()

    @property
    def differs(self) -> list[str]:
        """Members that are not the same in both, where both are known."""
        recorded = self.story.recorded.row
        if self.found is None or recorded is None:
            return []
        names = dict.fromkeys([*recorded, *self.found])
        return [name for name in names if recorded.get(name) != self.found.get(name)]

    def to_json(self, *, show_pii: bool) -> dict[str, Any]:
        """Both versions, with what their flags hide marked as redacted unless it is asked for."""
        recorded, entry = self.story.recorded, self.story.entry
        row, log = self.found, recorded.row
        if not show_pii:
            flags = [side["piiFlags"] for side in (row, log) if side is not None and "piiFlags" in side]
            row, log = hidden_in(row, flags), hidden_in(log, flags)
        return {
            "kind": self.kind,
            "tenant": self.tenant,
            "id": str(self.id),
            "problem": self.problem,
            "row": row,
            "log": log,
            "differs": self.differs,
            "lastEntry": None
            if entry is None
            else {"seq": entry["seq"], "time": entry["ts"], "type": entry["type"], "actor": entry["actor"], "version": entry["version"]},
            "heldByLog": recorded.held,
            "missingPayloads": self.story.missing,
            "forgedPayloads": self.story.forged,
            "unsealedEntries": self.story.unsealed,
            "unexplainedEntry": recorded.unexplained,
        }  # fmt: skip


# --- what an operator asks for


async def show(run: Run, id_: uuid.UUID, tenant: str | None) -> Compared:
    """Both versions of a row. The run, which is kept, names columns and no value. Raises NotFound, UsageError."""
    compared = await look(await run.installation.need("committer"), id_, tenant)
    _describe(run, compared)
    return compared


async def list_problems(run: Run) -> list[Problem]:
    """Every row of all tenants that is not what its last sealed entry says."""
    found = await scan(await run.installation.need("committer"))
    run.fact("rows", len(found))
    for problem in found[:NAMED]:
        text = f"{problem.kind} {problem.id} of tenant {problem.tenant}: {problem.reason}."
        hint = f"memoryctl tamper show {problem.id}"
        run.find(Finding("tamper.row", "error", "fail", text, hint, _place_of(problem)))
    if len(found) > NAMED:
        run.find(Finding("tamper.rows", "error", "fail", f"{len(found) - NAMED} more rows are not named here."))
    if not found:
        run.find(Finding("tamper.rows", "info", "pass", "Every row is what its last sealed entry says."))
    return found


async def resolve(
    run: Run, verb: Literal["restore", "accept"], id_: uuid.UUID, tenant: str | None, reason: str
) -> None:
    """Put a row back, or accept it as it is found, with an entry. Raises Conflict where there is nothing to do or the log does not say
    what the row was, PolicyRefused where acceptance would lift a hold."""
    installation = await run.installation.need("committer")
    compared = await look(installation, id_, tenant)
    _require_sealed(compared)
    if verb == "restore" and not compared.story.recorded.gone:
        _require_known(compared)
    caller = replace(await known_caller(installation.postgres, "memoryctl", str(run.id)), tenant=compared.tenant)
    action = ResolveRow(
        verb, compared.kind, id_, reason.strip(), compared.story.recorded, compared.nodes, _namespaces(compared)
    )
    outcome = await installation.committer.submit(Change(caller, action))
    assert outcome.receipt is not None  # noqa: S101 - no idempotency key, so it is no replay
    answer = outcome.answer
    for name, value in {
        **answer,
        "tenant": compared.tenant,
        "kind": compared.kind,
        "seq": outcome.receipt.seq,
    }.items():
        run.fact(name, value)
    did = "is what its entries say again" if verb == "restore" else "was accepted as it was found"
    text = f"{compared.kind} {id_} {did}: entry {outcome.receipt.seq}, {answer['event']}."
    run.find(Finding(f"tamper.{verb}", "info", "pass", text, "memoryctl audit verify"))
    if answer["lost"]:
        text = "The vector that its caller gave is not there any more; the log has its hash alone. The node is found by its text."
        run.find(
            Finding("tamper.vector-lost", "warning", "fail", text, "Have the caller send it again (PATCH, embedding).")
        )


def check_reason(reason: str) -> None:
    """Raises ValidationError. Before there is a run, whose record would hold it."""
    if not is_reason(reason):
        raise ValidationError(f"The reason is one line of 1 to {MAX_REASON} characters; it stands in the audit log.")


# --- reading


async def look(installation: Installation, id_: uuid.UUID, tenant: str | None) -> Compared:
    """A row and all that the log says of it, in one snapshot."""
    kind, tenant = await _owner(installation, id_, tenant)
    key = {"tenants": [tenant], "ids": [id_]}
    about = {"tenant": tenant, "id": id_, "origin": installation.trust_root.origin}
    if kind == "node":
        rows, vectors, entries = await installation.postgres.fetch(
            ALL_TENANTS,
            (_COMMIT["find_nodes"], key),
            (_COMMIT["find_vectors"], key),
            (_SQL["story_of_node"], about | {"types": list(NODE_TYPES)}),
        )
    else:
        vectors = []
        rows, entries = await installation.postgres.fetch(
            ALL_TENANTS,
            (_COMMIT["find_artifacts"], key),
            (_SQL["story_of_artifact"], about | {"types": list(ARTIFACT_TYPES)}),
        )
    last = last_entry(entries[-1]) if entries else None
    await _check(installation, [last_entry(row) for row in entries])
    story = read_story(kind, entries, installation.committer.sealed)
    if kind == "node":
        node = Node(**rows[0]) if rows else None
        vector = given_by(map(vector_row, vectors))
        problem = judge_node(tenant, id_, node, vector, last, installation.committer.sealed)
        found = None if node is None else node_row(node, vector) | {"content": node.content}
        return Compared(kind, tenant, id_, _reason(problem, story), found, story)
    artifact = Artifact(**rows[0]) if rows else None
    problem = judge_artifact(tenant, id_, artifact, last, installation.committer.sealed)
    nodes = dict.fromkeys([story.recorded.node, None if artifact is None else artifact.memory_node_id])
    named = tuple(node for node in nodes if node is not None)
    holds = await holds_of(installation, [(tenant, node) for node in named])
    if problem is None and artifact is not None:
        problem = misplaced(artifact, story.recorded.node, holds, last)
    found = None if artifact is None else artifact_row(artifact) | _link(artifact.memory_node_id, artifact.legal_hold)
    if story.recorded.row is not None:
        there = story.recorded.node if (tenant, story.recorded.node) in holds else None
        row = story.recorded.row | _link(there, bool(holds.get((tenant, story.recorded.node))))
        story.recorded = replace(story.recorded, row=row)
    return Compared(kind, tenant, id_, _reason(problem, story), found, story, named)


def _link(node: uuid.UUID | None, held: bool) -> dict[str, Any]:
    """What no state of an artifact covers, and is shown with it."""
    return {"memoryNodeId": None if node is None else str(node), "legalHold": held}


async def scan(installation: Installation) -> list[Problem]:
    """All rows that fail, in pages: those that are there, then those that are gone."""
    problems: list[Problem] = []
    for kind in ("node", "artifact"):
        after: dict[str, Any] = {"tenant": "", "id": uuid.UUID(int=0)}
        while True:
            (page,) = await installation.postgres.fetch(
                ALL_TENANTS, (_SQL[f"page_of_{kind}s"], {**after, "limit": PAGE})
            )
            problems += await _judge(installation, kind, [(row["tenant"], row["id"]) for row in page])
            if len(page) < PAGE:
                break
            after = dict(page[-1])
        (gone,) = await installation.postgres.fetch(
            ALL_TENANTS, (_SQL[f"gone_{kind}s"], {"origin": installation.trust_root.origin})
        )
        for start in range(0, len(gone), PAGE):
            problems += await _judge(
                installation, kind, [(row["tenant"], row["id"]) for row in gone[start : start + PAGE]]
            )
    return problems


async def _judge(installation: Installation, kind: str, keys: Sequence[tuple[str, uuid.UUID]]) -> list[Problem]:
    if not keys:
        return []
    tenants, ids = zip(*keys, strict=True)
    wanted = {"tenants": list(tenants), "ids": list(ids)}
    about = wanted | {"origin": installation.trust_root.origin}
    rows, entries = await installation.postgres.fetch(
        ALL_TENANTS, (_COMMIT[f"find_{kind}s"], wanted), (_EVIDENCE[f"last_{kind}_entries"], about)
    )
    last = {(row["tenant"], row["id"]): last_entry(row) for row in entries}
    await _check(installation, last.values())
    sealed, problems = installation.committer.sealed, list[Problem | None]()
    if kind == "node":
        nodes = {(row["tenant"], row["id"]): Node(**row) for row in rows}
        (vectors,) = await installation.postgres.fetch(ALL_TENANTS, (_COMMIT["find_vectors"], wanted))
        given: dict[tuple[str, uuid.UUID], list[Any]] = {}
        for row in vectors:
            given.setdefault((row["tenant"], row["memory_node_id"]), []).append(vector_row(row))
        for key in keys:
            vector = given_by(given.get(key, ()))
            problems.append(judge_node(*key, nodes.get(key), vector, last.get(key), sealed))
    else:
        artifacts = {(row["tenant"], row["id"]): Artifact(**row) for row in rows}
        named = {key: node_named(entry) for key, entry in last.items()}
        wanted_nodes = {(key[0], node) for key, node in named.items() if node is not None}
        holds = await holds_of(installation, sorted(wanted_nodes))
        for key in keys:
            artifact = artifacts.get(key)
            problem = judge_artifact(*key, artifact, last.get(key), sealed)
            if problem is None and artifact is not None:
                problem = misplaced(artifact, named.get(key), holds, last.get(key))
            problems.append(problem)
    return [problem for problem in problems if problem is not None]


async def holds_of(
    installation: Installation, keys: Sequence[tuple[str, uuid.UUID]]
) -> dict[tuple[str, uuid.UUID | None], bool]:
    """Of these nodes, those that are there."""
    if not keys:
        return {}
    tenants, ids = zip(*keys, strict=True)
    (rows,) = await installation.postgres.fetch(
        ALL_TENANTS, (_SQL["holds_of_nodes"], {"tenants": list(tenants), "ids": list(ids)})
    )
    return {(row["tenant"], row["id"]): row["legal_hold"] for row in rows}


async def _check(installation: Installation, entries: Any) -> None:
    async def read(call: Call) -> list[dict[str, Any]]:
        (rows,) = await installation.postgres.look("", call)
        return rows

    await sealed_by(installation.committer.sealed, entries, read)


async def _owner(installation: Installation, id_: uuid.UUID, tenant: str | None) -> tuple[Kind, str]:
    types = {"node_types": list(NODE_TYPES), "artifact_types": list(ARTIFACT_TYPES)}
    (rows,) = await installation.postgres.fetch(
        ALL_TENANTS, (_SQL["tenants_of_row"], {"id": id_, "origin": installation.trust_root.origin, **types})
    )
    rows = [row for row in rows if tenant is None or row["tenant"] == tenant]
    if not rows:
        raise NotFound(f"There is no node or artifact {id_}, and no entry of the log is about one.")
    if len(rows) > 1:
        where = ", ".join(f"{row['kind']} of {row['tenant']}" for row in rows)
        raise UsageError(f"{id_} is more than one row ({where}): say which with --tenant.")
    return rows[0]["kind"], rows[0]["tenant"]


# --- reporting


def _reason(problem: Problem | None, story: Story) -> str | None:
    if problem is not None:
        return problem.reason
    if story.recorded.unexplained is not None:
        return f"it had been changed without an entry before entry {story.recorded.unexplained} was sealed"
    return None


def _describe(run: Run, compared: Compared) -> None:
    recorded, what = compared.story.recorded, f"{compared.kind} {compared.id}"
    for name, value in (("kind", compared.kind), ("tenant", compared.tenant), ("id", compared.id), ("lastSeq", recorded.seq),
                        ("differs", compared.differs)):  # fmt: skip
        run.fact(name, value)
    if compared.problem is None:
        run.find(Finding("tamper.row", "info", "pass", f"{what} is what its last sealed entry says."))
        return
    hint = f"memoryctl tamper restore {compared.id} --reason ..., or tamper accept; docs/runbooks/tampered-row.md"
    columns = f" Members that differ: {', '.join(compared.differs)}." if compared.differs else ""
    run.find(Finding("tamper.row", "error", "fail", f"{what}: {compared.problem}.{columns}", hint))
    for check in (_require_sealed, _require_known):
        try:
            if not recorded.gone:
                check(compared)
        except Conflict as error:
            run.find(Finding("tamper.not-restorable", "warning", "fail", error.message))


def _require_sealed(compared: Compared) -> None:
    """Raise Conflict where the entries themselves are in question: then it is the log that has to be looked at first."""
    if compared.story.unsealed:
        raise Conflict(
            f"Entries {_numbers(compared.story.unsealed)} about {compared.kind} {compared.id} are not sealed ones: the log itself was "
            "changed. `memoryctl audit verify` says where; nothing is put right by such entries."
        )


def _require_known(compared: Compared) -> None:
    """Raise Conflict where the log does not say any more what the row was."""
    story = compared.story
    if story.recorded.seq is None or story.recorded.row is not None:
        return
    if story.missing or story.forged:
        parts = [f"the payload of entry {_numbers(story.missing)} is not there"] if story.missing else []
        parts += [f"that of entry {_numbers(story.forged)} is not the one that it commits to"] if story.forged else []
        why = ", and ".join(parts)
    else:
        why = f"entry {story.recorded.unexplained} sealed a state that its payloads do not explain"
    raise Conflict(f"{compared.kind.capitalize()} {compared.id} cannot be restored: {why}. It can be accepted.")


def _numbers(seqs: Sequence[int]) -> str:
    return ", ".join(map(str, seqs[:10])) + (", ..." if len(seqs) > 10 else "")


def _place_of(problem: Problem) -> dict[str, Any]:
    return {"kind": problem.kind, "tenant": problem.tenant, "id": str(problem.id), "lastSeq": problem.seq}


def _namespaces(compared: Compared) -> tuple[str, ...]:
    sides = (compared.found, compared.story.recorded.row)
    return tuple({side["namespace"] for side in sides if side is not None and "namespace" in side})
